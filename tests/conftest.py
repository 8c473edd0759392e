"""What holds for all tests: what Hypothesis draws, certificates, and which skips a complete run may have.

Hypothesis draws the same in every run, so that a test fails for what was changed, not for what was drawn; `make fuzz`
draws anew. With CI=true a run fails for a skip that isn't in ALLOWED_SKIPS: what the tests need is installed there.
"""

from __future__ import annotations

import functools
import os
import ssl
from collections.abc import Iterator

import pytest
from hypothesis import settings

# Before anything imports Triton, in whose interpreter the cuda target is tested. tests/gpu: TRITON_INTERPRET=0.
os.environ.setdefault("TRITON_INTERPRET", "1")
# Of several workers each has a processor: more threads of torch and BLAS than that would only wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("same", derandomize=True)
settings.register_profile("anew", derandomize=False, print_blob=True)
settings.load_profile("same")


@pytest.fixture(scope="session", autouse=True)
def _certificates_are_read_once() -> Iterator[None]:
    """httpx reads all that there are for each client and each `httpx.get`, also of http, and so do the clients that are
    built on it: 40 ms of processor, or 100 on a busy machine, where a request takes 3."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", functools.cache(ssl.create_default_context))
        yield


# How the reasons begin, each with why no installation mends it.
ALLOWED_SKIPS = (
    "needs ../shared/",  # files that are too large for the repository, or not ours to give
    "needs systemd",  # not in a container
    "needs at least",  # of disk or memory: the machine is too small
    "this processor",  # lacks the instructions
    "other processes hold the processors",  # so that speed says nothing
    "a sanitizer needs",
    "this release of sentence-transformers",  # lacks what newer ones have
    "this release of transformers",  # answers wrong itself, or otherwise than today's
    "needs a tool:",  # or a client, which `make tools` installs in an environment of its own
    "needs a GPU",  # a run on a machine without one is complete, too
    "needs a peer:",  # of benchmarks/peers.txt, which `make bench-peers` installs in an environment of its own
)


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    where = report.longrepr
    return str(where[2] if isinstance(where, tuple) else where).removeprefix("Skipped: ")


def _unforeseen(config: pytest.Config) -> list[str]:
    """Why tests skipped that never should where CI=true; empty elsewhere."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") != "true" or reporter is None:
        return []
    reasons = {_reason(report) for report in reporter.stats.get("skipped", [])}
    return sorted(reason for reason in reasons if not reason.startswith(ALLOWED_SKIPS))


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if _unforeseen(session.config) and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for reason in _unforeseen(config):
        terminalreporter.write_line(f"FAILED for a skip that ALLOWED_SKIPS in tests/conftest.py doesn't name: {reason}")
