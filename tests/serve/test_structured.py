"""Structured output over HTTP: the official client's ways to ask for it, what is refused, and that nothing stalls."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

import pytest
from server_process import ServerProcess

from qwench import LLM, Grammar, SamplingParams

jsonschema = pytest.importorskip("jsonschema", reason="what is valid is said by jsonschema")
pydantic = pytest.importorskip("pydantic")
pytest.importorskip("llguidance", reason='grammars need pip install "qwench[structured]"')

Digits = pydantic.constr(pattern="^[0-9]{2,4}$")


class Animal(pydantic.BaseModel):
    kind: Literal["fox", "owl"]
    age: int = pydantic.Field(ge=0, le=99)
    code: Digits  # type: ignore[valid-type]


MESSAGES = [{"role": "user", "content": "Tell me a story about a fox."}]
SCHEMA = Animal.model_json_schema()
FORMAT = {"type": "json_schema", "json_schema": {"name": "animal", "schema": SCHEMA, "strict": True}}


def chat(server: ServerProcess, **fields: Any) -> dict[str, Any]:
    body = {"messages": MESSAGES, "max_tokens": 200, "temperature": 1.5, "seed": 1} | fields
    with server.client() as client:
        answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


# --- the official client ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_parse(client: Any, temperature: float) -> None:
    answer = client.chat.completions.parse(
        model="tiny", messages=MESSAGES, response_format=Animal, temperature=temperature, seed=3, n=2
    )
    for choice in answer.choices:
        assert isinstance(choice.message.parsed, Animal) and choice.finish_reason == "stop"


def test_stream(client: Any) -> None:
    with client.chat.completions.stream(model="tiny", messages=MESSAGES, response_format=Animal, seed=3) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion().choices[0]
    assert len(deltas) > 2 and "".join(deltas) == final.message.content
    assert final.message.parsed == Animal.model_validate_json(final.message.content)


def test_responses_parse(client: Any) -> None:
    answer = client.responses.parse(model="tiny", input="Tell me about a fox.", text_format=Animal)
    assert isinstance(answer.output_parsed, Animal) and answer.status == "completed"
    assert answer.text.format.type == "json_schema" and answer.text.format.name == "Animal"
    with client.responses.stream(model="tiny", input="Tell me about a fox.", text_format=Animal) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_response().output_parsed, Animal)


def test_any_object(client: Any) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, response_format={"type": "json_object"}, max_tokens=400, temperature=0.0
    )
    choice = answer.choices[0]
    assert choice.message.content.startswith("{")
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)


# --- vLLM's fields ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wish", "pattern"),
    [
        ({"regex": "[a-c]{3}-[0-9]{1,3}x"}, "[a-c]{3}-[0-9]{1,3}x"),
        ({"choice": ["yes", "no"]}, "yes|no"),
        ({"grammar": 'start: "<" /[a-z]{1,3}/ ">"'}, "<[a-z]{1,3}>"),
        ({"json": {"type": "integer", "minimum": 10, "maximum": 99}}, "[1-9][0-9]"),
        ({"json": '{"enum": [true]}'}, "true"),
    ],
)
def test_structured_outputs(server: ServerProcess, wish: dict[str, Any], pattern: str) -> None:
    choice = chat(server, structured_outputs=wish)["choices"][0]
    assert re.fullmatch(pattern, choice["message"]["content"]) and choice["finish_reason"] == "stop"
    body = {"prompt": "Once", "max_tokens": 100, "structured_outputs": wish, "n": 2, "logprobs": 1}
    with server.client() as client:
        answer = client.post("/v1/completions", json=body).json()
    assert all(re.fullmatch(pattern, choice["text"]) for choice in answer["choices"])
    for choice in answer["choices"]:  # an answer that its grammar ended shows all its tokens
        assert "".join(choice["logprobs"]["tokens"]).startswith(choice["text"])


def test_a_cut_is_a_length(server: ServerProcess) -> None:
    choice = chat(server, response_format=FORMAT, max_tokens=3)["choices"][0]
    assert choice["finish_reason"] == "length"


def test_plain_text_is_plain(server: ServerProcess) -> None:
    plain = chat(server)["choices"]
    assert chat(server, response_format={"type": "text"})["choices"] == plain


# --- refusals -----------------------------------------------------------------------------------------------------


def in_format(schema: Any, **fields: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, **fields}}}


def nested(depth: int) -> Any:
    return {"anyOf": [nested(depth - 1)]} if depth else {"type": "null"}


REFUSED = [
    (in_format({"not": {}}, strict=True), "response_format", '"not"'),
    (in_format({"type": "array", "uniqueItems": True}, strict=True), "response_format", "uniqueItems"),
    (in_format({"$ref": "http://169.254.169.254/latest"}), "response_format", "169.254"),
    (in_format({"$ref": "#"}), "response_format", "no text"),
    (in_format(nested(80)), "response_format", "recursion"),
    (in_format({"enum": ["x" * 70000]}), "response_format", "32768"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "Field required"),
    ({"response_format": {"type": "yaml"}}, "response_format", "type"),
    ({"structured_outputs": {"regex": "(a"}}, "structured_outputs", "unclosed group"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "give one of"),
    ({"structured_outputs": {}}, "structured_outputs", "give one of"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs", "at least 1"),
    ({"structured_outputs": {"grammar": "start: <|nothing|>"}}, "structured_outputs", "nothing"),
    ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs", "give one of"),
    ({"response_format": FORMAT, "structured_outputs": {"regex": "a"}}, None, "give one of them"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "reason"), REFUSED)
def test_refusals_name_the_field(server: ServerProcess, fields: dict[str, Any], param: str | None, reason: str) -> None:
    with server.client() as client:
        for stream in (False, True):
            answer = client.post("/v1/chat/completions", json={"messages": MESSAGES, "stream": stream, **fields})
            assert answer.status_code == 400
            error = answer.json()["error"]
            assert error["param"] == param and reason in error["message"]


def test_responses_refuse_too(server: ServerProcess) -> None:
    form = {"type": "json_schema", "name": "x", "schema": {"not": {}}, "strict": True}
    body = {"input": "x", "text": {"format": form}}
    with server.client() as client:
        answer = client.post("/v1/responses", json=body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "text"


def test_what_no_grammar_holds_is_named(server: ServerProcess) -> None:
    schema = {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 2, "uniqueItems": True}
    form = {"type": "json_schema", "name": "x", "schema": schema}
    bodies: list[tuple[str, dict[str, Any], str]] = [
        ("chat/completions", {"messages": MESSAGES, **in_format(schema)}, "response_format.uniqueItems"),
        ("chat/completions", {"messages": MESSAGES, **in_format(schema, strict=False), "stream": True},
         "response_format.uniqueItems"),
        ("completions", {"prompt": "x", "structured_outputs": {"json": schema}}, "structured_outputs.uniqueItems"),
        ("responses", {"input": "x", "text": {"format": form}}, "text.uniqueItems"),
    ]  # fmt: skip
    with server.client() as client:
        for path, body, name in bodies:
            answer = client.post(f"/v1/{path}", json=body)
            assert answer.status_code == 200 and answer.headers["x-qwench-ignored"] == name
    assert sum("response_format.uniqueItems" in line for line in server.log) == 1


# --- nothing stalls -----------------------------------------------------------------------------------------------


def test_a_refusal_is_quick(server: ServerProcess) -> None:
    """Of schemas that were never seen before."""
    before_s = server.cpu_s()
    with server.client() as client:
        for i in range(15):
            body = {"messages": MESSAGES, **in_format({"properties": {f"p{i}": {"not": {}}}}, strict=True)}
            assert client.post("/v1/chat/completions", json=body).status_code == 400
    assert (server.cpu_s() - before_s) / 15 < 0.02


def test_hostile_grammars_harm_nobody(server: ServerProcess) -> None:
    """A stream goes on beside them, and the processes behind the server live."""
    bombs = ["(((a{1,100}){1,100}){1,100}){1,100}", r"\p{L}{1,2000}", "(.*a.{12}&.*b.{13}&.*c.{14})", "(" * 3000]
    body = {"messages": MESSAGES, "stream": True, "max_tokens": 150, "ignore_eos": True}
    children = [server.child(module) for module in ("engine_process", "text_process")]
    with server.client() as client, client.stream("POST", "/v1/chat/completions", json=body) as stream:
        for bomb in bombs:
            wish = {"messages": MESSAGES, "max_tokens": 20, "structured_outputs": {"regex": bomb}}
            assert client.post("/v1/chat/completions", json=wish).status_code in (200, 400)
        assert stream.read().endswith(b"data: [DONE]\n\n")
    assert children == [server.child(module) for module in ("engine_process", "text_process")]


def test_the_answer_is_the_librarys(server: ServerProcess, llm: LLM) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=200, grammar=Grammar("json_schema", json.dumps(SCHEMA)))
    expected = llm.chat(MESSAGES, params)[0].outputs[0]
    choice = chat(server, response_format=FORMAT, temperature=0.0, seed=None)["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (expected.text, expected.finish_reason)
