"""Thoughts kept apart from answers, for every way to cut the text, and where a prompt leaves off."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qwench.checkpoint.tokenizer_files import byte_level_tokenizer
from qwench.runtime.sampling.sampling_params import SamplingParams
from qwench.runtime.thoughts import Place
from qwench.text.chat import render_chat
from qwench.text.thoughts import ThoughtSplitter, has_thoughts, tag_ids, thoughts_after
from qwench.text.tokenizer import Tokenizer

# What the three kinds do with a thought: open it for the model, or not; leave out earlier ones, or keep some.
TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and m.reasoning_content and KEEPS %}"
    "<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content.split('</think>')[-1].lstrip('\n') }}"
    "<|im_end|>\n{% endfor %}"
)
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\nOPEN{% endif %}"
OPENS = TURNS.replace("KEEPS", "false") + PROMPT.replace("OPEN", "<think>\n")
MAY_OPEN = TURNS.replace("KEEPS", "loop.last") + PROMPT.replace(
    "OPEN", "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
PLAIN = "{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}"


def read(pieces: Iterable[str], place: Place) -> tuple[str, str]:
    splitter = ThoughtSplitter(place)
    parts = [*map(splitter.push, pieces), splitter.flush()]
    return "".join(thought for thought, _ in parts), "".join(answer for _, answer in parts)


@pytest.mark.parametrize(
    ("place", "text", "thought", "answer"),
    [
        ("inside", "Hm.\n</think>\n\nHello.", "Hm.", "Hello."), ("inside", "Hm.</think>Hello.", "Hm.", "Hello."),
        ("inside", "\n\n</think>\n\n", "", ""), ("inside", "Hm.\n", "Hm.\n", ""), ("inside", "Hm</thi", "Hm</thi", ""),
        ("inside", "a</think>\n\n\n b</think>", "a", "\n b</think>"), ("inside", "<think>a</think>b", "<think>a", "b"),
        ("before", "<think>\nHm.\n</think>\n\nHello.", "Hm.", "Hello."), ("before", "\n<think>a</think>", "a", ""),
        ("before", "Hello.\n<think>x</think>", "", "Hello.\n<think>x</think>"), ("before", "\n <thi", "", "\n <thi"),
        ("before", "<think>", "", ""), ("before", "<thinking>", "", "<thinking>"), ("before", "", "", ""),
        ("after", "\n\nHello.</think>", "", "\n\nHello.</think>"), ("after", "<think>", "", "<think>"),
    ],
)  # fmt: skip
def test_thought_and_answer(place: Place, text: str, thought: str, answer: str) -> None:
    assert read([text], place) == read(text, place) == (thought, answer)
    for a, b in itertools.combinations_with_replacement(range(len(text) + 1), 2):
        assert read([text[:a], text[a:b], text[b:]], place) == (thought, answer)


FRAGMENTS = ["<think>", "</think>", "\n", " ", "<", "</thi", "Hm", "nk>", "é"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=9).map("".join), st.sampled_from(["before", "inside"]), st.data())
@example("\n\n</think", "inside", None)
def test_cut_anywhere_it_is_the_same(text: str, place: Place, data: st.DataObject | None) -> None:
    whole = read([text], place)
    assert read(text, place) == whole
    if data is not None:
        at = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
        assert read([text[a:b] for a, b in itertools.pairwise([0, *at, len(text)])], place) == whole
    assert "</think>" not in whole[0]


def test_a_thought_is_shown_as_it_comes() -> None:
    splitter = ThoughtSplitter("inside")
    assert [splitter.push(text) for text in ("Let me", " see.\n", "Yes.\n</", "think>\n", "\nIt is", " so.")] == [
        ("Let me", ""), (" see.", ""), ("\nYes.", ""), ("", ""), ("", "It is"), ("", " so."),
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["\n" * 50_000, "</think" * 7000, " " * 50_000 + "<think>"])
def test_time_is_linear_in_the_text(text: str) -> None:
    start = time.process_time()
    for place in ("before", "inside"):
        read([text[i : i + 7] for i in range(0, len(text), 7)], place)
    assert time.process_time() - start < 10


MakeTokenizer = Callable[..., Tokenizer]


@pytest.fixture
def make_tokenizer(tmp_path: Path) -> MakeTokenizer:
    """A token for each byte, for the marks of a turn, and if wanted for the tags of a thought."""
    from tokenizers import AddedToken, models, pre_tokenizers

    def make(template: str, *, has_tags: bool = True, are_special: bool = False) -> Tokenizer:
        library = byte_level_tokenizer(
            models.BPE({c: i for i, c in enumerate(pre_tokenizers.ByteLevel.alphabet())}, [])
        )
        library.add_special_tokens([AddedToken(token, special=True) for token in ("<|im_start|>", "<|im_end|>")])
        if has_tags:
            library.add_tokens([AddedToken(tag, special=are_special) for tag in ("<think>", "</think>")])
        library.save(str(tmp_path / "tokenizer.json"))
        config = {"eos_token": "<|im_end|>", "chat_template": template}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        return Tokenizer(tmp_path)

    return make


@pytest.mark.parametrize("has_tags", [True, False])
@pytest.mark.parametrize(
    ("template", "variables", "beginning", "place"),
    [
        (OPENS, {}, "", "inside"), (OPENS, {}, "Hm.", "inside"), (OPENS, {}, "Hm.</think>\n\nHel", "after"),
        (MAY_OPEN, {}, "", "before"), (MAY_OPEN, {"enable_thinking": False}, "", "after"),
        (MAY_OPEN, {}, "<think>\nHm", "inside"),
    ],
)  # fmt: skip
def test_where_a_prompt_leaves_off(
    make_tokenizer: MakeTokenizer,
    template: str,
    variables: dict[str, bool],
    beginning: str,
    place: Place,
    has_tags: bool,
) -> None:
    """beginning: of the answer, where the caller gives it. What users write of tags is no thought."""
    tokenizer = make_tokenizer(template, has_tags=has_tags)
    messages = [{"role": "user", "content": "What do <think> and </think> and <think> do?"}]
    prompt = render_chat(tokenizer, messages, **variables) + beginning
    ids = tokenizer.encode(prompt, add_special_tokens=False)
    assert thoughts_after(tokenizer, ids, SamplingParams()).place == place


def test_models_that_think(make_tokenizer: MakeTokenizer) -> None:
    assert [has_thoughts(make_tokenizer(template)) for template in (OPENS, MAY_OPEN, PLAIN)] == [True, True, False]
    assert len(tag_ids(make_tokenizer(OPENS))) == 2 and tag_ids(make_tokenizer(OPENS, has_tags=False)) == frozenset()


def test_earlier_thoughts_come_back_as_the_template_wants_them(make_tokenizer: MakeTokenizer) -> None:
    turn = {"role": "assistant", "content": "Hello.", "reasoning_content": "Hm."}
    messages = [{"role": "user", "content": "Hi"}, turn]
    shown = [
        render_chat(make_tokenizer(template), messages, add_generation_prompt=False) for template in (OPENS, MAY_OPEN)
    ]
    assert "Hm." not in shown[0] and shown[1].endswith("assistant\n<think>\nHm.\n</think>\n\nHello.<|im_end|>\n")
