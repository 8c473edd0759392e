"""The tables of `qwench bench --profile`: one row per kind of op, all layers together.

Knows only the report, the plain data that `--json` prints; called by bench_report.py.
"""

from __future__ import annotations

import re
from typing import Any

HEADINGS = ("op", "kind", "ms", "time", "MB", "GB/s", "Gop", "GOPS", "bound", "ceiling", "made of")
NUMBERS = ("ms", "time", "MB", "GB/s", "Gop", "GOPS", "ceiling")


def print_profile(report: dict[str, Any]) -> None:
    """Two tables. time: share of the step; ceiling: the least time over the measured one."""
    from qwench.cli.terminal.table import print_table

    for name in ("prefill", "decode"):
        step = report[name]
        title = f"prefill, {step['num_steps']} steps" if step["num_steps"] > 1 else f"{name}, one step"
        print(f"\n{title}, {step['num_tokens']} tokens, {step['num_tokens'] / step['seconds']:.1f} tokens/s")
        print_table(HEADINGS, _rows(step), right=NUMBERS)


def _rows(step: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row per op with its layers added up, what passes between ops, and the whole."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for op in step["ops"]:
        groups.setdefault(re.sub(r"^layers\.\d+\.", "layers.*.", op["name"]), []).append(op)
    rows = [_row(name, ops, step["seconds"]) for name, ops in groups.items()]
    between_s = step["between_s"]
    rows.append(("between ops", "", f"{between_s * 1e3:.2f}", f"{between_s / step['seconds']:.1%}", *[""] * 7))
    total = _row("all", step["ops"], step["seconds"], step["seconds"])
    return [*rows, (total[0], "", *total[2:8], "", f"{step['share']:.0%}", "")]


def _row(name: str, ops: list[dict[str, Any]], step_s: float, seconds: float | None = None) -> tuple[str, ...]:
    def total(field: str) -> float:
        return float(sum(op[field] for op in ops))

    seconds = total("seconds") if seconds is None else seconds
    if not seconds:  # merged into another op's phases
        return (name, ops[0]["kind"], "0", "", *[""] * 7)
    operations = total("operations")
    return (
        name.replace("*", f"0-{len(ops) - 1}"),
        ops[0]["kind"],
        f"{seconds * 1e3:.2f}",
        f"{seconds / step_s:.1%}",
        f"{total('bytes') / 1e6:.2f}",
        f"{total('bytes') / seconds / 1e9:.1f}",
        f"{operations / 1e9:.2f}" if operations else "",
        f"{operations / seconds / 1e9:.0f} {ops[0]['arithmetic'] or ''}".rstrip() if operations else "",
        ops[0]["bound"],
        f"{total('bound_s') / seconds:.0%}",
        _phases(ops, seconds),
    )


def _phases(ops: list[dict[str, Any]], seconds: float) -> str:
    """How much of the op each of its phases is, where it has several."""
    spent: dict[str, float] = {}
    for op in ops:
        for phase, phase_s in op["phases"].items():
            spent[phase] = spent.get(phase, 0.0) + phase_s
    return ", ".join(f"{phase} {s / seconds:.0%}" for phase, s in spent.items()) if len(spent) > 1 else ""
