"""What requests can ask for beside a plain answer: each field does what it does for SamplingParams."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Any

import httpx
import numpy as np
import pytest
from server_process import ServerProcess, wait_for

from qwench import LLM, SamplingParams

openai = pytest.importorskip("openai", reason="the tests of real clients need openai")

MESSAGES = [{"role": "user", "content": "Tell me a story about a fox."}]
PROMPT = "Once upon a time there was"


def complete(client: Any, **fields: Any) -> Any:
    return client.completions.create(
        **{"model": "tiny", "prompt": PROMPT, "temperature": 0, "max_tokens": 16, **fields}
    )


def truth(llm: LLM, **params: Any) -> Any:
    given = {"temperature": 0, "max_tokens": 16, **params}
    return llm.generate(PROMPT, dataclasses.replace(llm.defaults.params, **given))[0].outputs


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.9, "seed": 11},
        {"temperature": 0.9, "seed": 11, "top_p": 0.4},
        {"temperature": 1.3, "seed": -3, "top_k": 5},
        {"temperature": 1.3, "seed": 3, "min_p": 0.2},
        {"frequency_penalty": 1.5},
        {"presence_penalty": 2.0},
        {"repetition_penalty": 1.4},
        {"logit_bias": {"300": 50.0, "301": -100.0}},
        {"stop_token_ids": [13], "ignore_eos": True},
        {"min_tokens": 12, "stop": ["."]},
        {"prompt_lookup_num_tokens": 8},
        {"stop": [" a "], "include_stop_str_in_output": True},
    ],
    ids=lambda fields: "-".join(fields),
)
def test_a_field_does_what_it_does_in_python(client: Any, llm: LLM, fields: dict[str, Any]) -> None:
    extra = {k: v for k, v in fields.items() if k not in ("temperature", "seed", "top_p", "stop", "logit_bias")}
    known = {k: v for k, v in fields.items() if k not in extra}
    params = {**fields, "logit_bias": {int(t): x for t, x in fields.get("logit_bias", {}).items()}}
    [expected] = truth(llm, **params)
    choice = complete(client, **known, extra_body=extra).choices[0]
    assert (choice.text, choice.finish_reason) == (expected.text, expected.finish_reason)
    assert choice.stop_reason == expected.stop_reason


def test_a_stop_string_ends_whole_and_streamed_answers_alike(client: Any) -> None:
    text = complete(client, max_tokens=60).choices[0].text
    stop = text[31:39]  # across the borders of words, and so of tokens
    whole = complete(client, max_tokens=60, stop=stop).choices[0]
    chunks = list(complete(client, max_tokens=60, stop=[stop, "xyz"], stream=True))
    assert whole.finish_reason == "stop" and whole.text == text[: text.index(stop)] and whole.stop_reason == stop
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.text
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_n_answers(client: Any, llm: LLM) -> None:
    params = {"temperature": 1.0, "seed": 9, "n": 3}
    answer = complete(client, **params)
    assert [choice.text for choice in answer.choices] == [output.text for output in truth(llm, **params)]
    assert len({choice.text for choice in answer.choices}) == 3
    assert answer.usage.completion_tokens == sum(len(output.token_ids) for output in truth(llm, **params))
    assert answer.usage.prompt_tokens == len(llm.text_engine.encode(PROMPT))


def test_chat_logprobs_are_the_models(client: Any, llm: LLM) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, temperature=0, max_tokens=8, logprobs=True, top_logprobs=3
    )
    [expected] = llm.chat(MESSAGES, SamplingParams(temperature=0, max_tokens=8, logprobs=3))[0].outputs
    content = answer.choices[0].logprobs.content
    assert [entry.logprob for entry in content] == [e.logprob for e in expected.logprobs]
    assert [[t.logprob for t in entry.top_logprobs] for entry in content] == [
        [logprob for _, logprob in e.top] for e in expected.logprobs
    ]
    assert b"".join(bytes(entry.bytes) for entry in content).decode() == answer.choices[0].message.content
    assert all(entry.top_logprobs[0].token == entry.token for entry in content)  # greedy


def test_streamed_logprobs_are_those_of_the_whole_answer(client: Any) -> None:
    fields = {"model": "tiny", "messages": MESSAGES, "temperature": 0, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**fields, max_tokens=300).choices[0]
    streamed = []
    for chunk in client.chat.completions.create(**fields, max_tokens=300, stream=True):
        if chunk.choices[0].logprobs:
            streamed += chunk.choices[0].logprobs.content
    assert whole.finish_reason == "stop"  # the token that ended it isn't among them
    assert [entry.model_dump() for entry in streamed] == [entry.model_dump() for entry in whole.logprobs.content]
    assert b"".join(bytes(entry.bytes) for entry in streamed).decode() == whole.message.content


def test_completion_logprobs(client: Any) -> None:
    choice = complete(client, logprobs=2).choices[0]
    logprobs = choice.logprobs
    assert "".join(logprobs.tokens) == choice.text
    assert [choice.text[start : start + len(t)] for start, t in zip(logprobs.text_offset, logprobs.tokens)] == (
        logprobs.tokens
    )
    for token, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs):
        assert top[token] == logprob == max(top.values()) and len(top) == 2
    streamed = [chunk.choices[0].logprobs for chunk in complete(client, logprobs=2, stream=True)]
    assert [offset for entry in streamed if entry for offset in entry.text_offset] == logprobs.text_offset


def test_a_prefix_found_in_the_cache_is_in_the_usage(client: Any) -> None:
    messages = [{"role": "user", "content": "The lighthouse keeper said: " + "what a day. " * 40}]
    usages = [
        client.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=2).usage
        for _ in range(2)
    ]
    assert usages[0].prompt_tokens_details.cached_tokens == 0
    assert usages[1].prompt_tokens_details.cached_tokens == (usages[1].prompt_tokens - 1) // 32 * 32  # whole blocks


def test_a_cache_salt_keeps_prefixes_apart(client: Any) -> None:
    fields = {"prompt": "A secret that nobody may guess by timing. " * 10, "max_tokens": 1}
    cached = [
        complete(client, **fields, extra_body={"cache_salt": salt}).usage.prompt_tokens_details.cached_tokens
        for salt in ("one", "one", "two")
    ]
    assert cached[0] == cached[2] == 0 < cached[1]


def test_developer_and_parts(client: Any, llm: LLM) -> None:
    answer = client.chat.completions.create(
        model="tiny", temperature=0, max_tokens=8,
        messages=[
            {"role": "developer", "content": "You tell stories."},
            {"role": "user", "content": [{"type": "text", "text": "Tell me "}, {"type": "text", "text": "one."}]},
        ],
    )  # fmt: skip
    plain = [{"role": "system", "content": "You tell stories."}, {"role": "user", "content": "Tell me one."}]
    expected = llm.chat(plain, SamplingParams(temperature=0, max_tokens=8))[0].outputs[0].text
    assert answer.choices[0].message.content == expected


def test_responses(client: Any, llm: LLM) -> None:
    answer = client.responses.create(model="tiny", input=MESSAGES[0]["content"], temperature=0, max_output_tokens=300)
    [expected] = llm.chat(MESSAGES, SamplingParams(temperature=0, max_tokens=300))[0].outputs
    assert answer.output_text == expected.text and answer.status == "completed"
    assert answer.usage.output_tokens == len(expected.token_ids)
    # The answer goes back as it came, as clients do it.
    again = client.responses.create(
        model="tiny", temperature=0, max_output_tokens=5, instructions="You tell stories.",
        input=[*MESSAGES, *(item.model_dump(exclude_none=True) for item in answer.output), *MESSAGES],
    )  # fmt: skip
    conversation = [
        {"role": "system", "content": "You tell stories."}, *MESSAGES,
        {"role": "assistant", "content": expected.text}, *MESSAGES,
    ]  # fmt: skip
    truth = llm.chat(conversation, SamplingParams(temperature=0, max_tokens=5))[0].outputs[0]
    assert again.output_text == truth.text and again.status == "incomplete"
    assert again.incomplete_details.reason == "max_output_tokens"


def test_a_stream_of_responses(client: Any) -> None:
    fields = {"model": "tiny", "input": MESSAGES, "temperature": 0}
    whole = client.responses.create(**fields)
    with client.responses.stream(**fields) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text
    assert final.output_text == whole.output_text and final.usage == whole.usage
    assert [e.type for e in events[:4]] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip


def test_tokenize_and_back(server: ServerProcess, llm: LLM) -> None:
    text = "Héllo, wörld 🦊 <|im_end|>"
    with server.client() as http:
        answer = http.post("/tokenize", json={"prompt": text, "return_token_strs": True}).json()
        assert answer["tokens"] == llm.text_engine.encode(text) and answer["count"] == len(answer["tokens"])
        assert answer["max_model_len"] == 2048 and len(answer["token_strs"]) == answer["count"]
        assert http.post("/detokenize", json={"tokens": answer["tokens"]}).json() == {"prompt": text}
        chat = http.post("/tokenize", json={"messages": MESSAGES}).json()
    assert chat["tokens"] == llm.chat(MESSAGES, SamplingParams(max_tokens=1))[0].prompt_token_ids


def test_metrics_count_what_was_answered(client: Any, server: ServerProcess) -> None:
    before = {name: server.metric(name) for name in ("qwench_generated_tokens_total", "qwench_prompt_tokens_total")}
    ttft = server.metric("qwench_time_to_first_token_seconds_count")
    answer = complete(client, n=2, max_tokens=6)
    after = {name: server.metric(name) for name in before}
    assert after["qwench_generated_tokens_total"] - before["qwench_generated_tokens_total"] == 12
    prompts = after["qwench_prompt_tokens_total"] - before["qwench_prompt_tokens_total"]
    assert prompts == 2 * answer.usage.prompt_tokens  # of samples
    assert server.metric("qwench_time_to_first_token_seconds_count") == ttft + 2
    wait_for(lambda: server.metric("qwench_requests_running") == server.metric("qwench_kv_blocks_used") == 0)


def test_greedy_answers_do_not_depend_on_the_load(server: ServerProcess, llm: LLM) -> None:
    """Many different requests at once, more than run at once: each is what LLM.generate says."""
    rng = np.random.default_rng(0)
    words = ["the", "fox", "and", "an", "old", "house", "by", "a", "river", "in", "winter", "with", "one", "lamp"]
    prompts = [" ".join(rng.choice(words, size=int(rng.integers(1, 60)))) for _ in range(40)]
    lengths = [int(length) for length in rng.integers(1, 40, size=len(prompts))]

    async def ask_all() -> list[str]:
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:
            bodies = [
                {"prompt": prompt, "temperature": 0, "max_tokens": length, "stream": i % 2 == 0}
                for i, (prompt, length) in enumerate(zip(prompts, lengths))
            ]
            answers = await asyncio.gather(*(http.post("/v1/completions", json=body) for body in bodies))
            return [_text(answer) for answer in answers]

    expected = llm.generate(prompts, [SamplingParams(temperature=0, max_tokens=length) for length in lengths])
    assert asyncio.run(ask_all()) == [output.outputs[0].text for output in expected]


def _text(answer: httpx.Response) -> str:
    """The text of a whole answer or of a stream."""
    answer.raise_for_status()
    if answer.headers["content-type"].startswith("application/json"):
        return str(answer.json()["choices"][0]["text"])
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert events[-1] == "[DONE]"
    return "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1])
