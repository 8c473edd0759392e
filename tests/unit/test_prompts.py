"""The prompts of a verification: those that are shipped, a user's file, random ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwench.errors import RequestError
from qwench.evaluate.prompts import load_prompts, num_tokens
from qwench.text.tokenizer import Tokenizer

DEFAULT_MODEL = Path(__file__).parents[2] / "models" / "qwench-tiny"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(DEFAULT_MODEL)


def test_the_shipped_prompts_are_enough(tokenizer: Tokenizer) -> None:
    prompts = load_prompts(None, tokenizer, 2048, max_tokens=512)
    assert len(prompts) >= 20
    assert num_tokens(prompts) >= 1000
    assert len({p.name for p in prompts}) == len(prompts)
    kinds = {p.name.split(":")[0] for p in prompts}
    assert {"general", "code", "chat", "Chinese"} <= kinds


def test_prompts_are_cut(tokenizer: Tokenizer) -> None:
    assert max(len(p.token_ids) for p in load_prompts(None, tokenizer, 2048, max_tokens=10)) == 10


def test_random_prompts_depend_on_the_seed_alone() -> None:
    first, again, other = (load_prompts(None, None, 300, 64, seed) for seed in (1, 1, 2))
    assert len(first) >= 20
    assert num_tokens(first) >= 1000
    assert all((a.token_ids == b.token_ids).all() for a, b in zip(first, again))
    assert any((a.token_ids != b.token_ids).any() for a, b in zip(first, other))
    assert all(p.token_ids.min() >= 0 and p.token_ids.max() < 300 for p in first)


def test_every_form_of_a_file(tmp_path: Path, tokenizer: Tokenizer) -> None:
    file = tmp_path / "prompts.json"
    entries = ["Once upon a time", {"prompt": "The old house", "max_length": 9}, {"name": "third", "prompt": "A fox"}]
    file.write_text(json.dumps([*entries, [5, 6, 7]]))
    prompts = load_prompts(file, tokenizer, 2048, 512)
    assert [p.name for p in prompts] == ["prompt 0", "prompt 1", "third", "prompt 3"]
    assert prompts[1].token_ids.tolist() == tokenizer.encode("The old house")
    assert prompts[3].token_ids.tolist() == [5, 6, 7]
    lines = tmp_path / "prompts.txt"
    lines.write_text("Once upon a time\n\nThe old house\n")
    assert [p.token_ids.tolist() for p in load_prompts(lines, tokenizer, 2048, 512)] == [
        tokenizer.encode("Once upon a time"),
        tokenizer.encode("The old house"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ('{"a": 1}', "holds a dict"),
        ("[1]", "prompt 0"),
        ('[{"text": "a"}]', "prompt 0"),
        ("[[1, 2048]]", "outside 0 to 2047"),
        ("[]", "no prompt"),
        ("[[1]]", "two tokens or more"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, tokenizer: Tokenizer, content: str, message: str) -> None:
    file = tmp_path / "prompts.json"
    file.write_text(content)
    with pytest.raises(RequestError, match=message):
        load_prompts(file, tokenizer, 2048, 512)


def test_text_needs_a_tokenizer(tmp_path: Path) -> None:
    file = tmp_path / "prompts.json"
    file.write_text('["text"]')
    with pytest.raises(RequestError, match="no tokenizer"):
        load_prompts(file, None, 300, 512)
    file.write_text("[[1, 2, 3]]")
    assert load_prompts(file, None, 300, 512)[0].token_ids.tolist() == [1, 2, 3]
