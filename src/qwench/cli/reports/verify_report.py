"""What `qwench verify` found, as an object for --json and as tables. Called by `cli/commands/verify.py`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwench.artifact.artifact import Artifact
    from qwench.evaluate.fidelity import Fidelity, Greedy

MODULES = ("embedding", "norm", "attention", "mlp", "layer", "head")


def describe(found: Fidelity, artifact: Artifact, checkpoint: str) -> dict[str, Any]:
    """Everything that was found, as plain data; NaN as null."""
    prompt, token = found.worst_token()
    greedy = found.greedy
    report: dict[str, Any] = {
        "artifact": str(artifact.path),
        "checkpoint": str(checkpoint),
        "truth": found.truth,
        "weights": found.weights,
        "activations": artifact.config.activations,
        "kv_cache": artifact.config.kv_cache,
        "target": artifact.config.target,
        "num_prompts": len(found.prompts),
        "num_tokens": sum(length for _, length in found.prompts),
        "logits": found.logits.summary() | {"worst_prompt": prompt, "worst_token": token},
        "others": {name: scores.summary() for name, scores in found.others.items()},
        "states": [scores.summary() for scores in found.states],
        "modules": [
            {"kind": m.kind, "layer": m.layer, "output": m.name, **m.scores.summary()} for m in found.modules
        ],
        "greedy": greedy and {
            "num_new": greedy.num_new, "num_same": greedy.num_same, "first_divergence": greedy.first,
            "divergences": greedy.divergences, "gaps": greedy.gaps,
        },
        "pcc_by_token": found.logits.scores.pcc.tolist(),
        "checks": [{"name": c.name, "value": c.value, "limit": c.limit, "ok": c.ok} for c in found.checks],
        "suspects": [{"kind": m.kind, "layer": m.layer, "output": m.name} for m in found.suspects],
        "ok": found.ok,
    }  # fmt: skip
    plain: dict[str, Any] = _without_nan(report)
    return plain


def _without_nan(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_report(found: Fidelity, report: dict[str, Any]) -> None:
    """Tables by layer and by kind of module, the logits, and the verdict."""
    from qwench.cli.terminal.table import print_table

    beside = f" x {report['activations']} activations" if report["activations"] else ""
    formats = f"{found.weights}{beside}, KV cache {report['kv_cache']}"
    print(f"model    {report['artifact']} ({formats}, target {report['target']})")
    print(f"truth    {report['checkpoint']} with {found.truth}")
    print(f"prompts  {report['num_prompts']}, {report['num_tokens']} tokens")
    print()
    headings: tuple[str, ...] = ("layer", "norm", "attention", "mlp", "layer alone", "state after it", "error so far")
    print("Worst token's PCC of each module alone, on the truth's inputs, and of the model's own state:")
    print_table(headings, _layer_rows(found), right=headings)
    print()
    headings = ("ladder", "worst PCC", "mean PCC", "mean error", "worst in")
    print_table(headings, _ladder_rows(found), right=headings[1:4])
    print()
    headings = ("logits", "worst PCC", "mean PCC", "KL mean", "KL max", "top-1", "top-5", "perplexity", "truth's")
    rows = [_logits_row("qwench", report["logits"])]
    rows += [_logits_row(name, summary) for name, summary in report["others"].items()]
    print_table(headings, rows, right=headings[1:])
    print(f"worst token: {report['logits']['worst_token']} of {report['logits']['worst_prompt']!r}")
    if found.greedy is not None:
        print(_greedy_line(found.greedy))
    print()
    _print_verdict(found, report["activations"])


def _layer_rows(found: Fidelity) -> list[tuple[str, ...]]:
    rows = []
    for layer, state in enumerate(found.states):
        worst = {
            kind: min(m.scores.worst_pcc for m in found.modules if m.layer == layer and m.kind == kind)
            for kind in ("norm", "attention", "mlp", "layer")
        }
        cells = [_pcc(value) for value in worst.values()]
        rows.append((str(layer), *cells, _pcc(state.worst_pcc), f"{state.mean_error:.1e}"))
    return rows


def _ladder_rows(found: Fidelity) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for kind in MODULES:
        modules = [m for m in found.modules if m.kind == kind]
        worst = min(modules, key=lambda m: m.scores.worst_pcc)
        mean = sum(m.scores.mean_pcc for m in modules) / len(modules)
        error = sum(m.scores.mean_error for m in modules) / len(modules)
        where = "" if worst.layer is None else f"layer {worst.layer}"
        rows.append((kind, _pcc(worst.scores.worst_pcc), _pcc(mean), f"{error:.1e}", where))
    model = found.logits.scores
    rows.append(("model", _pcc(model.worst_pcc), _pcc(model.mean_pcc), f"{model.mean_error:.1e}", ""))
    return rows


def _logits_row(name: str, summary: dict[str, Any]) -> tuple[str, ...]:
    return (
        name, _pcc(summary["worst_pcc"]), _pcc(summary["mean_pcc"]), _number(summary["mean_kl"], ".1e"),
        _number(summary["max_kl"], ".1e"), _number(summary["top1"], ".2%"), _number(summary["top5"], ".2%"),
        _number(summary["perplexity"], ".3f"), _number(summary["truth_perplexity"], ".3f"),
    )  # fmt: skip


def _pcc(value: float | None) -> str:
    """Six digits, or how far from 1 where that would be all nines."""
    if value is None or math.isnan(value):
        return "NaN"
    return f"{value:.6f}" if 1 - value > 5e-6 else "1" if value >= 1 else f"1 - {1 - value:.0e}"


def _number(value: float | None, kind: str) -> str:
    return "NaN" if value is None else format(value, kind)


def _greedy_line(greedy: Greedy) -> str:
    line = f"greedy: {greedy.num_same} of {len(greedy.divergences)} answers of {greedy.num_new} tokens are the truth's"
    if greedy.first is None:
        return line
    gap = greedy.gaps[greedy.divergences.index(greedy.first)]
    assert gap is not None
    return f"{line}; the first to differ does so at token {greedy.first}, where the truth's lead is {gap:.2g} in logits"


def _print_verdict(found: Fidelity, activations: str | None) -> None:
    for check in found.checks:
        print(f"{'holds' if check.ok else 'MISSED'}  {check.name}: {_pcc(check.value)}, at least {_pcc(check.limit)}")
    if found.ok:
        print("verdict  faithful" if found.checks else "verdict  none: no limit was stated for these weights")
        return
    places = [f"{m.kind} of layer {m.layer} ({m.name})" if m.layer is not None else m.kind for m in found.suspects]
    if places:
        more = f" and {len(places) - 4} more" if len(places) > 4 else ""
        print(f"verdict  NOT faithful; off by themselves: {', '.join(places[:4])}{more}")
    else:
        print("verdict  NOT faithful; no module is off by itself, the error adds up over the layers")
        if activations == "int8":
            print("closer   compile with --recipe accuracy, or at least --activations int16; prompts take longer")
