"""Everything in this folder is slow: `make test-slow` runs it, `make test` doesn't."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model, compiled; for tests of the server."""
    pytest.importorskip("fastapi", reason='the server needs pip install "qwench[serve]"')
    pytest.importorskip("httpx", reason="the tests of the server need httpx")
    from server_process import tiny_model

    return tiny_model(tmp_path_factory.mktemp("artifact") / "tiny")
