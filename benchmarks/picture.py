"""A report as a picture: above, where each op of qwench sits under the machine's roof; below, bars against the peers.

Needs matplotlib, and nothing else of this folder's measuring; draws what an earlier run saved as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.plan import FORMATS, OURS

COLOURS = {
    "qwench": "#d9480f", "llama.cpp": "#5c7cfa", "ik_llama.cpp": "#364fc7", "openvino": "#20a4a4",
    "transformers": "#adb5bd",
}  # fmt: skip
INK, FAINT, ROOF = "#212529", "#dee2e6", "#495057"
# Op of a layer, as the Program names it -> what a reader calls it, and its colour.
OPS = {
    "q_rope": ("q, k, v", "#1971c2"),
    "attention": ("attention", "#d9480f"),
    "attn_add": ("attention output", "#2f9e44"),
    "silu_mul": ("gate and up", "#9c36b5"),
    "mlp_add": ("down", "#e8a500"),
    "lm_head": ("output head", "#0b7285"),
}
OTHER_COLOUR = "#868e96"
BAR_COLUMNS = 4
BAR_WIDTH = 0.18  # of a format's place, for up to five contenders
STYLE = {
    "font.family": "sans-serif", "font.size": 9.5, "axes.edgecolor": ROOF, "axes.labelcolor": INK, "text.color": INK,
    "xtick.color": ROOF, "ytick.color": ROOF, "axes.titlesize": 10.5, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "legend.frameon": False, "figure.dpi": 150, "savefig.facecolor": "white",
}  # fmt: skip


@dataclass(frozen=True)
class OpPoint:
    """All ops of one name. intensity: operations a byte from memory; gops: 10^9 operations/s; share: of the time."""

    name: str
    intensity: float
    gops: float
    share: float


def draw(report: dict[str, Any], path: Path) -> None:
    """Writes the picture in the kind that `path` ends with. Raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    profiles, rows = report["profiles"], _bar_rows(report)
    num_bar_lines = -(-len(rows) // BAR_COLUMNS)
    heights = [4.4] * bool(profiles) + [3.1 * num_bar_lines] * bool(rows)
    with pyplot.rc_context(STYLE):
        figure = pyplot.figure(figsize=(15, sum(heights) + 0.8), layout="constrained")
        parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False, hspace=0.05)[:, 0]
        if profiles:
            _draw_roofs(parts[0], profiles)
        if rows:
            _draw_bars(parts[-1], report, rows, num_bar_lines)
        figure.suptitle(_title(report), x=0.008, ha="left", fontsize=12.5, fontweight="bold")
        figure.savefig(path)
        pyplot.close(figure)


def _title(report: dict[str, Any]) -> str:
    machine, model = report["machine"], report["model"]
    extras = [name for name in machine["instructions"] if name not in ("avx2", "avx512f")]
    return (
        f"{model['num_weights'] / 1e9:.2f} billion weights on {machine['threads']} threads of {machine['cpu']} "
        f"({', '.join(extras) or 'AVX2'})"
    )


# ---- the roof


def op_points(step: dict[str, Any]) -> Iterator[OpPoint]:
    """step: `prefill` or `decode` of a profile. Layers are summed; ops without arithmetic are left out."""
    sums: dict[str, list[float]] = {}
    for op in step["ops"]:
        name = re.sub(r"^layers\.\d+\.", "", op["name"])
        values = (op["operations"], op["weight_bytes"] + op["kv_bytes"], op["seconds"])
        sums[name] = [a + b for a, b in zip(sums.get(name, [0.0] * 3), values)]
    total_s = sum(seconds for _, _, seconds in sums.values())
    for name, (operations, num_bytes, seconds) in sums.items():
        if operations and num_bytes and seconds:
            yield OpPoint(name, operations / num_bytes, operations / seconds / 1e9, seconds / total_s)


def _draw_roofs(part: Any, profiles: dict[str, Any]) -> None:
    axes = part.subplots(1, len(profiles), sharey=True, squeeze=False)[0]
    names: dict[str, None] = {}
    for axis, (format_name, profile) in zip(axes, profiles.items()):
        names |= dict.fromkeys(_draw_roof(axis, profile))
        axis.set_title(f"where qwench's ops sit, {FORMATS[format_name].title} weights")
    axes[0].set_ylabel("GOPS")
    from matplotlib.lines import Line2D

    def dot(colour: str, face: str, label: str) -> Any:
        return Line2D([], [], ls="", marker="o", ms=8, mec=colour, mfc=face, mew=1.6, label=label)

    handles = [dot(_op_look(name)[1], _op_look(name)[1], _op_look(name)[0]) for name in names]
    handles += [dot(ROOF, ROOF, "reading the prompt"), dot(ROOF, "white", "generating, one user")]
    part.legend(handles=handles, loc="outside right center", title="larger: more of the time")


def _op_look(name: str) -> tuple[str, str]:
    return OPS.get(name, (name.replace("_", " "), OTHER_COLOUR))


def _draw_roof(axis: Any, profile: dict[str, Any]) -> list[str]:
    """Memory's slope, arithmetic's flat roofs, and the ops under them; returns the ops' names."""
    ceiling = profile["ceiling"]
    points = {kind: list(op_points(profile[kind])) for kind in ("prefill", "decode")}
    everything = [point for some in points.values() for point in some]
    left = min([0.5, *(p.intensity / 2 for p in everything)])
    right = max([2000.0, *(p.intensity * 3 for p in everything)])
    axis.set(xscale="log", yscale="log", xlim=(left, right), xlabel="operations a byte read from memory")
    for kind, peak in ceiling["peak_gops"].items():
        axis.plot([peak / ceiling["read_gbps"], right], [peak, peak], color=ROOF, lw=1.4)
        axis.text(right, peak * 1.05, f"{kind} {peak:.0f} GOPS ", ha="right", va="bottom", color=ROOF)
    highest = max(ceiling["peak_gops"].values())
    knee = highest / ceiling["read_gbps"]
    axis.plot([left, knee], [left * ceiling["read_gbps"], highest], color=ROOF, lw=1.4)
    axis.text(knee * 0.8, highest, f"memory {ceiling['read_gbps']:.0f} GB/s", ha="right", va="center", color=ROOF)
    axis.grid(True, which="major", color=FAINT, lw=0.6)
    for kind, some in points.items():
        for p in some:
            colour = _op_look(p.name)[1]
            axis.scatter(
                p.intensity, p.gops, s=35 + 500 * p.share, color=colour if kind == "prefill" else "white",
                edgecolors=colour, linewidths=1.6, alpha=0.9, zorder=3,
            )  # fmt: skip
    return [p.name for p in everything]


# ---- the bars


def _bar_rows(report: dict[str, Any]) -> list[str]:
    """The rows that have figures, in the report's order."""
    return list(dict.fromkeys(figure["row"] for figure in report["figures"]))


def _draw_bars(part: Any, report: dict[str, Any], rows: list[str], num_lines: int) -> None:
    """A panel for each row; the legend takes the last place if it is free."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    names = [n for n in report["plan"]["contenders"] if any(f["contender"] == n for f in report["figures"])]
    axes = part.subplots(num_lines, BAR_COLUMNS, squeeze=False).ravel()
    num_formats = len(report["plan"]["formats"])
    for axis, row in zip(axes, rows):
        _draw_row(axis, [f for f in report["figures"] if f["row"] == row], num_formats)
    handles: list[Any] = [Patch(color=COLOURS[name], label=report["versions"][name]) for name in names]
    handles.append(Line2D([], [], color=INK, lw=1.6, label="ceiling for qwench"))
    options = {"handles": handles, "title": "(2.0x): qwench is ahead twofold", "alignment": "left"}
    for axis in axes[len(rows) :]:
        axis.set_axis_off()
    if len(axes) > len(rows):
        axes[-1].legend(loc="center left", fontsize=10, **options)
    else:
        part.legend(loc="outside right center", **options)


def _draw_row(axis: Any, figures: list[dict[str, Any]], num_formats: int) -> None:
    """One panel: a group of bars for each format; a peer's bar says how far qwench is ahead."""
    formats = list(dict.fromkeys(f["format"] for f in figures))
    highest = max(max(f["median"], _drawn_ceiling(f)) for f in figures)
    for place, format_name in enumerate(formats):
        group = [f for f in figures if f["format"] == format_name]
        for i, figure in enumerate(group):
            at = place + (i - (len(group) - 1) / 2) * BAR_WIDTH
            axis.bar(at, figure["median"], BAR_WIDTH * 0.9, color=COLOURS[figure["contender"]])
            ahead = figure["qwench_ahead"]
            label = f" {_short(figure['median'])}" + ("" if ahead is None else f"  ({ahead:.1f}x)")
            limit, top = _drawn_ceiling(figure), figure["median"]
            if limit:
                axis.plot([at - BAR_WIDTH * 0.45, at + BAR_WIDTH * 0.45], [limit, limit], color=INK, lw=1.8)
                top = limit if top < limit < top + 0.2 * highest else top  # beside the line, not through it
            axis.text(at, top + 0.01 * highest, label, ha="center", va="bottom", rotation=90, fontsize=8)
    some = figures[0]
    axis.set_title(some["title"])
    axis.set_xticks(range(len(formats)), [FORMATS[name].title for name in formats])
    axis.set_ylabel(f"{some['unit']}, {'less' if some['less_is_better'] else 'more'} is better")
    axis.set_ylim(0, highest * 1.4)
    middle = (len(formats) - 1) / 2
    axis.set_xlim(middle - num_formats / 2, middle + num_formats / 2)  # bars as wide in every panel
    axis.tick_params(axis="x", length=0)
    axis.grid(True, axis="y", color=FAINT, lw=0.6)


def _drawn_ceiling(figure: dict[str, Any]) -> float:
    """Only qwench's, and only of speeds; 0.0 if there is none to draw."""
    is_drawn = figure["contender"] == OURS and not figure["less_is_better"] and figure["ceiling"]
    return float(figure["ceiling"]) if is_drawn else 0.0


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 20 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"
