"""What `qwench eval` measured, as a table. Knows only the report, the plain data that `--json` prints; called by
`cli/commands/eval.py`."""

from __future__ import annotations

from typing import Any


def print_report(report: dict[str, Any]) -> None:
    """Perplexities and agreement side by side, and whether the limit holds."""
    from qwench.cli.terminal.table import print_table

    print(
        f"text   {report['text']}, {report['num_tokens']} tokens; window {report['window']}, stride {report['stride']}"
    )
    if report["book"]:
        print(f"book   512 tokens of prompt, 511 predictions compared with those of {report['book']}")
    print()
    headings = ("", "bits a weight", "perplexity", "to fp32", "top-1", "top-5")
    truth = report["rows"][1]["perplexity"] if len(report["rows"]) > 1 else None
    print_table(headings, [_cells(row, truth) for row in report["rows"]], right=headings[1:])
    if report["max_loss_percent"] is not None:
        word = "holds" if report["ok"] else "MISSED"
        limit, loss = report["max_loss_percent"], report["loss_percent"]
        print(f"\n{word}  perplexity worse by {loss:.2f} %, at most {limit:g} %")


def _cells(row: dict[str, Any], truth: float | None) -> tuple[str, ...]:
    def cell(value: float | None, kind: str) -> str:
        return "" if value is None else format(value, kind)

    change = None if truth is None else row["perplexity"] / truth - 1
    return (
        row["name"], cell(row["bits_per_weight"], ".2f"), cell(row["perplexity"], ".4f"), cell(change, "+.3%"),
        cell(row["top1"], ".2%"), cell(row["top5"], ".2%"),
    )  # fmt: skip
