"""Which requests belong together, which replica gets them, and what `serve run` may say about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray.serve", reason='replicas need pip install "qwench[ray]"')
pytest.importorskip("fastapi", reason='the server needs pip install "qwench[serve]"')

from pydantic import ValidationError

from qwench.errors import ConfigError
from qwench.replicas.conversation import BEGINNING, conversation_of
from qwench.replicas.forwarding import ForwardedRequest
from qwench.replicas.metrics import merged
from qwench.replicas.options import ReplicaOptions
from qwench.replicas.router import MAX_IMBALANCE, ranked

NAMES = [f"replica{number}" for number in range(8)]
SYSTEM = {"role": "system", "content": "Be brief."}
FIRST = {"role": "user", "content": "A story, please."}
ANSWER = {"role": "assistant", "content": "Once upon a time."}
LONG = "word " * BEGINNING


def conversation(**fields: Any) -> str | None:
    return conversation_of(json.dumps(fields).encode())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"messages": [FIRST]}, {"messages": [SYSTEM, FIRST, ANSWER, {"role": "user", "content": "More."}]}),
        ({"messages": [FIRST], "system": "It is Monday."}, {"messages": [FIRST, ANSWER], "system": "It is Tuesday."}),
        ({"input": [FIRST]}, {"input": [FIRST, ANSWER, FIRST]}),
        ({"prompt": LONG}, {"prompt": f"{LONG} and more"}),
        ({"prompt": [1] * BEGINNING}, {"prompt": [1] * BEGINNING + [2]}),
        ({"prompt": "a", "prompt_cache_key": "k"}, {"messages": [ANSWER, FIRST], "prompt_cache_key": "k"}),
    ],
)
def test_turns_of_a_conversation_belong_together(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert conversation(**one) == conversation(**other) is not None


def test_other_conversations_are_others() -> None:
    texts = [conversation(messages=[SYSTEM, {"role": "user", "content": text}]) for text in ("a", "b", "a b")]
    assert len({*texts, conversation(prompt="c"), conversation(prompt="A"), conversation(prompt="A B")}) == 6


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"[" * 10**5, b'{"input": ["a", "b"]}', b'{"messages": []}', b'{"messages": [{}, null]}',
             b'{"prompt": 3}', b'{"prompt": ""}', b'{"messages": [{"role": "system"}]}', b"\xff"],
)  # fmt: skip
def test_what_is_no_conversation_is_none(body: bytes) -> None:
    """The replica says what is wrong with it."""
    assert conversation_of(body) is None


def request(conversation: str | None, *tried: str) -> ForwardedRequest:
    return ForwardedRequest({}, b"", conversation, tried)


def test_a_replica_that_goes_moves_only_its_own_conversations() -> None:
    requests = [request(f"conversation {number}") for number in range(800)]
    before = [ranked(NAMES, each, {})[0] for each in requests]
    assert all(60 < before.count(name) < 140 for name in NAMES)  # of 100
    after = [ranked(NAMES[1:], each, {})[0] for each in requests]
    assert all(new == old for old, new in zip(before, after) if old != NAMES[0])
    assert {new for old, new in zip(before, after) if old == NAMES[0]} == set(NAMES[1:])


def test_a_busy_replica_is_worth_a_wait_but_not_any() -> None:
    first, *others = ranked(NAMES, request("a"), {})
    assert ranked(NAMES, request("a"), {first: MAX_IMBALANCE})[0] == first
    busy = {first: MAX_IMBALANCE + 4, **dict.fromkeys(others[:-1], 3)}
    assert ranked(NAMES, request("a"), busy)[0] in others
    assert ranked(NAMES, request("a"), busy)[-1] == first
    everywhere = dict.fromkeys(NAMES, 100)
    assert ranked(NAMES, request("a"), everywhere)[0] == first


def test_without_a_conversation_the_least_busy_one_is_first() -> None:
    assert ranked(NAMES, request(None), {name: number for number, name in enumerate(NAMES)}) == NAMES


def test_a_replica_that_failed_a_request_gets_it_last() -> None:
    first, second, *_ = ranked(NAMES, request("a"), {})
    assert ranked(NAMES, request("a", first), {})[0] == second
    assert ranked(NAMES, request("a", first), {})[-1] == first
    assert ranked([first], request("a", first), {}) == [first]


def test_metrics_say_whose_they_are() -> None:
    texts = {
        name: f"# HELP a_total Of a\n# TYPE a_total counter\na_total {number}.0\n# HELP t Of t\n# TYPE t histogram\n"
        f't_bucket{{le="+Inf"}} {number}.0\nt_count {number}.0\nt_sum 0.5\n'
        for number, name in enumerate(("one", "two"))
    }
    assert merged(texts).decode().splitlines() == [
        "# HELP a_total Of a", "# TYPE a_total counter", 'a_total{replica="one"} 0.0', 'a_total{replica="two"} 1.0',
        "# HELP t Of t", "# TYPE t histogram", 't_bucket{le="+Inf",replica="one"} 0.0', 't_count{replica="one"} 0.0',
        't_sum{replica="one"} 0.5', 't_bucket{le="+Inf",replica="two"} 1.0', 't_count{replica="two"} 1.0',
        't_sum{replica="two"} 0.5',
    ]  # fmt: skip


def test_options_are_those_of_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As texts, which is what `serve run key=value` gives; a config file may have numbers and lists."""
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    given = {"model": "model", "num_cpus": "4", "max_seq_len": "64", "strict": "true", "whole_calls": "false",
             "api_key_file": "keys.txt", "tensor_parallel_size": 2, "lora": ["a=one", "b=two"]}  # fmt: skip
    options = ReplicaOptions.model_validate(given).serve_options()
    assert options.models == [str(tmp_path / "model")]
    assert (options.threads, options.max_seq_len, options.tensor_parallel_size) == (4, 64, 2)
    assert (options.strict, options.whole_calls, options.api_key_file) == (True, False, tmp_path / "keys.txt")
    assert [name for name, _ in options.lora] == ["a", "b"]
    several = ReplicaOptions.model_validate({"model": ["a=model", "org/name"], "draft": "model"}).serve_options()
    assert (several.models, several.draft) == ([f"a={tmp_path / 'model'}", "org/name"], str(tmp_path / "model"))
    assert ReplicaOptions.model_validate({"model": "m", "num_cpus": "0.5", "threads": "3"}).serve_options().threads == 3
    assert ReplicaOptions.model_validate({"model": "m", "num_replicas": "3"}).replicas == 3


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"port": "1"}, "Ray listens"), ({"lora_dir": "x"}, "all replicas"), ({"replica": "2"}, "--replica"),
        ({"max_seq_len": "long"}, "long"), ({"drain": "true"}, "--drain"),
    ],
)  # fmt: skip
def test_unknown_options_are_refused(given: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ReplicaOptions.model_validate({"model": "m", **given}).serve_options()


@pytest.mark.parametrize("given", [{"replicas": 0}, {"num_cpus": "0"}, {"min_replicas": 3, "max_replicas": 2}])
def test_impossible_numbers_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ReplicaOptions.model_validate({"model": "m", **given})
