"""A verification as a picture: the error of each layer, alone and with what came before, and the PCC of each token.

Needs matplotlib, which is imported when a picture is drawn. Called by `qwench verify --plot`.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from qwench.errors import ConfigError
from qwench.evaluate.fidelity import Fidelity, Scores

INK, FAINT, OURS, OTHER, LIMIT = "#212529", "#dee2e6", "#d9480f", "#868e96", "#c92a2a"
COLOURS = {"norm": "#adb5bd", "attention": "#1971c2", "mlp": "#2f9e44", "layer": "#9c36b5"}
STYLE = {
    "font.family": "sans-serif", "font.size": 9.5, "axes.labelcolor": INK, "text.color": INK, "axes.titlesize": 10.5,
    "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False,
    "axes.axisbelow": True, "legend.frameon": False, "figure.dpi": 150, "savefig.facecolor": "white",
}  # fmt: skip
LEAST = 1e-16  # what a logarithmic axis shows of an exact result: 1 - PCC in float64 can't be told from 0 below


def check_can_draw(path: Path) -> None:
    """Raises ConfigError when there is no matplotlib, or it can't write such a file: before the work, not after."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError('--plot needs matplotlib: pip install "qwench[bench]"')
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"--plot {path}: the name must end with .png, .svg or .pdf")


def draw(fidelity: Fidelity, title: str, path: Path) -> None:
    """Writes the picture in the kind that `path` ends with."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        figure, (layers, tokens) = pyplot.subplots(1, 2, figsize=(13, 4.6), layout="constrained")
        _draw_layers(layers, fidelity)
        _draw_tokens(tokens, fidelity)
        figure.suptitle(title, x=0.008, ha="left", fontsize=12, fontweight="bold")
        figure.savefig(path)
        pyplot.close(figure)


def _draw_layers(axes: Any, fidelity: Fidelity) -> None:
    axes.set_title("Relative error by layer (mean over tokens)")
    numbers = range(len(fidelity.states))
    axes.plot(numbers, [_error(s) for s in fidelity.states], color=OURS, marker="o", ms=3.5, label="after this layer")
    for kind, colour in COLOURS.items():
        of_kind: dict[int, list[float]] = {}
        for module in fidelity.modules:
            if module.kind == kind and module.layer is not None:
                of_kind.setdefault(module.layer, []).append(_error(module.scores))
        worst = [max(of_kind[i]) for i in numbers]
        axes.plot(numbers, worst, color=colour, marker=".", lw=1, label=f"{kind} alone")
    axes.set_yscale("log")
    axes.set_xlabel("layer")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="y", color=FAINT)
    axes.legend(loc="best", fontsize=8.5)


def _draw_tokens(axes: Any, fidelity: Fidelity) -> None:
    axes.set_title("Logits of each token: 1 - PCC, prompts side by side")
    for name, other in fidelity.others.items():
        axes.plot(_distance(other.scores), ".", ms=2, color=OTHER, label=name)
    axes.plot(_distance(fidelity.logits.scores), ".", ms=2, color=OURS, label="qwench")
    if fidelity.limits.min_pcc is not None:
        limit = fidelity.limits.min_pcc
        axes.axhline(1 - limit, color=LIMIT, lw=1, ls="--", label=f"limit, PCC {limit}")
    edges = np.cumsum([length for _, length in fidelity.prompts])[:-1]
    for edge in edges:
        axes.axvline(edge - 0.5, color=FAINT, lw=0.6)
    axes.set_yscale("log")
    axes.set_xlabel("token")
    axes.legend(loc="best", fontsize=8.5, markerscale=4)


def _error(scores: Scores) -> float:
    return max(scores.mean_error, LEAST)


def _distance(scores: Scores) -> Any:
    return np.maximum(1 - scores.pcc, LEAST)
