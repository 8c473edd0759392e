"""The client of the engine process: submits prompts, hands out the pieces of the answers as they come.

Messages to the process:
    {"add": name, "prompt": token ids, "params": ..., "salt": ..., "lora": name or null}
    the same with "pooling" in place of "params", for an embedding or scores
    {"abort": name}
    {"load_lora": name, "folder": path, "replace": bool} and {"unload_lora": name}
From it:
    {"ready": EngineInfo}
    {"deltas": [[name, *Piece], ...], "metrics": {...}}
    {"refused": name, "reason": ...}
    {"lora": name, "error": reason or null}, when an adapter was loaded or unloaded
Knows no API's JSON.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from qwench.checkpoint.sentence_transformers import EmbeddingSettings
from qwench.errors import DeadlineError, GrammarError
from qwench.runtime.limits import RequestLimits
from qwench.runtime.outputs import FinishReason
from qwench.runtime.pooling import PoolingParams
from qwench.runtime.sampling.sampling_params import SamplingParams
from qwench.serve.failures import ApiError
from qwench.serve.processes.children import Child
from qwench.serve.processes.supervisor import Supervised
from qwench.serve.processes.wire import Message, params_from_json, params_to_json
from qwench.text.scoring import ClassifierSettings
from qwench.text.tool_calls import TagKind

logger = logging.getLogger(__name__)


class Piece(NamedTuple):
    """What one token adds to an answer: the text that is now certain, and with finish_reason the end.

    choice: prompt's place times n, plus the sample's index. logprobs: [token_id, text, logprob, [[token_id, text,
    logprob], ...]], of the token and of the likeliest ones, text as its bytes in Latin-1.
    num_cached: prompt tokens found in the KV cache,
    known with the last piece of a prompt. error: why finish_reason is "error": kind of QwenchError and message.
    embedding: base64 of the little-endian fp32 numbers, where one was asked for. prompt_logprobs: as logprobs, for each
    token of the prompt, of the first without numbers; with the first piece of a prompt's first choice. reasoning: what
    the token adds to the thought before the text; None where it isn't one of the thought's, which have no logprobs.
    """

    choice: int
    text: str
    token_ids: list[int]
    logprobs: list[Any] | None
    finish_reason: FinishReason | None
    stop_reason: int | str | None
    num_cached: int
    error: list[str] | None
    embedding: str | None
    prompt_logprobs: list[list[Any]] | None
    reasoning: str | None = None

    def without_end(self) -> Piece:
        """Without the log-probability of the end-of-turn token, which isn't part of the answer."""
        is_end = self.finish_reason == "stop" and not isinstance(self.stop_reason, str)
        return self._replace(logprobs=None) if is_end else self

    def without_answer(self) -> Piece:
        """Without the generated token: max_tokens 0, where only the prompt's log-probabilities are asked for."""
        end: FinishReason | None = "length" if self.finish_reason in ("stop", "length") else self.finish_reason
        return self._replace(text="", token_ids=[], logprobs=None, finish_reason=end, stop_reason=None)


@dataclass(frozen=True)
class EngineInfo:
    """What the engine process says about its model. chat_end_token_ids: end a chat turn beside the model's own ends.
    tool_tags: what <tool_call> is to its tokenizer. has_thoughts: the model thinks before it answers. embedding,
    classifier: as of LLM."""

    limits: RequestLimits
    max_num_seqs: int
    hidden_size: int
    defaults: SamplingParams
    chat_end_token_ids: tuple[int, ...]
    tool_tags: TagKind
    has_thoughts: bool
    embedding: EmbeddingSettings
    classifier: ClassifierSettings

    @classmethod
    def from_message(cls, info: Message) -> EngineInfo:
        return cls(
            RequestLimits.from_dict(info["limits"]), info["max_num_seqs"], info["hidden_size"],
            params_from_json(info["defaults"]), tuple(info["chat_end_token_ids"]), info["tool_tags"],
            info["has_thoughts"],
            EmbeddingSettings(**info["embedding"]),
            ClassifierSettings(tuple(info["classifier"]["labels"]), info["classifier"]["pad_token_id"]),
        )  # fmt: skip

    def for_chat(self, params: SamplingParams) -> SamplingParams:
        """For a chat turn, as text.generation.chat_params does it."""
        ends = () if params.ignore_eos else self.chat_end_token_ids
        return dataclasses.replace(params, thinks=self.has_thoughts, stop_token_ids=(*params.stop_token_ids, *ends))


class ChoiceTimes(NamedTuple):
    """When things happened to one answer, on the `time.monotonic` clock in seconds. start_s: its request's arrival."""

    reason: FinishReason
    num_tokens: int
    start_s: float
    first_token_s: float | None
    end_s: float


class Generation:
    """The answers to one or several prompts, as they are made. Take from it until `is_finished`, or abort it."""

    def __init__(
        self, client: EngineClient, num_choices: int, start_s: float, on_end: Callable[[], None],
        view: Callable[[Piece], Piece] = Piece.without_end,
    ) -> None:  # fmt: skip
        self._client, self._start_s, self._on_end, self._view = client, start_s, on_end, view
        self.names: list[str] = []
        self.is_over = False  # nothing more will come from the engine
        self._open = {choice: _Progress() for choice in range(num_choices)}
        self._pieces: list[Piece] = []
        self._failure: ApiError | None = None
        self._wake = asyncio.Event()

    @property
    def is_finished(self) -> bool:
        return self.is_over and not self._pieces and self._failure is None

    async def take(self) -> list[Piece]:
        """All pieces that have come since, at least one. Raises ApiError when the engine failed; empty when the
        generation was aborted."""
        while not self._pieces and not self.is_over:
            self._wake.clear()
            await self._wake.wait()
        if not self._pieces and self._failure is not None:
            raise self._failure
        pieces, self._pieces = self._pieces, []
        return pieces

    def push(self, piece: Piece) -> None:
        piece = self._view(piece)
        self._pieces.append(piece)
        self._wake.set()
        progress = self._open[piece.choice]
        progress.num_tokens += len(piece.token_ids)
        if progress.first_token_s is None and piece.token_ids:
            progress.first_token_s = time.monotonic()
        if piece.finish_reason is not None:
            self._end_choice(piece.choice, piece.finish_reason)
            if piece.finish_reason == "error":
                self.fail(_failure(*(piece.error or ("QwenchError", "the step failed"))))
            elif not self._open:
                self._end()

    def fail(self, failure: ApiError) -> None:
        if not self.is_over:
            self._failure = failure
            self.abort()

    def abort(self) -> None:
        """Ends what isn't finished; its cache blocks are free before the next step. Idempotent."""
        if not self.is_over:
            for name in self.names:
                self._client.abort(name)
            self._end()

    def _end_choice(self, choice: int, reason: FinishReason) -> None:
        progress = self._open.pop(choice)
        self._client.on_choice_end(
            ChoiceTimes(reason, progress.num_tokens, self._start_s, progress.first_token_s, time.monotonic())
        )

    def _end(self) -> None:
        for choice in list(self._open):
            self._end_choice(choice, "abort" if self._failure is None else "error")
        self.is_over = True
        self._client.forget(self.names)
        self._wake.set()
        self._on_end()


@dataclass
class _Progress:
    """What is counted of an answer that isn't over."""

    num_tokens: int = 0
    first_token_s: float | None = None


def _failure(kind: str, message: str) -> ApiError:
    if kind == DeadlineError.__name__:
        return ApiError(504, message, "server_error", code="timeout")
    if kind == GrammarError.__name__:
        return ApiError.bad_request(message, code="grammar_too_complex")
    return ApiError.server_error(message)


def no_adapter(name: str) -> ApiError:
    return ApiError(404, f"there is no adapter {name!r}", code="model_not_found", param="lora_name")


class EngineClient(Supervised):
    """info: None while there is no engine that could work. metrics: runtime.metrics.Metrics, as last received.
    on_choice_end: called for each answer that ends. lora_folders: by name, the adapters that it shall have, whenever it
    is started again."""

    def __init__(self, child: Child, lora_folders: Mapping[str, str] | None = None) -> None:
        super().__init__(child)
        self._lora_folders = dict(lora_folders or {})
        self._lora_waits: dict[str, asyncio.Future[None]] = {}  # by name, for the answer to a message
        self.info: EngineInfo | None = None
        self.metrics: dict[str, float] = {}
        self.on_choice_end: Callable[[ChoiceTimes], None] = lambda times: None
        self._open: dict[str, tuple[Generation, int]] = {}  # request name -> its generation, its first choice
        self._names = itertools.count()

    def set_memory(self, num_bytes: int) -> None:
        """What the model may take from its next start on."""
        self._child.options["config"]["memory"] = num_bytes

    def submit(
        self, prompts: Sequence[list[int]], params: Sequence[SamplingParams], start_s: float,
        on_end: Callable[[], None], *, salt: str = "", view: Callable[[Piece], Piece] = Piece.without_end,
        lora: str | None = None,
    ) -> Generation:  # fmt: skip
        """Queues the prompts, checked by `info.limits`, each with its params, which all have one `n`. start_s: when the
        request came, on the monotonic clock. on_end: called once, when all have ended. view: applied to each piece.
        lora: one of `loras`."""
        n = params[0].n
        generation = Generation(self, len(prompts) * n, start_s, on_end, view)
        wishes = [{"params": params_to_json(own), "salt": salt, "lora": lora} for own in params]
        self._queue(generation, prompts, n, wishes)
        return generation

    def pool(
        self, prompts: Sequence[list[int]], pooling: PoolingParams, start_s: float, on_end: Callable[[], None],
        *, salt: str = "", lora: str | None = None,
    ) -> Generation:  # fmt: skip
        """As `submit`, for embeddings and scores: each prompt gets a single piece."""
        generation = Generation(self, len(prompts), start_s, on_end)
        wish = {"pooling": dataclasses.asdict(pooling), "salt": salt, "lora": lora}
        self._queue(generation, prompts, 1, [wish] * len(prompts))
        return generation

    def _queue(self, generation: Generation, prompts: Sequence[list[int]], n: int, wishes: list[Message]) -> None:
        for index, (prompt, wish) in enumerate(zip(prompts, wishes, strict=True)):
            name = str(next(self._names))
            generation.names.append(name)
            self._open[name] = (generation, index * n)
            self.send({"add": name, "prompt": prompt, **wish})

    @property
    def loras(self) -> tuple[str, ...]:
        """The adapters that requests can name."""
        return tuple(self._lora_folders)

    async def load_lora(self, name: str, folder: str, *, replace: bool = False) -> None:
        """Raises ApiError when the name is taken, unless it's to be replaced, or the engine refuses what is in the
        folder."""
        if name in self._lora_waits or (name in self._lora_folders and not replace):
            raise ApiError.bad_request(f"there is already an adapter {name!r}; unload it first", param="lora_name")
        await self._change_lora(name, {"load_lora": name, "folder": folder, "replace": replace})
        self._lora_folders[name] = folder

    async def unload_lora(self, name: str) -> None:
        """Answers that it is working on end as they began. Raises ApiError 404 for an unknown name."""
        if name not in self._lora_folders or name in self._lora_waits:
            raise no_adapter(name)
        folder = self._lora_folders.pop(name)
        try:
            await self._change_lora(name, {"unload_lora": name})
        except BaseException:
            self._lora_folders[name] = folder
            raise

    async def _change_lora(self, name: str, message: Message) -> None:
        if self.info is None:
            raise ApiError.unavailable("the model is being loaded; try again")
        self._lora_waits[name] = asyncio.get_running_loop().create_future()
        try:
            self.send(message)
            await self._lora_waits[name]
        finally:
            del self._lora_waits[name]

    def abort(self, name: str) -> None:
        if self._open.pop(name, None) is not None:
            self.send({"abort": name})

    def forget(self, names: Sequence[str]) -> None:
        """Ignores further messages about these requests."""
        for name in names:
            self._open.pop(name, None)

    def on_ready(self, info: Message) -> None:
        self.info = EngineInfo.from_message(info)
        loaded = set(info["loras"])  # those that the command line named; requests may have changed them before a crash
        for name, folder in self._lora_folders.items():
            if name not in loaded:
                self.send({"load_lora": name, "folder": folder, "replace": True})
        for name in loaded - set(self._lora_folders):
            self.send({"unload_lora": name})

    def on_message(self, message: Message) -> None:
        if "refused" in message:
            generation, _ = self._open.pop(message["refused"], (None, 0))
            if generation is not None:
                generation.fail(ApiError.bad_request(message["reason"]))
        if (wait := self._lora_waits.get(message.get("lora", ""))) is not None and not wait.done():
            reason = message["error"]
            wait.set_result(None) if reason is None else wait.set_exception(ApiError.bad_request(reason))
        for name, *fields in message.get("deltas", ()):
            generation, first = self._open.get(name, (None, 0))
            if generation is not None:  # else it was aborted while this was on its way
                generation.push(Piece(first + fields[0], *fields[1:]))
        self.metrics = message.get("metrics", self.metrics)

    def on_down(self) -> None:
        self.info, self.metrics = None, {}
        for generation in {generation for generation, _ in self._open.values()}:
            generation.fail(ApiError.unavailable("the engine died while it worked on this; send the request again"))
        self._open.clear()
        for wait in self._lora_waits.values():
            if not wait.done():
                wait.set_exception(ApiError.unavailable("the engine died meanwhile; try again"))
