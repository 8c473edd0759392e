"""One contender in a process of its own: `python -m benchmarks.worker NAME [PROGRAM]`, JSON lines on stdin and stdout.

Runs under the contender's interpreter, which may have neither qwench nor any other contender, so it imports nothing but
the standard library before it is asked to. A request names a verb of this module; the reply has the verb's result, or
`error`, with `is_absent` when a library isn't installed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from benchmarks.contenders import make_contender
from benchmarks.contenders.contender import Contender, LibraryContender, LogitsContender


def describe(contender: Contender) -> dict[str, Any]:
    return {
        "version": contender.version(),
        "python": sys.version.split()[0],
        "formats": contender.formats,
        "serves_many": contender.serves_many,
    }


def compile(
    contender: Contender, checkpoint: str, format_name: str, out: str, max_positions: int, threads: int, target: str
) -> dict[str, Any]:
    """work_s: without the start of the process and imports that describe() did not need."""
    contender.target = target
    start = time.perf_counter()
    compiled = contender.compile(Path(checkpoint), format_name, Path(out), max_positions, threads)
    return {"work_s": time.perf_counter() - start - compiled.trial_s, "compiled": dataclasses.asdict(compiled)}


def load(contender: Contender, path: str, threads: int, positions: int, users: int) -> dict[str, Any]:
    start = time.perf_counter()
    contender.load(Path(path), threads, positions, users)
    return {"load_s": time.perf_counter() - start}


def answer(contender: Contender, prompts: list[list[int]], num_generate: int) -> dict[str, Any]:
    return dataclasses.asdict(contender.answer(prompts, num_generate))


def logits(contender: Contender, token_ids: list[int], first: int, out: str) -> dict[str, Any]:
    """Writes the logits of a sequence from row `first` on to `out`, as .npy: too many for a line of JSON."""
    import numpy as np

    assert isinstance(contender, LogitsContender)
    rows = contender.logits(token_ids, first)
    np.save(out, rows)
    return {"num_rows": len(rows)}


def memory(contender: Contender) -> dict[str, Any]:
    """Of this process: resident and peak bytes, and its share where pages are shared; and the KV cache taken.

    Nothing of a binary, whose process has ended.
    """
    if not isinstance(contender, LibraryContender):
        return {}
    status = _kilobytes("/proc/self/status")
    rollup = _kilobytes("/proc/self/smaps_rollup")
    return {
        "rss_bytes": status["VmRSS"] * 1024,
        "peak_rss_bytes": status["VmHWM"] * 1024,
        "pss_bytes": rollup.get("Pss", 0) * 1024,
        "cache_bytes": contender.cache_bytes(),
    }


def _kilobytes(path: str) -> dict[str, int]:
    lines = Path(path).read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith(" kB")}


def _one_line(error: Exception) -> str:
    """Its kind and the beginning of its first line; the log has all of it."""
    first, *_ = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {first[:200]}"


VERBS = {verb.__name__: verb for verb in (describe, compile, load, answer, logits, memory)}


def main() -> int:
    """Serves requests until stdin ends."""
    replies = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # what libraries print goes to the log, not between the replies
    contender = make_contender(*sys.argv[1:])
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = VERBS[request.pop("verb")](contender, **request)
        except Exception as error:
            traceback.print_exc()
            reply = {"error": _one_line(error), "is_absent": isinstance(error, ImportError)}
        print(json.dumps(reply), file=replies)
    return 0


if __name__ == "__main__":
    sys.exit(main())
