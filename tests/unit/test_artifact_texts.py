"""What says how to use a compiled model may be saved anew: edited, or by transformers; damage stays an error."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwench.artifact.artifact import open_artifact
from qwench.compiler.compiler import compile_checkpoint
from qwench.config import QwenchConfig
from qwench.errors import ArtifactError
from qwench.text.tokenizer import Tokenizer

MODEL = Path(__file__).parents[2] / "models" / "qwench-tiny"
TEXT = "Café, 12 °C!\n<|im_start|>user\n  who are you"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("texts") / "compiled"
    return compile_checkpoint(MODEL, out, QwenchConfig(weights="int4")).path


@pytest.fixture
def copy(compiled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(compiled, tmp_path / "copy"))


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_a_tokenizer_saved_by_transformers(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    transformers = pytest.importorskip("transformers", reason="saves the tokenizer of this test")
    before = Tokenizer(copy)
    transformers.AutoTokenizer.from_pretrained(copy).save_pretrained(copy)
    with caplog.at_level(logging.WARNING, "qwench"):
        open_artifact(copy)
    assert "tokenizer_config.json" in caplog.text and "saved anew after the model was compiled" in caplog.text
    after = Tokenizer(copy)
    assert after.encode(TEXT) == before.encode(TEXT)
    assert (after.chat_template, after.special_tokens) == (before.chat_template, before.special_tokens)
    with pytest.raises(ArtifactError, match="tokenizer"):
        open_artifact(copy, verify="full")


def test_edited_texts_are_used_as_they_are(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(copy / "tokenizer_config.json", lambda data: data.update(chat_template="{{ messages[0].content }}"))
    edit(copy / "generation_config.json", lambda data: data.update(temperature=0.25))
    edit(copy / "tokenizer.json", lambda data: data.update(padding=None, truncation=None))
    with caplog.at_level(logging.WARNING, "qwench"):
        open_artifact(copy)
    assert len(caplog.records) >= 2
    assert Tokenizer(copy).chat_template == "{{ messages[0].content }}"


def rename_token(data: dict[str, Any]) -> None:
    vocab = data["model"]["vocab"]
    vocab["Ġzzzz"] = vocab.pop(next(token for token, number in vocab.items() if number == 1500))


@pytest.mark.parametrize(
    "change",
    [
        rename_token,
        lambda data: data["model"]["merges"].reverse(),
        lambda data: data.pop("model"),
        lambda data: data.update(model=[]),
    ],
)
def test_another_tokenizer_is_an_error(copy: Path, change: Callable[[Any], Any]) -> None:
    edit(copy / "tokenizer.json", change)
    with pytest.raises(ArtifactError, match=r"tokenizer\.json .*compile it again"):
        open_artifact(copy)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b"\xff\xfe{}", b"[" * 100_000])
def test_damage_is_an_error(copy: Path, name: str, damage: bytes) -> None:
    (copy / name).write_bytes(damage)
    with pytest.raises(ArtifactError, match=f"{name}.*compile it again"):
        open_artifact(copy)
    (copy / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing"):
        open_artifact(copy)
