"""Profiler of real work: seconds by op, as the executor's own clock counts them.

Made by `loading.py` for `activate_profiler`; read as `profiler` of the Engine and of QwenchForCausalLM.
`evaluate/profile.py` instead runs a workload of its own and compares it with the machine's limits.
"""

from __future__ import annotations

import re

from qwench.targets.target import TimedExecutor


class Profiler:
    """Counts from when it was made, or from `reset`. `print` it for a table, the slowest ops first."""

    def __init__(self, executor: TimedExecutor) -> None:
        self._executor = executor
        self.reset()

    def reset(self) -> None:
        """Starts again from zero."""
        self._before = self._totals()

    def seconds(self) -> dict[str, float]:
        """Op name -> seconds, in the Program's order; an op that was merged into another's work has 0."""
        return {name: total - self._before[name] for name, total in self._totals().items()}

    def _totals(self) -> dict[str, float]:
        return {name: sum(phases.values()) for name, phases in self._executor.op_seconds().items()}

    def __str__(self) -> str:
        """A line per op, those of all layers together: milliseconds, share, name."""
        groups: dict[str, float] = {}
        for name, seconds in self.seconds().items():
            group = re.sub(r"^layers\.\d+\.", "layers.*.", name)
            groups[group] = groups.get(group, 0.0) + seconds
        whole = sum(groups.values()) or 1.0
        lines = [
            f"{seconds * 1e3:10.2f} ms {seconds / whole:6.1%}  {name}"
            for name, seconds in sorted(groups.items(), key=lambda item: -item[1])
            if seconds
        ]
        return "\n".join(lines) or "no step has run"
