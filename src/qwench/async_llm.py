"""AsyncLLM: an LLM for asyncio, as in FastAPI or Gradio: answers are async iterators, and end when their task does.

    llm = AsyncLLM("path/to/model")
    async for delta in llm.chat([{"role": "user", "content": "Hello"}]): print(delta.text, end="")

One thread steps; requests of all tasks share its steps. Knows nothing of engines: it is a face of `LLM`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from qwench.errors import RequestError
from qwench.llm import LLM, Job
from qwench.runtime.sampling.sampling_params import SamplingParams
from qwench.targets.target import Float32
from qwench.text.chat import Message
from qwench.text.generation import Delta, RequestOutput
from qwench.text.pooled import Prompt


class _Inbox:
    """Deltas from the thread that steps to the loop of the task that waits for them."""

    def __init__(self) -> None:
        self._loop, self._queue = asyncio.get_running_loop(), asyncio.Queue[Delta | None]()

    def append(self, delta: Delta | None) -> None:
        self._loop.call_soon_threadsafe(self._queue.put_nowait, delta)

    async def take(self) -> Delta:
        """Raises RequestError when the model was closed, which None stands for."""
        if (delta := await self._queue.get()) is None:
            raise RequestError("this model was closed; load it again")
        return delta


class AsyncLLM:
    """Arguments and errors are those of `LLM`. Opening a model blocks; `await AsyncLLM.open(...)` doesn't."""

    def __init__(self, model: str | Path, **options: Any) -> None:
        self._llm = LLM(model, **options)
        self._inboxes: set[_Inbox] = set()
        self._thread = threading.Thread(target=self._llm.shared.step_for_ever, daemon=True)
        self._thread.start()

    @classmethod
    async def open(cls, model: str | Path, **options: Any) -> AsyncLLM:
        """The model, opened by another thread."""
        return await asyncio.to_thread(cls, model, **options)

    @property
    def llm(self) -> LLM:
        """What is beneath, for everything that has no name here; its methods may be called from any thread."""
        return self._llm

    async def generate(
        self, prompt: Prompt, params: SamplingParams | None = None, *, lora: str | None = None
    ) -> AsyncIterator[Delta]:
        """The answer to one prompt, text or token ids, as it comes; the last delta of a request has its whole `output`.
        Ending the iteration, or cancelling its task, ends the request. Raises RequestError."""
        jobs, _ = await asyncio.to_thread(self._llm.prompt_jobs, prompt, params, lora)
        async for delta in self._follow(jobs):
            yield delta

    async def chat(
        self, messages: Sequence[Message], params: SamplingParams | None = None, *, lora: str | None = None,
        **template: Any,
    ) -> AsyncIterator[Delta]:  # fmt: skip
        """The same for a conversation, through the model's chat template."""
        jobs, _ = await asyncio.to_thread(self._llm.chat_jobs, messages, params, lora, template)
        async for delta in self._follow(jobs):
            yield delta

    async def answer(self, deltas: AsyncIterator[Delta]) -> RequestOutput:
        """The whole of an answer: `await llm.answer(llm.generate(...))`."""
        output = None
        async for delta in deltas:
            output = delta.output or output
        assert output is not None, "the last delta of a request has its output"
        return output

    async def embed(self, prompts: Prompt | Sequence[Prompt], **options: Any) -> Float32:
        """As LLM.embed, in another thread."""
        return await asyncio.to_thread(self._llm.embed, prompts, **options)

    async def _follow(self, jobs: list[Job]) -> AsyncIterator[Delta]:
        """Of the first job: a list of prompts would be several answers in one iteration."""
        inbox, shared = _Inbox(), self._llm.shared
        self._inboxes.add(inbox)
        names: list[str] = []
        try:
            names = await asyncio.to_thread(shared.open, lambda engine: self._llm.add_jobs(engine, jobs[:1]), inbox)
            is_whole = False
            while not is_whole:
                delta = await inbox.take()
                is_whole = delta.is_whole
                self._llm.raise_if_failed(delta, is_single=True)
                yield delta
        finally:
            # Not awaited: a cancelled task would be interrupted here again. It takes a step of the engine at most.
            shared.forget(names)
            self._inboxes.discard(inbox)

    async def close(self) -> None:
        """Ends what is unfinished and frees cache and threads. Idempotent."""
        await asyncio.to_thread(self._llm.close)
        await asyncio.to_thread(self._thread.join)
        for inbox in self._inboxes:
            inbox.append(None)

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
