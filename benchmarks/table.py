"""A report as text: machine, ceiling, models, and a table of figures with ratios. Knows no measuring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.machine import TOLERATED_CPUS
from benchmarks.plan import FORMATS, OURS


def render(report: dict[str, Any]) -> str:
    """The whole report, lines of at most about 120 characters."""
    parts = [_head(report), _models(report), _figures(report), _notes(report)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(report: dict[str, Any]) -> str:
    machine, model, ceiling, plan = report["machine"], report["model"], report["ceiling"], report["plan"]
    lines = [
        f"machine   {machine['cpu']}, {machine['threads']} threads of {machine['cpus']} processors, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB; {' '.join(machine['instructions'])}",
        f"model     {model['num_weights'] / 1e9:.2f} billion weights: {model['num_layers']} layers, hidden "
        f"{model['hidden_size']}, vocabulary {model['vocab_size']}",
    ]
    if ceiling:
        peaks = ", ".join(f"{gops:.0f} GOPS {kind}" for kind, gops in ceiling["peak_gops"].items())
        lines.append(f"ceiling   memory read {ceiling['read_gbps']:.1f} GB/s, arithmetic {peaks} (medians of the run)")
    lines.append(
        f"run       {report['seconds'] / 60:.1f} minutes, up to {plan['rounds']} rounds, contenders in turns, each "
        "right after its ceilings; medians"
    )
    lines += [f"          {version}" for version in report["versions"].values()]
    return "\n".join(lines)


def _models(report: dict[str, Any]) -> str:
    """What each contender made of the checkpoint, and what it keeps in memory: weights, KV cache, and the rest."""
    memory = {(f["format"], f["contender"]): f for f in report["figures"] if f["row"] == "memory"}
    rows = []
    for model in report["models"]:
        cells = [FORMATS[model["format"]].title, model["contender"], f"{model['weight_bytes'] / 1e6:.0f}"]
        cells.append(f"{model['bits_per_weight']:.2f}")
        figure = memory.get((model["format"], model["contender"]))
        if figure is None:
            cells += ["", "", ""]
        else:
            rest = figure["rss_bytes"] - figure["weight_bytes"] - figure["cache_bytes"]
            cells += [f"{n / 1e6:.0f}" for n in (figure["rss_bytes"], figure["cache_bytes"], rest)]
        rows.append((*cells, model["note"]))
    headings = ("weights", "", "MB", "bits a weight", "resident MB", "of it cache", "beside both", "stored as")
    return _align(headings, rows, "llrrrrrl")


def _figures(report: dict[str, Any]) -> str:
    """A line for each row and format; a peer's figure is followed by how far qwench is ahead of it."""
    names = [name for name in report["plan"]["contenders"] if any(f["contender"] == name for f in report["figures"])]
    if not names:
        return "no figures"
    headings = ("", "", "unit", "ceiling", *(column for name in names for column in (name, "")))
    lines: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for figure in report["figures"]:
        lines.setdefault((figure["title"], figure["format"]), {})[figure["contender"]] = figure
    rows: list[tuple[str, ...]] = []
    last = ""
    for (title, format_name), figures in lines.items():
        some = next(iter(figures.values()))
        ceiling = figures.get(OURS, some)["ceiling"]
        cells = [cell for name in names for cell in _cells(figures.get(name))]
        limit = "" if ceiling is None else _number(ceiling)
        rows.append((title if title != last else "", FORMATS[format_name].title, some["unit"], limit, *cells))
        last = title
    return _align(headings, rows, "lll" + "r" * (len(headings) - 3))


def _cells(figure: dict[str, Any] | None) -> tuple[str, str]:
    """A figure, and beside qwench's the share of the ceiling, beside a peer's how far qwench is ahead."""
    if figure is None:
        return "-", ""
    value = _number(figure["median"]) + ("?" if figure["is_disturbed"] else "")
    if figure["contender"] == OURS:
        share = figure["share_of_ceiling"]
        return value, "" if share is None else f"{share:.0%}"
    ahead = figure["qwench_ahead"]
    return value, "" if ahead is None else f"{ahead:.2f}x"


def _notes(report: dict[str, Any]) -> str:
    return "\n".join(_note_lines(report))


def _note_lines(report: dict[str, Any]) -> Iterator[str]:
    yield "%: qwench's share of the ceiling. x: how far qwench is ahead, in speed, or in needing fewer seconds or MB."
    for a in report["agreement"]:
        yield (
            f"greedy tokens, {FORMATS[a['format']].title}, {a['contender']}: the first {a['num_agreeing']} of "
            f"{a['num_tokens']} are qwench's"
        )
    disturbed = [cpus for s in report["samples"] if (cpus := s["values"]["others_cpus"]) > TOLERATED_CPUS]
    if disturbed:
        yield (
            f"disturbed: during {len(disturbed)} of {len(report['samples'])} measurements others used more than "
            f"{TOLERATED_CPUS} processors, up to {max(disturbed):.1f}; these count only where there is nothing else (?)"
        )
    for skipped in report["skipped"]:
        yield f"skipped: {skipped}"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"


def _align(headings: Sequence[str], rows: Sequence[Sequence[str]], sides: str) -> str:
    """Columns two spaces apart; sides: "l" or "r" for each."""
    lines = [headings, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if side == "l" else cell.rjust(w) for cell, w, side in zip(line, widths, sides)
        ).rstrip()
        for line in lines
    )
