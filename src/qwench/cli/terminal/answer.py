"""One answer, streamed: from a prompt or a conversation to its deltas, with its timings. Used by run and chat."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

from qwench.cli.options.sampling import DEFAULT_MAX_NEW_TOKENS

if TYPE_CHECKING:
    from qwench.llm import LLM
    from qwench.runtime.sampling.sampling_params import SamplingParams
    from qwench.text.chat import Message
    from qwench.text.generation import CompletionOutput, Delta, RequestOutput


def stream_prompt(llm: LLM, text: str, params: SamplingParams, max_new_tokens: int | None) -> Generator[Delta]:
    """The continuation of `text` as it is. Raises RequestError."""
    yield from _stream(llm, llm.text_engine.encode(text), params, max_new_tokens)


def stream_chat(
    llm: LLM, messages: Sequence[Message], params: SamplingParams, max_new_tokens: int | None
) -> Generator[Delta]:
    """The next turn of a conversation, through the model's chat template. Raises RequestError."""
    from qwench.text.chat import render_chat
    from qwench.text.generation import chat_params

    assert llm.tokenizer is not None
    ids = llm.tokenizer.encode(render_chat(llm.tokenizer, messages), add_special_tokens=False)
    params = chat_params(params, llm.tokenizer, llm.engine.eos_token_ids)
    yield from _stream(llm, ids, params, max_new_tokens)


def has_chat_template(llm: LLM) -> bool:
    return llm.tokenizer is not None and bool(llm.tokenizer.chat_template)


def _stream(llm: LLM, ids: list[int], params: SamplingParams, max_new_tokens: int | None) -> Generator[Delta]:
    """With the length that was asked for, or the default one cut to what the context leaves."""
    if max_new_tokens is None:
        max_new_tokens = max(1, min(DEFAULT_MAX_NEW_TOKENS, llm.engine.max_seq_len - len(ids)))
    params = dataclasses.replace(params, max_tokens=max_new_tokens)
    llm.text_engine.check(ids, params)  # `generate` takes an empty list for no prompts, here it is an empty prompt
    yield from llm.generate(ids, params, stream=True, lora=next(iter(llm.loras), None))  # `--lora` loads one at most


def timings(output: RequestOutput) -> dict[str, float | None]:
    """Tokens per second of the prompt, up to the first token, and of the answer, from the first token on.

    None where there is nothing to divide: an answer of one token has no decode speed.
    """
    answer, times = output.outputs[0], output.outputs[0].timings
    num_read = len(output.prompt_token_ids) - times.num_cached_tokens
    prefill_s = None if times.first_token_s is None else times.first_token_s - times.arrival_s
    return {
        "prefill_tokens_per_s": num_read / prefill_s if prefill_s else None,
        "decode_tokens_per_s": (len(answer.token_ids) - 1) / decode_s if (decode_s := _decode_s(answer)) else None,
    }


def _decode_s(answer: CompletionOutput) -> float | None:
    times = answer.timings
    if times.first_token_s is None or times.finished_s is None or len(answer.token_ids) < 2:
        return None
    return times.finished_s - times.first_token_s


def speed_line(output: RequestOutput) -> str:
    """ "prompt 24 tokens at 810 tokens/s, answer 118 tokens at 240 tokens/s", and how often prompt lookup was right."""
    speeds: dict[str, Any] = timings(output)
    counts = {"prompt": len(output.prompt_token_ids), "answer": len(output.outputs[0].token_ids)}
    parts = []
    for (name, count), speed in zip(counts.items(), speeds.values()):
        part = f"{name} {count} token{'s' * (count != 1)}"
        parts.append(part if speed is None else f"{part} at {speed:.0f} tokens/s")
    times = output.outputs[0].timings
    if times.num_drafted_tokens:
        parts.append(f"{times.num_accepted_tokens} of {times.num_drafted_tokens} guesses right")
    return ", ".join(parts)
