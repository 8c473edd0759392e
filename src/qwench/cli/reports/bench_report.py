"""What `qwench bench` measured, as text. Knows only the report, the plain data that `--json` prints; called by
`cli/commands/bench.py`."""

from __future__ import annotations

from typing import Any


def print_report(report: dict[str, Any]) -> None:
    """What was measured on what, and the table of whole steps or of ops."""
    from qwench.cli.reports.profile_report import print_profile

    machine, ceiling, work = report["machine"], report["ceiling"], report["workload"]
    print(f"machine  {machine['cpu']}, {machine['threads']} threads, target {machine['target']}")
    print(f"kernels  {report['kernel_choice']}")
    peaks = ", ".join(f"{gops:.0f} GOPS {kind}" for kind, gops in ceiling["peak_gops"].items())
    cached = f", from caches {ceiling['cached_gbps']:.1f}" if "cached_gbps" in ceiling else ""
    print(f"ceiling  memory read {ceiling['read_gbps']:.1f} GB/s{cached}, arithmetic {peaks}")
    print(f"model    {report['model']} ({report['weights']}, {report['bytes_per_weight']:.3f} bytes a weight)")
    users = f"{work['num_users']} users, each " if work["num_users"] > 1 else ""
    print(
        f"work     {users}prompt {work['num_prompt']}, answer {work['num_generate']} tokens; median of "
        f"{work['num_rounds']} rounds, ceiling measured in each"
    )
    if "rounds" in report:
        _print_throughput(report)
    else:
        print_profile(report)


def _print_throughput(report: dict[str, Any]) -> None:
    from qwench.cli.terminal.table import print_table

    ceiling = report["ceiling"]
    rows = [
        (name, f"{report[key]:.1f}", f"{ceiling[key]:.1f}", f"{ceiling[ratio]:.0%}")
        for name, key, ratio in (
            ("prefill", "prefill_tokens_per_s", "prefill_ratio"),
            ("decode", "decode_tokens_per_s", "decode_ratio"),
        )
    ]
    print()
    print_table(("", "tokens/s", "ceiling", "ratio"), rows, right=("tokens/s", "ceiling", "ratio"))
    if draft := report.get("draft"):
        print(
            f"\ndraft    {draft['accepted_tokens']} of {draft['drafted_tokens']} guesses right, {draft['draft_steps']} "
            f"steps of {1e3 * draft['draft_s'] / max(draft['draft_steps'], 1):.2f} ms beside {draft['steps']} of the "
            "model; the ceiling is that of the model alone"
        )
