"""One served model: its two processes, its admission, and the way from prompt to Generation.

The one path from every API to the engine; knows no API's JSON. Made by served_app.py; models.py finds it by name.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from qwench.errors import RequestError
from qwench.runtime.sampling.sampling_params import SamplingParams
from qwench.serve.admission import Admission
from qwench.serve.failures import ApiError
from qwench.serve.models.model_settings import ModelSettings
from qwench.serve.processes.children import Children
from qwench.serve.processes.engine_client import EngineClient, EngineInfo, Generation, Piece
from qwench.serve.processes.supervisor import StartError
from qwench.serve.processes.text_client import TextClient
from qwench.serve.protocol.validation.reading import ignore
from qwench.serve.settings import ServeSettings

MAX_LOGPROBS = 1 << 18  # of one request; each takes about 250 bytes while it is gathered
ANY_LENGTH = 1 << 40  # of prompts that are truncated, or only counted
BODY_BYTES, BODY_BYTES_PER_TOKEN = 256 << 10, 32  # what a body may have by default


class ServedModel(NamedTuple):
    """What a request names as its model. lora: the name of the adapter that it is, if it is one."""

    service: Service
    name: str
    lora: str | None = None

    def as_answered(self) -> ServedModel:
        """Under the name that answers have."""
        return self._replace(name=self.lora or self.service.name)


class Service:
    """One model and what answers need of it. settings: of the server; model: of this one."""

    def __init__(
        self, settings: ServeSettings, model: ModelSettings, engine: EngineClient, text: TextClient
    ) -> None:  # fmt: skip
        self.settings, self.model, self.engine, self.text = settings, model, engine, text
        self.admission = Admission(settings.max_queued)

    @classmethod
    def of(cls, settings: ServeSettings, model: ModelSettings, children: Children) -> Service:
        """Over a model's processes, whether or not they are started."""
        engine = EngineClient(children.engine, {name: str(path) for name, path in model.lora.items()})
        return cls(settings, model, engine, TextClient(children.text, time_limit_s=settings.text_limit_s))

    async def start(self, memory: int | None = None) -> None:
        """Starts the processes that aren't started, and waits until they can work. memory: bytes that the model may
        take; None: as it was told before. Raises StartError."""
        if not self.model.folder.is_dir():
            raise StartError(f"there is no folder {self.model.folder} any more")
        if memory is not None:
            self.engine.set_memory(memory)
        await asyncio.gather(self.engine.start(), self.text.start())

    async def stop(self) -> None:
        """Ends them."""
        await asyncio.gather(self.engine.stop(), self.text.stop())

    @property
    def is_ready(self) -> bool:
        return self.engine.info is not None and self.text.is_ready

    @property
    def name(self) -> str:
        """What the model is called in answers."""
        return self.model.names[0]

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """What requests can name: the model by its names, and its adapters."""
        names, adapters = self.model.names, self.engine.loras
        return (*(ServedModel(self, name) for name in names), *(ServedModel(self, name, name) for name in adapters))

    def check_room(self) -> None:
        """Raises ApiError 503 while there's no engine, 429 when not even one more answer may wait."""
        self.engine_info()
        self.admission.check_room()

    @property
    def has_room(self) -> bool:
        """Whether one more answer may wait, of an engine that is there."""
        self.engine_info()
        return self.admission.has_room

    def engine_info(self) -> EngineInfo:
        """Raises ApiError 503 while there's no engine."""
        info = self.engine.info
        if info is None:
            raise ApiError.unavailable("the model is being loaded; try again")
        self.admission.max_running = info.max_num_seqs
        return info

    def max_body_bytes(self) -> int:
        """What a prompt that fills the context can need, as JSON."""
        if self.settings.max_body_bytes is not None:
            return self.settings.max_body_bytes
        return BODY_BYTES + BODY_BYTES_PER_TOKEN * (self.max_seq_len or 0)

    @property
    def max_seq_len(self) -> int | None:
        """Tokens of prompt and answer; None while that isn't known."""
        info = self.engine.info
        return self.model.max_seq_len if info is None else info.limits.max_seq_len

    async def encode(self, prompts: Sequence[str | list[int]], max_tokens: int) -> list[list[int]]:
        """Texts as tokens; tokens stay what they are."""
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        encoded = iter(await self.text.encode(texts, max_tokens)) if texts else iter(())
        return [next(encoded) if isinstance(prompt, str) else prompt for prompt in prompts]

    async def submit(
        self, make_prompts: Callable[[], Awaitable[list[list[int]]]], num_prompts: int, params: SamplingParams,
        salt: str | None, *, view: Callable[[Piece], Piece] = Piece.without_end, format_field: str | None = None,
        lora: str | None = None, truncate: int | None = None,
    ) -> tuple[Generation, list[list[int]]]:  # fmt: skip
        """Takes places in the queue, writes the prompts as tokens, and queues them. view: as in
        EngineClient.submit. format_field: the field that the grammar came from. lora: of ServedModel.
        truncate: as in `last_of`.
        Raises ApiError."""
        start_s = time.monotonic()
        release = self.admission.admit(num_prompts * params.n)
        try:
            limits = self.engine_info().limits
            if params.grammar is not None:
                grammar = await self.text.try_grammar(params.grammar, format_field)
                params = dataclasses.replace(params, grammar=grammar)
                for keyword in grammar.left_aside:
                    ignore(f"{format_field}.{keyword}")
            room = params.max_tokens if (params.max_tokens or limits.max_seq_len) < limits.max_seq_len else None
            prompts = [last_of(prompt, truncate, limits.max_seq_len - (room or 1)) for prompt in await make_prompts()]
            wishes = [fitting(params, prompt, limits.max_seq_len) for prompt in prompts]
            for prompt, wish in zip(prompts, wishes, strict=True):
                limits.check(prompt, wish)
            check_logprobs(prompts, wishes, limits.max_seq_len)
            generation = self.engine.submit(prompts, wishes, start_s, release, salt=salt or "", view=view, lora=lora)
            return generation, prompts
        except RequestError as error:
            release()
            raise ApiError.bad_request(str(error)) from None
        except BaseException:
            release()
            raise


def last_of(prompt: list[int], truncate: int | None, room: int) -> list[int]:
    """The last `truncate` tokens of a prompt, as vLLM has truncate_prompt_tokens; -1: as many as there is room for."""
    if truncate is None:
        return prompt
    return prompt[-(room if truncate == -1 else truncate) :] if truncate else []


def first_of(prompt: list[int], truncate: int | None, room: int) -> list[int]:
    """The first ones in the same way."""
    if truncate is None:
        return prompt
    return prompt[: room if truncate == -1 else truncate]


def check_length(prompt: list[int], max_seq_len: int) -> None:
    """Raises ApiError with the code that clients look for when a prompt doesn't fit the context."""
    if len(prompt) >= max_seq_len:
        raise ApiError.bad_request(
            f"This model's maximum context length is {max_seq_len} tokens. However, your prompt has {len(prompt)} "
            "tokens, and an answer needs one more at least. Please shorten the prompt.",
            param="messages", code="context_length_exceeded",
        )  # fmt: skip


def fitting(params: SamplingParams, prompt: list[int], max_seq_len: int) -> SamplingParams:
    """With no more tokens of an answer than the context has room for. Raises ApiError and RequestError."""
    check_length(prompt, max_seq_len)
    room = max_seq_len - len(prompt)
    is_more = params.max_tokens is not None and params.max_tokens > room
    return dataclasses.replace(params, max_tokens=room) if is_more else params


def check_logprobs(prompts: list[list[int]], wishes: list[SamplingParams], max_seq_len: int) -> None:
    """Raises ApiError when the request could get more log-probabilities than memory is to hold."""
    count = 0
    for prompt, params in zip(prompts, wishes, strict=True):
        if params.logprobs is not None:
            count += (params.max_tokens or max_seq_len - len(prompt)) * params.n * (params.logprobs + 1)
        if params.prompt_logprobs is not None:
            count += len(prompt) * (params.prompt_logprobs + 1)
    if count > MAX_LOGPROBS:
        raise ApiError.bad_request(
            f"the answer could have {count} log-probabilities, and no more than {MAX_LOGPROBS} are given at once; "
            "lower max_tokens, n or the number of likeliest tokens",
            param="logprobs",
        )


def new_id(prefix: str, separator: str = "-") -> str:
    return f"{prefix}{separator}{uuid.uuid4().hex}"
