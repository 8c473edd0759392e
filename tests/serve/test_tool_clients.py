"""Function calling as the official client and LangChain do it, unmodified, with calls that the model must make."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from pydantic import BaseModel
from server_process import ServerProcess
from tool_checkpoint import MESSAGES, NOW, WEATHER

openai = pytest.importorskip("openai", reason="the tests of real clients need openai")

STRICT = {**WEATHER, "function": {**WEATHER["function"], "strict": True}}
FLAT = {"type": "function", **STRICT["function"]}
THIS = {"type": "function", "function": {"name": "weather"}}
CITIES = ("Paris", "London")


@pytest.fixture(scope="module")
def client(tool_server: ServerProcess) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{tool_server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def ask(client: Any, **fields: Any) -> Any:
    return client.chat.completions.create(**{"model": "tiny", "messages": MESSAGES, "temperature": 0, **fields})


def functions(calls: Any) -> list[tuple[str, str]]:
    return [(call.function.name, call.function.arguments) for call in calls or ()]


def test_a_named_tool_is_called_once(client: Any) -> None:
    choice = ask(client, tools=[WEATHER, NOW], tool_choice=THIS).choices[0]
    [call] = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    assert call.type == "function" and call.id and call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in CITIES


def test_required_calls_are_of_the_tools_that_are_allowed(client: Any) -> None:
    names = set()
    for seed in range(6):
        answer = ask(client, tools=[WEATHER, NOW], tool_choice="required", temperature=1.5, seed=seed, max_tokens=400)
        assert answer.choices[0].message.tool_calls
        names |= {name for name, _ in functions(answer.choices[0].message.tool_calls)}
    assert names == {"weather", "now"}
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [{**NOW}]}}
    choice = ask(client, tools=[WEATHER, NOW], tool_choice=allowed, parallel_tool_calls=False).choices[0]
    assert functions(choice.message.tool_calls) == [("now", "{}")]


@pytest.mark.parametrize("choice", [THIS, "required"])
def test_a_stream_is_the_whole_answer(client: Any, choice: Any) -> None:
    fields = {"tools": [WEATHER, NOW], "tool_choice": choice, "max_tokens": 200}
    whole = ask(client, **fields)
    calls: list[Any] = []
    reasons = []
    for chunk in ask(client, **fields, stream=True, stream_options={"include_usage": True}):
        for delta in chunk.choices[0].delta.tool_calls or () if chunk.choices else ():
            if delta.index == len(calls):
                calls.append(delta)
            else:
                calls[delta.index].function.arguments += delta.function.arguments
        reasons += [choice.finish_reason for choice in chunk.choices if choice.finish_reason]
    assert functions(calls) == functions(whole.choices[0].message.tool_calls) != []
    assert chunk.usage == whole.usage and reasons == [whole.choices[0].finish_reason]


def test_the_helper_for_streams(client: Any) -> None:
    with client.chat.completions.stream(
        model="tiny", messages=MESSAGES, temperature=0, tools=[STRICT], tool_choice="required",
        parallel_tool_calls=False,
    ) as stream:  # fmt: skip
        events = list(stream)
        message = stream.get_final_completion().choices[0].message
    assert [event.type for event in events if "tool_calls" in event.type][-1] == "tool_calls.function.arguments.done"
    assert message.tool_calls[0].function.parsed_arguments["city"] in CITIES


class Weather(BaseModel):
    """The weather at a place."""

    city: Literal["Paris", "London"]
    in_celsius: bool


def test_arguments_as_a_pydantic_model(client: Any) -> None:
    tool = openai.pydantic_function_tool(Weather)
    answer = client.chat.completions.parse(
        model="tiny", messages=MESSAGES, tools=[tool], tool_choice="required", parallel_tool_calls=False
    )
    assert isinstance(answer.choices[0].message.tool_calls[0].function.parsed_arguments, Weather)


def test_a_whole_loop(client: Any) -> None:
    """Question, call, result, answer; the message goes back as it came."""
    messages: list[Any] = [*MESSAGES]
    message = ask(client, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False).choices[0].message
    messages += [message, {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "Sunny, 21 °C."}]
    first = ask(client, messages=messages, tools=[WEATHER], tool_choice="none", max_tokens=20)
    dumped = [*MESSAGES, message.model_dump(), messages[-1]]
    assert ask(client, messages=dumped, tools=[WEATHER], max_tokens=20).choices[0].message.content == (
        first.choices[0].message.content
    )
    assert first.choices[0].message.content and first.choices[0].message.tool_calls is None
    assert first.usage.prompt_tokens_details.cached_tokens > 0


def test_the_asynchronous_client(tool_server: ServerProcess) -> None:
    async def call() -> Any:
        async with openai.AsyncOpenAI(base_url=f"{tool_server.url}/v1", api_key="none", max_retries=0) as client:
            return await ask(client, tools=[WEATHER], tool_choice=THIS)

    assert functions(asyncio.run(call()).choices[0].message.tool_calls)[0][0] == "weather"


def respond(client: Any, **fields: Any) -> Any:
    return client.responses.create(**{"model": "tiny", "input": MESSAGES, "temperature": 0, "tools": [FLAT], **fields})


def test_responses(client: Any) -> None:
    choice = {"type": "function", "name": "weather"}
    response = respond(client, tool_choice=choice)
    [call] = response.output
    assert call.type == "function_call" and call.status == "completed" and call.name == "weather"
    assert json.loads(call.arguments)["city"] in CITIES and response.status == "completed"
    assert response.tool_choice.name == "weather" and response.tools[0].name == "weather"
    items = [*MESSAGES, *response.output, {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."}]
    answer = respond(client, input=items, max_output_tokens=20)
    assert answer.output_text and answer.usage.input_tokens > response.usage.input_tokens
    assert answer.usage.input_tokens_details.cached_tokens > 0


def test_a_stream_of_responses(client: Any) -> None:
    fields = {"tool_choice": "required", "parallel_tool_calls": False}
    [expected] = respond(client, **fields).output
    with client.responses.stream(model="tiny", input=MESSAGES, temperature=0, tools=[FLAT], **fields) as stream:
        events = list(stream)
        [item] = stream.get_final_response().output
    assert (item.name, item.arguments) == (expected.name, expected.arguments)
    kinds = itertools.groupby(event.type.removeprefix("response.") for event in events)
    assert [kind for kind, _ in kinds] == [
        "created", "in_progress", "output_item.added", "function_call_arguments.delta", "function_call_arguments.done",
        "output_item.done", "completed",
    ]  # fmt: skip
    assert "".join(e.delta for e in events if e.type == "response.function_call_arguments.delta") == item.arguments


def test_langchain(tool_server: ServerProcess) -> None:
    langchain_openai = pytest.importorskip("langchain_openai", reason="needs langchain-openai")
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_core.tools import tool

    @tool
    def temperature(celsius: bool) -> str:
        """The temperature outside."""
        return "21" if celsius else "70"

    model = langchain_openai.ChatOpenAI(
        model="tiny", base_url=f"{tool_server.url}/v1", api_key="none", temperature=0, max_tokens=60
    )
    bound = model.bind_tools([temperature], tool_choice="temperature", parallel_tool_calls=False)
    question = HumanMessage("How warm is it?")
    answer = bound.invoke([question])
    [call] = answer.tool_calls
    assert call["name"] == "temperature" and set(call["args"]) == {"celsius"}
    chunks = list(bound.stream([question]))
    gathered = sum(chunks[1:], chunks[0])
    assert [(c["name"], c["args"]) for c in gathered.tool_calls] == [("temperature", call["args"])]
    result = ToolMessage(temperature.invoke(call["args"]), tool_call_id=call["id"])
    final = model.bind_tools([temperature]).invoke([question, answer, result])
    assert final.content and final.usage_metadata["input_tokens"] > answer.usage_metadata["input_tokens"]
