"""Thoughts token by token: budgets that close them, and grammars that begin behind them, whatever the model writes."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_models import history_engine, history_logits, with_draft

from qwench.checkpoint.tokenizer_files import byte_level_tokenizer
from qwench.errors import RequestError
from qwench.llm import LLM
from qwench.runtime.sampling.sampling_params import SamplingParams
from qwench.runtime.structured_output.grammar import Grammar
from qwench.text.generation import CompletionOutput
from qwench.text.tokenizer import Tokenizer

VOCAB_SIZE = 300
THOUGHT, ANSWER = "One.\nTwo.", "Hi there."
PROMPTS = {"inside": "x<|im_start|>assistant\n<think>\n", "before": "x<|im_start|>assistant\n"}


def make_tokenizer(folder: Path, tags: str) -> Tokenizer:
    """A token for each byte, one for >{, those of turns, and unless tags are "text" those of a thought's."""
    from tokenizers import AddedToken, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {text: i for i, text in enumerate([*alphabet, ">{"])}
    library = byte_level_tokenizer(models.BPE(vocab, [(">", "{")]))
    library.add_special_tokens([AddedToken(token, special=True) for token in ("<|im_start|>", "<|im_end|>")])
    if tags != "text":
        is_special = tags == "special tokens"
        library.add_tokens([AddedToken(tag, special=is_special, normalized=False) for tag in ("<think>", "</think>")])
    folder.mkdir()
    library.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    return Tokenizer(folder)


@pytest.fixture(scope="module", params=["text", "tokens", "special tokens"])
def tokenizer(request: Any, tmp_path_factory: Any) -> Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizers") / "tokenizer", request.param)


def scripted(tokenizer: Tokenizer, thought: str, answer: str, *, opens: bool) -> LLM:
    """A model that would write this thought, its tag, two line breaks and this answer, whatever is put between."""

    @cache
    def next_text(written: str) -> str:
        said, tag, rest = written.partition("</think>")
        script = answer if tag else f"<think>\n{thought}</think>" if opens else f"{thought}</think>"
        at = len(rest) - 2 if tag else len(said)
        return "\n" if at < 0 else script[at:] or "<|im_end|>"

    def logits_of(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
        text = tokenizer.decode(tokens.tolist(), skip_special_tokens=False)
        written = text.rpartition("assistant\n" if opens else "<think>\n")[2]
        logits = np.zeros(vocab_size, np.float32)
        logits[tokenizer.encode(next_text(written), add_special_tokens=False)[0]] = 9
        return logits

    eos = (tokenizer.eos_token_id,)
    return LLM.from_engine(history_engine(vocab_size=VOCAB_SIZE, eos_token_ids=eos, logits_of=logits_of), tokenizer)


def ask(llm: LLM, place: str, **fields: Any) -> CompletionOutput:
    params = SamplingParams(**{"temperature": 0, "thinks": True, "max_tokens": 100, **fields})
    *deltas, last = llm.generate(PROMPTS[place], params, stream=True)
    assert last.output is not None
    output = last.output.outputs[0]
    assert "".join(delta.text for delta in [*deltas, last]) == output.text
    assert "".join(delta.reasoning or "" for delta in [*deltas, last]) == output.reasoning
    places = [i for i, delta in enumerate([*deltas, last]) if delta.token_ids and delta.reasoning is not None]
    assert output.num_reasoning_tokens == (places[-1] + 1 if places else 0)
    return output


@pytest.mark.parametrize("place", PROMPTS)
def test_a_thought_is_given_apart(tokenizer: Tokenizer, place: str) -> None:
    output = ask(scripted(tokenizer, THOUGHT, ANSWER, opens=place == "before"), place)
    assert (output.reasoning, output.text, output.finish_reason) == (THOUGHT, ANSWER, "stop")
    written = tokenizer.decode(output.token_ids[: output.num_reasoning_tokens], skip_special_tokens=False)
    assert written.removeprefix("<think>").endswith(f"{THOUGHT}</think>")
    llm = scripted(tokenizer, THOUGHT, ANSWER, opens=place == "before")
    plain = ask(llm, place, thinks=False, skip_special_tokens=False)
    assert plain.token_ids == output.token_ids and "</think>" in plain.text and plain.reasoning == ""


@pytest.mark.parametrize("place", PROMPTS)
@pytest.mark.parametrize("budget", range(len(THOUGHT) + 3))
def test_a_budget_closes_the_thought_with_its_own_tag(tokenizer: Tokenizer, place: str, budget: int) -> None:
    llm = scripted(tokenizer, THOUGHT, ANSWER, opens=place == "before")
    output = ask(llm, place, max_thinking_tokens=budget, logprobs=0)
    shown = (f"\n{THOUGHT}" if place == "before" else THOUGHT)[:budget]
    assert (output.reasoning, output.text, output.finish_reason) == (shown.strip("\n"), ANSWER, "stop")
    written = tokenizer.decode(output.token_ids, skip_special_tokens=False)
    opened = "<think>" if place == "before" else ""
    is_cut = budget <= len(THOUGHT) + (place == "before")
    line_break = "" if not is_cut or shown.endswith("\n") else "\n"
    assert written == f"{opened}{shown}{line_break}</think>\n\n{ANSWER}<|im_end|>"
    assert output.logprobs is not None and len(output.logprobs) == len(output.token_ids)


def test_an_answer_that_ends_while_it_thinks(tokenizer: Tokenizer) -> None:
    llm = scripted(tokenizer, THOUGHT, ANSWER, opens=False)
    output = ask(llm, "inside", max_tokens=5)
    assert (output.reasoning, output.text, output.finish_reason) == (THOUGHT[:5], "", "length")
    ended = ask(scripted(tokenizer, "Hm<|im_end|>", "", opens=False), "inside")
    assert (ended.reasoning, ended.text, ended.finish_reason) == ("Hm", "", "stop")


def test_stop_strings_are_for_the_answer(tokenizer: Tokenizer) -> None:
    llm = scripted(tokenizer, "Hi there.", ANSWER, opens=False)
    output = ask(llm, "inside", stop=["there"])
    assert (output.reasoning, output.text, output.stop_reason) == ("Hi there.", "Hi ", "there")


@pytest.mark.parametrize("place", PROMPTS)
def test_a_grammar_begins_behind_the_thought(tokenizer: Tokenizer, place: str) -> None:
    pytest.importorskip("llguidance", reason='grammars need pip install "qwench[structured]"')
    llm = scripted(tokenizer, THOUGHT, ANSWER, opens=place == "before")
    grammar = Grammar("regex", r"Hi [a-z]+\.")
    if place == "before" and tokenizer.token_id("<think>") is None:
        assert ask(llm, place, grammar=grammar).reasoning == ""  # the grammar refuses "<" before it could be a tag
        return
    for budget in (None, 4):
        output = ask(llm, place, grammar=grammar, max_thinking_tokens=budget)
        thought = (f"\n{THOUGHT}" if place == "before" else THOUGHT)[:budget]
        assert (output.reasoning, output.text, output.finish_reason) == (thought.strip("\n"), ANSWER, "stop")
    # Where the grammar asks for line breaks itself, they are the answer's.
    assert ask(llm, place, grammar=Grammar("regex", r"\n\n\nHi")).text == "\n\n\nHi"


def test_no_answer_with_a_grammar_ends_within_its_thought(tokenizer: Tokenizer) -> None:
    pytest.importorskip("llguidance", reason='grammars need pip install "qwench[structured]"')
    llm = scripted(tokenizer, "Hm<|im_end|>", "yes", opens=False)
    output = ask(llm, "inside", grammar=Grammar.choice(["yes", "no"]))
    assert (output.reasoning, output.text, output.finish_reason) == ("Hm", "yes", "stop")


def test_a_token_that_holds_the_end_of_the_tag_and_more(tokenizer: Tokenizer) -> None:
    """With a grammar it is parted, so that the grammar sees the whole answer."""
    pytest.importorskip("llguidance", reason='grammars need pip install "qwench[structured]"')
    if tokenizer.token_id("</think>") is not None:
        return
    merged = tokenizer.token_id(">{")

    def logits_of(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
        text = tokenizer.decode(tokens.tolist(), skip_special_tokens=False)
        logits = np.zeros(vocab_size, np.float32)
        begun = len(text.rpartition("\n")[2])
        logits[merged if begun == 7 else tokenizer.encode("</think"[begun:] or "1")[0]] = 9
        return logits

    llm = LLM.from_engine(history_engine(vocab_size=VOCAB_SIZE, logits_of=logits_of), tokenizer)
    schema = Grammar("json_schema", '{"type": "object", "maxProperties": 0}')
    assert json.loads(ask(llm, "inside", grammar=schema).text) == {}
    assert ask(llm, "inside", max_tokens=10).text.startswith("{")


def random_llm(tokenizer: Tokenizer, **options: Any) -> LLM:
    """Whatever its history, any token is likely, and those of tags and ends more so."""
    likely = [i for name in ("</think>", "<think>", "<|im_end|>") if (i := tokenizer.token_id(name)) is not None]
    opening = tokenizer.encode("<think>", add_special_tokens=False)[0]

    def logits_of(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
        logits = history_logits(tokens, vocab_size)
        logits[likely] += 4
        logits[opening] = logits.max() - 1
        return logits

    eos = (tokenizer.eos_token_id,)
    engine = history_engine(vocab_size=VOCAB_SIZE, eos_token_ids=eos, logits_of=logits_of, **options)
    return LLM.from_engine(engine, tokenizer)


@pytest.mark.parametrize("place", PROMPTS)
def test_whatever_the_model_writes_the_answer_obeys(tokenizer: Tokenizer, place: str) -> None:
    pytest.importorskip("llguidance", reason='grammars need pip install "qwench[structured]"')
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "</think>", "\n\n"]}}, "required": ["a"],
              "additionalProperties": False}  # fmt: skip
    params = SamplingParams(
        grammar=Grammar("json_schema", json.dumps(schema)), thinks=True, max_thinking_tokens=12, n=40, seed=5,
        max_tokens=120,
    )  # fmt: skip
    outputs = random_llm(tokenizer).generate(PROMPTS[place], params)[0].outputs
    finished = [output for output in outputs if output.finish_reason == "stop"]
    num_thoughts = sum(output.num_reasoning_tokens > 0 for output in finished)
    assert len(finished) > 30 and (num_thoughts > 5 or (place, tokenizer.token_id("<think>")) == ("before", None))
    for output in finished:
        assert json.loads(output.text)["a"] in ("x", "</think>", "\n\n")
        assert output.num_reasoning_tokens <= 12 + 1 + len("\n</think>")


@pytest.mark.parametrize("place", PROMPTS)
def test_neither_guesses_nor_a_full_cache_change_anything(tokenizer: Tokenizer, place: str) -> None:
    params = SamplingParams(thinks=True, max_thinking_tokens=9, n=6, seed=2, max_tokens=60, temperature=1.2)
    expected = [output.token_ids for output in random_llm(tokenizer).generate(PROMPTS[place], params)[0].outputs]
    small = random_llm(tokenizer, num_blocks=10, block_size=8, max_seq_len=80)
    others = small.generate(PROMPTS[place], params)[0].outputs
    assert [output.token_ids for output in others] == expected
    assert small.metrics.preemptions > 0
    for num_guesses in (3, 16):
        guessing = (
            random_llm(tokenizer)
            .generate(PROMPTS[place], SamplingParams(**{**vars(params), "prompt_lookup_num_tokens": num_guesses}))[0]
            .outputs
        )
        assert [output.token_ids for output in guessing] == expected
    drafting = random_llm(tokenizer)
    with_draft(drafting.engine, drafting.engine.executor.logits_of)
    assert [output.token_ids for output in drafting.generate(PROMPTS[place], params)[0].outputs] == expected
    assert drafting.metrics.accepted_tokens > 20


def test_the_engine_alone_knows_no_thoughts() -> None:
    with pytest.raises(RequestError, match="thoughts"):
        history_engine().add_request([1], SamplingParams(thinks=True))
    with pytest.raises(RequestError, match="tags"):
        LLM.from_engine(history_engine()).generate([1], SamplingParams(thinks=True))
    with pytest.raises(RequestError, match="max_thinking_tokens"):
        SamplingParams(max_thinking_tokens=-1)
