"""Samples -> figures: medians, ratios to qwench within a round, shares of the ceiling. What --json prints.

Knows no process; works as well on what an earlier run saved.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.cost import decode_cost, prefill_cost
from benchmarks.measure import Measured, Sample
from benchmarks.plan import ANSWER, COMPILE, LONG, MAX_STEP_TOKENS, OURS, START, USERS, WORKS, Work


@dataclass(frozen=True)
class Row:
    """One kind of figure. title: what it is; unit: of `value(sample)`; less_is_better: seconds and bytes."""

    name: str
    title: str
    work: str
    unit: str
    value: Callable[[dict[str, Any]], float]
    less_is_better: bool = False


def _prefill_speed(work: Work) -> Callable[[dict[str, Any]], float]:
    return lambda values: float(work.num_users * work.num_prompt / values["prefill_s"])


def _decode_speed(values: dict[str, Any]) -> float:
    return float(values["decode_tokens"] / values["decode_s"])


ROWS = (
    Row("prompt", f"prompt of {ANSWER.num_prompt}", "answer", "tokens/s", _prefill_speed(ANSWER)),
    Row("long", f"prompt of {LONG.num_prompt}", "long", "tokens/s", _prefill_speed(LONG)),
    Row("generate", f"generate {ANSWER.num_generate} after {ANSWER.num_prompt}", "answer", "tokens/s", _decode_speed),
    Row("users", f"generate, {USERS.num_users} users", "users", "tokens/s", _decode_speed),
    Row("start", "start to first token", START, "s", lambda values: float(values["seconds"]), True),
    Row("compile", "compile", COMPILE, "s", lambda values: float(values["seconds"]), True),
    Row("memory", "resident memory", "answer", "MB", lambda values: float(values["rss_bytes"]) / 1e6, True),
)


def make_report(found: Measured) -> dict[str, Any]:
    """Everything as plain data: machine, ceilings, models, figures, samples."""
    figures = [
        figure for row in ROWS for format_name in found.plan.formats for figure in _figures(found, row, format_name)
    ]
    return {
        "machine": found.machine,
        "seconds": found.seconds,
        "ceiling": _median_ceiling(found),
        "model": {**dataclasses.asdict(found.shape), "num_weights": found.shape.num_weights},
        "plan": found.plan.to_dict(),
        "works": {name: dataclasses.asdict(work) for name, work in WORKS.items() if name in found.plan.works},
        "versions": found.versions,
        "skipped": found.skipped,
        "models": [
            {"format": f, "contender": c, **_model(found, compiled.weight_bytes), "note": compiled.note}
            for f, models in found.models.items()
            for c, compiled in models.items()
        ],
        "figures": figures,
        "agreement": _agreement(found),
        "profiles": found.profiles,
        "samples": [dataclasses.asdict(sample) for sample in found.samples],
    }


def _model(found: Measured, weight_bytes: int) -> dict[str, float]:
    return {"weight_bytes": weight_bytes, "bits_per_weight": 8 * weight_bytes / found.shape.num_weights}


def _figures(found: Measured, row: Row, format_name: str) -> list[dict[str, Any]]:
    """One figure for each contender that did the row's work in this format."""
    by_contender = {name: _trusted_rounds(found, row, format_name, name) for name in found.plan.contenders}
    return [_figure(found, row, rounds, by_contender.get(OURS, {})) for rounds in by_contender.values() if rounds]


def _trusted_rounds(found: Measured, row: Row, format_name: str, contender: str) -> dict[int, Sample]:
    """Round -> sample, of those that nobody disturbed; all of them if there is no such round."""
    rounds = {s.round_number: s for s in found.samples if _is_of(s, row, format_name, contender)}
    return {n: s for n, s in rounds.items() if not s.is_disturbed} or rounds


def _figure(found: Measured, row: Row, rounds: dict[int, Sample], our_rounds: dict[int, Sample]) -> dict[str, Any]:
    """Medians; the ratio to qwench is that of rounds which both have, or of the medians if there is none."""
    some = next(iter(rounds.values()))
    values = {n: row.value(sample.values) for n, sample in rounds.items()}
    ours = {n: row.value(sample.values) for n, sample in our_rounds.items()}
    limits = {n: limit for n, sample in rounds.items() if (limit := _limit(found, row, sample)) is not None}
    pairs = [(ours[n], values[n]) for n in values if n in ours]
    if ours and not pairs:
        pairs = [(statistics.median(ours.values()), statistics.median(values.values()))]
    ahead = [theirs / our if row.less_is_better else our / theirs for our, theirs in pairs]
    share = [limits[n] / values[n] if row.less_is_better else values[n] / limits[n] for n in limits]
    return {
        "row": row.name, "title": row.title, "unit": row.unit, "less_is_better": row.less_is_better,
        "format": some.format_name, "contender": some.contender, "num_rounds": len(values),
        "is_disturbed": some.is_disturbed and row.name != "memory",
        "median": statistics.median(values.values()), "min": min(values.values()), "max": max(values.values()),
        "ceiling": _median(list(limits.values())), "share_of_ceiling": _median(share),
        "qwench_ahead": _median(ahead) if some.contender != OURS else None,
        **(_memory_parts(found, some) if row.name == "memory" else {}),
    }  # fmt: skip


def _is_of(sample: Sample, row: Row, format_name: str, contender: str) -> bool:
    of_work = (sample.format_name, sample.work, sample.contender) == (format_name, row.work, contender)
    return of_work and (row.name != "memory" or "rss_bytes" in sample.values)


def _limit(found: Measured, row: Row, sample: Sample) -> float | None:
    """The ceiling of a figure at that moment: tokens/s or seconds; None where there is none."""
    if row.name == "compile":
        return found.copy_s.get((sample.format_name, sample.round_number))
    if sample.ceiling is None or row.less_is_better:
        return None
    work, weight_bytes = WORKS[row.work], found.models[sample.format_name][sample.contender].weight_bytes
    if row.value is _decode_speed:
        cost, tokens = decode_cost(found.shape, work, weight_bytes), work.num_users
    else:
        cost = prefill_cost(found.shape, work, weight_bytes, MAX_STEP_TOKENS)
        tokens = work.num_users * work.num_prompt
    return tokens / sample.ceiling.seconds(cost, sample.format_name)


def _memory_parts(found: Measured, sample: Sample) -> dict[str, Any]:
    """Beside resident bytes: what of them must be, the weights and the cache."""
    parts = {key: sample.values[key] for key in ("rss_bytes", "pss_bytes", "peak_rss_bytes", "cache_bytes")}
    return parts | {"weight_bytes": found.models[sample.format_name][sample.contender].weight_bytes}


def _median_ceiling(found: Measured) -> dict[str, Any]:
    ceilings = [sample.ceiling for sample in found.samples if sample.ceiling is not None]
    if not ceilings:
        return {}
    kinds = ceilings[0].peak_gops
    return {
        "read_gbps": statistics.median(c.read_gbps for c in ceilings),
        "peak_gops": {kind: statistics.median(c.peak_gops[kind] for c in ceilings) for kind in kinds},
    }


def _agreement(found: Measured) -> list[dict[str, Any]]:
    """How many first tokens of the first answer are qwench's own: contenders that differ at once run another model."""
    answers = {
        (s.format_name, s.contender): s.values["tokens"]
        for s in found.samples
        if s.work == "answer" and s.round_number == 0 and s.values["tokens"]
    }
    return [
        {"format": f, "contender": c, "num_tokens": len(tokens), "num_agreeing": _common(tokens, answers[f, OURS])}
        for (f, c), tokens in answers.items()
        if c != OURS and (f, OURS) in answers
    ]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None
