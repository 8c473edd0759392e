"""A run under load as a picture: how long users waited, and how many answers were open meanwhile.

Needs matplotlib, which is imported when a picture is drawn. Called by `qwench bench-serve --plot`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qwench.evaluate.load.client import Outcome
from qwench.evaluate.load.figures import Goals, tpot, ttft

INK, FAINT, OURS, LIMIT = "#212529", "#dee2e6", "#d9480f", "#c92a2a"


def draw(outcomes: Sequence[Outcome], goals: Goals, title: str, path: Path) -> None:
    """Writes the picture in the kind that `path` ends with."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    good = [outcome for outcome in outcomes if outcome.error is None]
    figure, (first, per_token, batch) = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    _distribution(first, "Time to first token", [ttft(o) for o in good], goals.ttft_s)
    _distribution(per_token, "Time per token", [v for o in good if (v := tpot(o)) is not None], goals.tpot_s)
    _open_answers(batch, outcomes)
    figure.suptitle(title, x=0.008, ha="left", fontsize=12, fontweight="bold", color=INK)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _distribution(axes: Any, title: str, values: list[float], goal: float | None) -> None:
    """The share of answers that took no longer than x."""
    axes.set_title(title, loc="left", fontsize=10)
    ordered = np.sort(values) * 1e3
    axes.step(ordered, np.arange(1, len(ordered) + 1) / max(len(ordered), 1), where="post", color=OURS)
    if goal is not None:
        axes.axvline(goal * 1e3, color=LIMIT, lw=1, ls="--", label="goal")
        axes.legend(frameon=False)
    axes.set_xlabel("ms")
    axes.set_ylabel("share of answers")
    axes.set_ylim(0, 1.02)
    axes.grid(color=FAINT)


def _open_answers(axes: Any, outcomes: Sequence[Outcome]) -> None:
    axes.set_title("Answers sent and not over", loc="left", fontsize=10)
    changes = sorted([(o.sent_s, 1) for o in outcomes] + [(o.end_s, -1) for o in outcomes])
    axes.step([at for at, _ in changes], np.cumsum([step for _, step in changes]), where="post", color=OURS)
    axes.set_xlabel("s")
    axes.set_ylim(bottom=0)
    axes.grid(color=FAINT)
