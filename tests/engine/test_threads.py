"""One LLM under many threads, tasks and a fork: the answers of one, in shared steps, and clear errors at the end."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from qwench import LLM, AsyncLLM, QwenchConfig, SamplingParams, compile_checkpoint
from qwench.errors import RequestError

MODEL = Path(__file__).parents[2] / "models" / "qwench-tiny"
PROMPTS = [f"Once upon a time there was a {animal}" for animal in ("fox", "dog", "cow", "hen", "cat", "owl")]
PARAMS = SamplingParams(temperature=0.0, max_tokens=40)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("threads") / "int8"
    compile_checkpoint(MODEL, folder, QwenchConfig(weights="int8", batch_size=16))
    return folder


@pytest.fixture(scope="module")
def llm(artifact: Path) -> Iterator[LLM]:
    with LLM(artifact, num_threads=1) as llm:
        yield llm


@pytest.fixture(scope="module")
def expected(llm: LLM) -> list[str]:
    return [llm.generate(prompt, PARAMS)[0].outputs[0].text for prompt in PROMPTS]


def test_threads_share_steps(llm: LLM, expected: list[str]) -> None:
    steps = llm.metrics.steps
    ready = threading.Barrier(len(PROMPTS))

    def ask(prompt: str) -> str:
        ready.wait()
        return llm.generate(prompt, PARAMS)[0].outputs[0].text

    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        assert list(pool.map(ask, PROMPTS)) == expected
    assert llm.metrics.steps - steps < 2 * PARAMS.max_tokens  # not one after the other
    assert not llm.engine.has_unfinished()


def test_streams_of_threads_some_of_which_are_left(llm: LLM, expected: list[str]) -> None:
    def ask(i: int) -> str:
        stream = llm.generate(PROMPTS[i % 6], PARAMS, stream=True)
        if i % 3 == 2:
            next(stream)
            stream.close()
            return expected[i % 6]
        return "".join(delta.text for delta in stream)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(24))) == expected * 4
    assert not llm.engine.has_unfinished()
    llm.engine.check_integrity()


def test_embeddings_and_prefixes_beside_answers(llm: LLM, expected: list[str], tmp_path: Path) -> None:
    vectors = llm.embed(PROMPTS)

    def work(i: int) -> Any:
        if i % 3 == 0:
            return bool((llm.embed(PROMPTS) == vectors).all())
        if i % 3 == 1:
            return llm.save_prefix(PROMPTS[i % 6] * 8, tmp_path / f"{i}.prefix") > 0
        return llm.generate(PROMPTS[i % 6], PARAMS)[0].outputs[0].text == expected[i % 6]

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(24)))


def test_a_closed_llm_says_so(artifact: Path) -> None:
    llm = LLM(artifact, num_threads=1)
    stream = llm.generate(PROMPTS[0], SamplingParams(max_tokens=500, ignore_eos=True), stream=True)
    next(stream)
    failures: list[Exception] = []

    def ask() -> None:
        try:
            llm.generate(PROMPTS[1], SamplingParams(max_tokens=2000, ignore_eos=True))
        except RequestError as error:
            failures.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while len(llm.engine.requests) < 2:
        pass
    llm.close()
    thread.join(10)
    assert len(failures) == 1 and "was closed" in str(failures[0])
    with pytest.raises(RequestError, match="was closed"):
        list(stream)
    for call in (llm.generate, llm.embed):
        with pytest.raises(RequestError, match="was closed"):
            call(PROMPTS[0])
    llm.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_told(llm: LLM, expected: list[str]) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            llm.generate(PROMPTS[0], PARAMS)
        except RequestError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        assert "loaded before a fork" in file.read()
    os.waitpid(child, 0)
    assert llm.generate(PROMPTS[0], PARAMS)[0].outputs[0].text == expected[0]


def test_tasks_stream_and_are_cancelled(artifact: Path, expected: list[str]) -> None:
    async def text_of(llm: AsyncLLM, prompt: str) -> str:
        return "".join([delta.text async for delta in llm.generate(prompt, PARAMS)])

    async def run() -> None:
        async with await AsyncLLM.open(artifact, num_threads=1) as llm:
            endless = SamplingParams(max_tokens=1900, ignore_eos=True)
            task = asyncio.create_task(llm.answer(llm.generate(PROMPTS[0], endless)))
            assert await asyncio.gather(*(text_of(llm, prompt) for prompt in PROMPTS)) == expected
            assert not task.done()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not llm.llm.engine.has_unfinished()
            async for _ in llm.generate(PROMPTS[0], endless):
                break
            with pytest.raises(RequestError, match="max_tokens"):
                await llm.answer(llm.generate(PROMPTS[0], SamplingParams(max_tokens=99999)))
            whole = await llm.answer(llm.chat([{"role": "user", "content": "Hello"}], PARAMS))
            assert whole.outputs[0].finish_reason in ("stop", "length")
            assert (await llm.embed(PROMPTS)).shape[0] == 6
            assert await asyncio.to_thread(llm.llm.generate, PROMPTS[0], PARAMS) is not None
        with pytest.raises(RequestError, match="was closed"):
            await text_of(llm, PROMPTS[0])

    asyncio.run(run())
