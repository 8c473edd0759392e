"""The loop of the engine process, with a parent that is a list: what it does between two steps."""

from __future__ import annotations

import re
from typing import Any

import pytest

from qwench import LLM, Grammar, SamplingParams
from qwench.serve.processes.engine_process import EngineProcess
from qwench.serve.processes.wire import params_from_json, params_to_json


class Parent:
    """In place of the Link; the tests hand messages over by themselves."""

    def __init__(self) -> None:
        self.said: list[dict[str, Any]] = []

    def receive(self) -> None:
        raise AssertionError("the tests don't start the threads")

    def send(self, message: dict[str, Any]) -> None:
        self.said.append(message)


class Loop(EngineProcess):
    """One turn at a time."""

    def tell(self, *messages: dict[str, Any]) -> None:
        for message in messages:
            self._inbox.put(message)

    def compile_one(self) -> None:
        """What the thread that compiles does with the next grammar."""
        self._compile_one(self._to_compile.get_nowait())

    def turn(self) -> list[dict[str, Any]]:
        """What the process does between two steps, and one step; what it says."""
        assert self._take_in()
        self._step()
        said = []
        while not self._outbox.empty():
            said.append(self._outbox.get())
        return said


def add(name: str, prompt: list[int], **params: Any) -> dict[str, Any]:
    params = {"temperature": 0.0, "max_tokens": 100, "ignore_eos": True, **params}
    return {"add": name, "prompt": prompt, "params": params_to_json(SamplingParams(**params)), "salt": "", "lora": None}


@pytest.fixture
def loop(llm: LLM) -> Loop:
    return Loop(llm, Parent())  # type: ignore[arg-type]


def test_blocks_of_an_aborted_request_are_free_within_two_steps(loop: Loop, llm: LLM) -> None:
    pool = llm.engine.scheduler.pool
    before = pool.num_free
    loop.tell(add("stays", [5] * 40), add("leaves", [6] * 200))
    loop.turn()
    held = before - pool.num_free
    loop.turn()
    loop.tell({"abort": "leaves"})
    loop.turn()
    assert before - pool.num_free == held - 4  # 200 tokens take 4 blocks of 64
    said = [row for message in loop.turn() for row in message.get("deltas", ())]
    assert [row[0] for row in said] == ["stays"]
    loop.tell({"abort": "stays"}, {"abort": "nobody"}, add("last", [1], max_tokens=1))
    loop.turn()
    assert pool.num_free == before and not llm.engine.has_unfinished()
    llm.engine.check_integrity()


def test_messages_that_come_at_once_are_all_heard_before_the_next_step(loop: Loop, llm: LLM) -> None:
    loop.tell(*(add(str(i), [1, 2, i], max_tokens=1) for i in range(8)))
    rows = [row for message in loop.turn() for row in message.get("deltas", ())]
    assert sorted(row[0] for row in rows) == [str(i) for i in range(8)]
    assert not llm.engine.has_unfinished()


def test_what_the_engine_refuses_is_said(loop: Loop) -> None:
    loop.tell(add("long", [1] * 3000), add("good", [1], max_tokens=1))
    said = loop.turn()
    assert said[0]["refused"] == "long" and "3000 tokens" in said[0]["reason"]
    assert said[1]["deltas"][0][0] == "good"


def test_sampling_params_survive_the_way() -> None:
    params = SamplingParams(
        max_tokens=3, temperature=0.0, top_k=4, logit_bias={5: -1.5, 7: 2.0}, stop=("a", "b"), stop_token_ids=(1,),
        seed=2**63, n=2, logprobs=0, ignore_eos=True, skip_special_tokens=False,
    )  # fmt: skip
    assert params_from_json(params_to_json(params)) == params
    assert params_to_json(SamplingParams()) == {}


def test_a_grammar_is_compiled_beside_the_loop(loop: Loop, llm: LLM) -> None:
    """Others go on meanwhile; whoever is aborted while he waits for it never comes in."""
    pytest.importorskip("llguidance", reason='grammars need pip install "qwench[structured]"')
    grammars = [Grammar("regex", f"[a-z]{{2,{most}}}") for most in (7, 8)]
    wishes = [add(str(i), [1, i], grammar=grammar, temperature=1.0) for i, grammar in enumerate(grammars)]
    loop.tell(add("other", [5] * 4), *wishes, {"abort": "1"})
    said = [row[0] for message in loop.turn() for row in message.get("deltas", ())]
    assert said == ["other"]
    for _ in grammars:
        loop.compile_one()
    rows = [row for _ in range(12) for message in loop.turn() for row in message.get("deltas", ())]
    assert {row[0] for row in rows} == {"other", "0"}
    assert re.fullmatch("[a-z]{2,7}", "".join(row[2] for row in rows if row[0] == "0"))
    loop.tell({"abort": "other"}, add("2", [1, 2], grammar=grammars[0], temperature=1.0))  # known by now
    assert "2" in [row[0] for message in loop.turn() for row in message.get("deltas", ())]
    loop.tell({"abort": "2"}, add("3", [1], grammar=Grammar("regex", "(a")), add("last", [1], max_tokens=1))
    loop.turn()
    loop.compile_one()
    loop.tell(add("last again", [1], max_tokens=1))
    refusals = [message for message in loop.turn() if "refused" in message]
    assert [message["refused"] for message in refusals] == ["3"] and "unclosed group" in refusals[0]["reason"]
    assert not llm.engine.has_unfinished()
