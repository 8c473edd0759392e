"""LLM and the text side of generation: prompts in, text out, as a whole and in pieces."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_models import circling_logits, history_engine, load_model, with_draft, write_checkpoint

from qwench.checkpoint.tokenizer_files import byte_level_tokenizer
from qwench.errors import CheckpointError, ConfigError, NumericalError, RequestError
from qwench.llm import LLM
from qwench.runtime.sampling.sampling_params import SamplingParams
from qwench.text.generation import Delta, GenerationDefaults
from qwench.text.tokenizer import Tokenizer

GREEDY = SamplingParams(max_tokens=16, temperature=0.0)
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>a"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """256 bytes, then three special tokens: 256 <|endoftext|>, 257 <|im_start|>, 258 <|im_end|>."""
    from tokenizers import models, pre_tokenizers

    folder = tmp_path_factory.mktemp("tokenizer")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = models.BPE({character: i for i, character in enumerate(alphabet)}, [])
    byte_level_tokenizer(model).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>", "chat_template": TEMPLATE}))
    return Tokenizer(folder)


def make(tokenizer: Tokenizer | None, **options: Any) -> LLM:
    return LLM.from_engine(history_engine(vocab_size=300, **options), tokenizer)


def ascii_only(tokenizer: Tokenizer) -> dict[int, float]:
    """A bias towards printable characters, so that texts are easy to cut."""
    return {i: 50.0 for i in range(256) if 0x20 <= tokenizer.token_bytes(i)[0] < 0x7F}


def test_one_and_many_prompts(tokenizer: Tokenizer) -> None:
    llm = make(tokenizer)
    [one] = llm.generate("Hello", GREEDY)
    assert one.prompt == "Hello"
    assert one.prompt_token_ids == tokenizer.encode("Hello")
    [answer] = one.outputs
    assert len(answer.token_ids) == 16
    assert answer.text == tokenizer.decode(answer.token_ids)
    assert (answer.finish_reason, answer.stop_reason, answer.logprobs, answer.error) == ("length", None, None, None)
    again = llm.generate(["x", "Hello", one.prompt_token_ids, np.array(one.prompt_token_ids)], GREEDY)
    assert [output.outputs[0].token_ids for output in again[1:]] == [answer.token_ids] * 3
    assert [output.prompt for output in again] == ["x", "Hello", None, None]
    [tokens_only] = llm.generate(one.prompt_token_ids, GREEDY)
    assert tokens_only.outputs[0].token_ids == answer.token_ids
    assert llm.generate([], GREEDY) == []


def test_params_for_each(tokenizer: Tokenizer) -> None:
    llm = make(tokenizer)
    outputs = llm.generate(["a", "b"], [GREEDY, dataclasses.replace(GREEDY, max_tokens=3, n=2, logprobs=1)])
    assert [[len(answer.token_ids) for answer in output.outputs] for output in outputs] == [[16], [3, 3]]
    first = outputs[1].outputs[0]
    assert first.cumulative_logprob == pytest.approx(sum(entry.logprob for entry in first.logprobs))
    assert [answer.index for answer in outputs[1].outputs] == [0, 1]
    with pytest.raises(RequestError, match="2 prompts but 1"):
        llm.generate(["a", "b"], [GREEDY])


def test_stream_is_the_whole_in_pieces(tokenizer: Tokenizer) -> None:
    llm = make(tokenizer)
    params = SamplingParams(max_tokens=30, seed=1, n=2, stop=["\x7f", "e"])
    whole = llm.generate(["ab", "cd"], params)
    deltas = list(llm.generate(["ab", "cd"], params, stream=True))
    for i, output in enumerate(whole):
        for answer in output.outputs:
            mine = [d for d in deltas if (d.prompt_index, d.index) == (i, answer.index)]
            assert "".join(d.text for d in mine) == answer.text
            assert [t for d in mine for t in d.token_ids] == answer.token_ids
            assert [d.finish_reason for d in mine] == [None] * (len(mine) - 1) + [answer.finish_reason]
            assert mine[-1].stop_reason == answer.stop_reason
    assert sorted(d.prompt_index for d in deltas if d.output is not None) == [0, 1]


def test_stop_string(tokenizer: Tokenizer) -> None:
    llm = make(tokenizer)
    free = dataclasses.replace(GREEDY, max_tokens=40, logit_bias=ascii_only(tokenizer))
    text = llm.generate("Hello", free)[0].outputs[0].text
    assert len(text) == 40
    stop = text[9:12]
    first = text.index(stop)
    [answer] = llm.generate("Hello", dataclasses.replace(free, stop=stop))[0].outputs
    assert (answer.text, answer.finish_reason, answer.stop_reason) == (text[:first], "stop", stop)
    assert len(answer.token_ids) == first + 3
    assert answer.timings.finished_s is not None
    kept = dataclasses.replace(free, stop=[stop, "never there"], include_stop_str_in_output=True)
    assert llm.generate("Hello", kept)[0].outputs[0].text == text[: first + 3]
    late = dataclasses.replace(free, stop=text[3], min_tokens=20)
    assert len(llm.generate("Hello", late)[0].outputs[0].token_ids) > 20
    last = dataclasses.replace(free, stop=text[first : first + 3], max_tokens=first + 3)
    assert llm.generate("Hello", last)[0].outputs[0].finish_reason == "stop"
    half = dataclasses.replace(free, stop=text[-1] + "never", include_stop_str_in_output=False)
    assert llm.generate("Hello", half)[0].outputs[0].text == text
    assert llm.engine.scheduler.pool.num_free == 64
    assert llm.metrics.finished_abort == 0


@pytest.mark.parametrize(("logprobs", "draft"), [(None, False), (1, False), (None, True)])
def test_guesses_change_no_text(tokenizer: Tokenizer, logprobs: int | None, draft: bool) -> None:
    """Stop strings inside a run of accepted guesses end the answer at the same character, and what the same step gave
    beyond them is dropped, also where the engine ended the sample there itself."""
    llm = guesser = make(tokenizer, logits_of=circling_logits, max_step_tokens=64)
    if draft:
        guesser = make(tokenizer, logits_of=circling_logits, max_step_tokens=64)
        with_draft(guesser.engine, circling_logits)
    letters = {i: 60.0 for i in range(256) if tokenizer.token_bytes(i) in (b"a", b"b", b"c", b"d", b"e")}
    base = SamplingParams(max_tokens=120, temperature=0.3, seed=3, logit_bias=letters, logprobs=logprobs, n=2)
    accepted = 0
    for prompt in ("abcab", "abcdeabcde", "ed")[: 1 if draft else 3]:
        text = llm.generate(prompt, base)[0].outputs[0].text
        for stop in ((), text[-4:], (text[70:75], "e"), text[-1], (text[40:46], text[60:63])):
            for max_tokens in (120, len(text) - 1):
                plain = dataclasses.replace(base, stop=stop, max_tokens=max_tokens)
                guessing = plain if draft else dataclasses.replace(plain, prompt_lookup_num_tokens=16)
                expected = llm.generate([prompt, prompt + "e"], plain)
                before = guesser.metrics.accepted_tokens
                deltas = list(guesser.generate([prompt, prompt + "e"], guessing, stream=True))
                accepted += guesser.metrics.accepted_tokens - before
                assert not guesser.engine.has_unfinished() and not guesser.text_engine.has_unfinished()
                for i, output in enumerate(expected):
                    for answer in output.outputs:
                        mine = [d for d in deltas if (d.prompt_index, d.index) == (i, answer.index)]
                        assert "".join(d.text for d in mine) == answer.text
                        assert [t for d in mine for t in d.token_ids] == answer.token_ids
                        assert (mine[-1].finish_reason, mine[-1].stop_reason) == (
                            answer.finish_reason, answer.stop_reason
                        )  # fmt: skip
                    [whole] = [d.output for d in deltas if d.prompt_index == i and d.output is not None]
                    ours, theirs = ([dataclasses.replace(a, timings=None) for a in o.outputs] for o in (whole, output))
                    assert ours == theirs
                    assert all(a.timings.finished_s >= a.timings.first_token_s for a in whole.outputs)
    assert accepted > 150
    assert llm.metrics.finished_abort == 0


@pytest.mark.parametrize("beyond", range(1, 12))
def test_a_stop_string_and_the_length_in_one_step(tokenizer: Tokenizer, beyond: int) -> None:
    """A model that says the alphabet to "g" over and over: the stop string comes first, so it is what ended it."""
    circle = tokenizer.encode("abcdefg")

    def logits_of(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
        following = circle[(circle.index(tokens[-1]) + 1) % 7]
        return np.eye(1, vocab_size, following, dtype=np.float32)[0]

    llm = make(tokenizer, logits_of=logits_of)
    params = SamplingParams(
        temperature=0, stop="def", min_tokens=40, max_tokens=48 + beyond, prompt_lookup_num_tokens=20
    )  # fmt: skip
    for n in (1, 3):
        [output] = llm.generate("abcdefg" * 3, dataclasses.replace(params, n=n))
        for answer in output.outputs:
            assert answer.text == "abcdefg" * 6 + "abc"
            assert (len(answer.token_ids), answer.finish_reason, answer.stop_reason) == (48, "stop", "def")
            assert answer.timings.finished_s is not None
    assert not llm.engine.has_unfinished()


def test_stop_tokens_are_not_shown(tokenizer: Tokenizer) -> None:
    llm = make(tokenizer)
    tokens = llm.generate("Hello", GREEDY)[0].outputs[0].token_ids
    stop = next(t for t in tokens[4:] if t < 256)
    params = dataclasses.replace(GREEDY, stop_token_ids=[stop])
    [answer] = llm.generate("Hello", params)[0].outputs
    assert answer.token_ids == tokens[: tokens.index(stop) + 1]
    assert answer.text == tokenizer.decode(answer.token_ids[:-1])
    assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)
    [shown] = llm.generate("Hello", dataclasses.replace(params, include_stop_str_in_output=True))[0].outputs
    assert shown.text == tokenizer.decode(answer.token_ids)


def test_text_of_an_answer_that_ends_inside_a_character(tokenizer: Tokenizer) -> None:
    llm = make(tokenizer)
    lead = next(i for i in range(256) if tokenizer.token_bytes(i) == b"\xf0")
    pushed = dataclasses.replace(GREEDY, logit_bias={lead: 100.0}, max_tokens=2)
    deltas = list(llm.generate("x", pushed, stream=True))
    assert "".join(d.text for d in deltas) == "\ufffd\ufffd" == deltas[-1].output.outputs[0].text


def test_chat(tokenizer: Tokenizer) -> None:
    llm = make(tokenizer, eos_token_ids=(258,))
    messages = [{"role": "user", "content": "Hi"}]
    [output] = llm.chat(messages, GREEDY)
    assert output.prompt == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>a"
    assert output.prompt_token_ids[0] == 257
    assert len(llm.chat([messages, messages], GREEDY)) == 2
    for token, reason in ((258, None), (257, 257)):  # the model's own end; one that opens another turn
        params = dataclasses.replace(GREEDY, logit_bias={token: 100.0})
        [answer] = llm.chat(messages, params)[0].outputs
        assert (answer.token_ids, answer.text, answer.finish_reason) == ([token], "", "stop")
        assert answer.stop_reason == reason
        free = dataclasses.replace(params, ignore_eos=True)
        assert len(llm.chat(messages, free)[0].outputs[0].token_ids) == 16
    assert isinstance(next(llm.chat(messages, GREEDY, stream=True)), Delta)
    with pytest.raises(RequestError):
        llm.chat([], GREEDY)


def test_nothing_starts_when_one_prompt_is_impossible(tokenizer: Tokenizer) -> None:
    llm = make(tokenizer)
    for prompts in (["fine", "x" * 300], ["fine", ""], ["fine", [301]], ["fine", 3], ["fine", None]):
        with pytest.raises(RequestError):
            llm.generate(prompts, GREEDY)
        with pytest.raises(RequestError):
            llm.generate(prompts, GREEDY, stream=True)
    assert not llm.engine.has_unfinished()
    assert llm.metrics.steps == 0


def test_a_dropped_stream_frees_its_blocks(tokenizer: Tokenizer) -> None:
    llm = make(tokenizer)
    stream = llm.generate(["a", "b"], GREEDY, stream=True)
    next(stream)
    assert llm.engine.has_unfinished()
    stream.close()
    assert not llm.engine.has_unfinished() and not llm.text_engine.has_unfinished()
    assert llm.engine.scheduler.pool.num_free == 64


def test_two_streams_at_once(tokenizer: Tokenizer) -> None:
    llm = make(tokenizer)
    expected = [llm.generate(p, GREEDY)[0].outputs[0].text for p in ("first", "second")]
    one, two = (llm.generate(p, GREEDY, stream=True) for p in ("first", "second"))
    texts = ["", ""]
    for a, b in zip(one, two, strict=True):
        texts[0] += a.text
        texts[1] += b.text
    assert texts == expected


def test_a_failing_request(tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    llm = make(tokenizer)
    step = llm.engine.executor.step

    def poisoned(batch: Any, logits: Any, hidden: Any, maxima: Any) -> Any:
        result = step(batch, logits, hidden, maxima)
        result[-1, 0] = maxima[len(result) - 1, 0] = np.nan
        return result

    llm.engine.executor.step = poisoned
    with pytest.raises(NumericalError):
        llm.generate("alone", GREEDY)
    with caplog.at_level(logging.ERROR):
        good, bad = llm.generate(["good", "bad!"], dataclasses.replace(GREEDY, max_tokens=1))
    assert good.outputs[0].finish_reason == "length"
    assert bad.outputs[0].finish_reason == "error"
    assert isinstance(bad.outputs[0].error, NumericalError)
    assert "NaN" in caplog.text or "nan" in caplog.text


def test_without_a_tokenizer() -> None:
    llm = make(None)
    [answer] = llm.generate([1, 2, 3], GREEDY)[0].outputs
    assert len(answer.token_ids) == 16 and answer.text == ""
    for call in (lambda: llm.generate("text"), lambda: llm.chat([{"role": "user", "content": "x"}])):
        with pytest.raises(RequestError, match="no tokenizer"):
            call()
    with pytest.raises(RequestError, match="stop strings"):
        llm.generate([1], SamplingParams(stop="x"))


def test_defaults_come_from_the_generation_config(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "generation_config.json"
    assert GenerationDefaults.from_folder(tmp_path).params.temperature == 0
    sampling = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
    path.write_text(json.dumps({"do_sample": True, "eos_token_id": [258, 256], "pad_token_id": 1} | sampling))
    defaults = GenerationDefaults.from_folder(tmp_path)
    assert defaults.eos_token_ids == (258, 256)
    assert defaults.params == SamplingParams(**sampling)
    path.write_text(json.dumps({"eos_token_id": 258} | sampling))
    defaults = GenerationDefaults.from_folder(tmp_path)
    assert defaults.eos_token_ids == (258,)
    assert defaults.params == SamplingParams(temperature=0.0, repetition_penalty=1.05)
    llm = LLM.from_engine(history_engine(vocab_size=300, max_seq_len=64), tokenizer, defaults)
    assert len(llm.generate("x")[0].outputs[0].token_ids) == 63
    for bad in ("[]", "{", '{"eos_token_id": "x"}', '{"do_sample": true, "temperature": -1}'):
        path.write_text(bad)
        with pytest.raises(CheckpointError, match="generation_config"):
            GenerationDefaults.from_folder(tmp_path)


def test_progress_passes_everything_on(tokenizer: Tokenizer) -> None:
    llm = make(tokenizer)
    assert llm.generate(["a", "b"], GREEDY, progress=True)[1].outputs[0].finish_reason == "length"


def test_a_real_model_and_close(tokenizer: Tokenizer) -> None:
    with LLM.from_engine(load_model(), tokenizer) as llm:
        outputs = llm.generate(["Hello there", "Hello"], GREEDY)
        assert [len(output.outputs[0].token_ids) for output in outputs] == [16, 16]
    llm.close()


def test_from_a_checkpoint_folder(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opened by path: compiled with the options given, the same tokens as the model packed in memory."""
    monkeypatch.setenv("QWENCH_CACHE", str(tmp_path / "cache"))
    folder = write_checkpoint(tmp_path)
    tokenizer_files = Path(tokenizer.folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tokenizer_files / name).read_bytes())
    (folder / "generation_config.json").write_text('{"eos_token_id": [256]}')
    options = {"target": "reference", "max_seq_len": 128, "batch_size": 4, "kvcache_block_size": 16}
    with LLM(folder, memory=1 << 30, num_threads=1, **options) as llm:
        assert llm.engine.eos_token_ids == {256, 258}
        assert llm.engine.max_seq_len == 128
        assert llm.engine.cache.num_blocks == 32
        assert llm.load_s > 0
        ours = llm.generate("Hello", dataclasses.replace(GREEDY, ignore_eos=True))[0].outputs[0].token_ids
        chatted = llm.chat([{"role": "user", "content": "Hi"}], SamplingParams(max_tokens=4))
        assert chatted[0].prompt.startswith("<|im_start|>user")
    with LLM.from_engine(load_model(max_seq_len=128), tokenizer) as packed:
        theirs = packed.generate("Hello", GREEDY)[0].outputs[0].token_ids
    assert ours == theirs
    with pytest.raises(ConfigError, match="wieghts"):
        LLM(folder, wieghts="int8")
