"""What `qwench bench-serve` measured, as text. Called by `cli/commands/bench_serve.py`."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwench.evaluate.load.figures import Figures, Goals, Spread
    from qwench.evaluate.load.plan import LoadPlan


def who(plan: LoadPlan) -> str:
    """Who asks, and when."""
    if plan.users is not None:
        return f"{plan.users} users, each asks again when answered"
    return "all requests at once" if plan.rate == math.inf else f"{plan.rate:g} requests a second"


def print_report(url: str, plan: LoadPlan, result: Figures) -> None:
    """Figures of the whole, what users waited for, and why some got no answer."""
    from qwench.cli.terminal.table import print_table

    print(f"server   {url}")
    print(f"load     {result.num_requests} requests, {who(plan)}; took {result.duration_s:.1f} s")
    print(f"answers  {result.num_answered}, {result.requests_per_s:.2f} a second")
    print(f"tokens   {result.answer_tokens_per_s:.1f} a second in answers, {result.prompt_tokens_per_s:.1f} in prompts")
    if goals := _goals(result.goals):
        print(f"goodput  {result.goodput_per_s:.2f} answers a second with {goals}")
    print()
    rows = [
        ("time to first token", result.ttft_s),
        ("time per token after it", result.tpot_s),
        ("whole answer", result.answer_s),
        ("sent later than due", result.late_s),
    ]
    headings = ("ms", "mean", "p50", "p90", "p99", "most")
    print_table(headings, [(name, *_cells(spread)) for name, spread in rows], right=headings[1:])
    for reason, count in result.errors.items():
        print(f"{count} without an answer: {reason}", file=sys.stderr)


def _goals(goals: Goals) -> str:
    parts = [] if goals.ttft_s is None else [f"the first token within {goals.ttft_s:g} s"]
    parts += [] if goals.tpot_s is None else [f"no more than {goals.tpot_s:g} s per token"]
    return " and ".join(parts)


def _cells(spread: Spread) -> list[str]:
    values = (spread.mean, spread.p50, spread.p90, spread.p99, spread.most)
    return ["-" if value is None else f"{value * 1e3:.1f}" for value in values]
