"""The engine process: a model, its TextEngine, and a loop that steps as long as there is work.

Its main thread only steps; one thread reads requests while a step runs, another writes what the steps gave, so that
neither a long message nor a busy parent ever holds up a step. Knows no HTTP and no templates. Started by
EngineClient, which documents the messages.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import os
import queue
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from qwench.config import QwenchConfig
from qwench.errors import CapacityError, ConfigError, QwenchError, RequestError
from qwench.llm import LLM
from qwench.parallel.team_executor import TeamExecutor
from qwench.runtime.outputs import TokenLogprobs
from qwench.runtime.pooling import PoolingParams
from qwench.runtime.prefix_file import SUFFIX
from qwench.runtime.structured_output.grammar import Grammar
from qwench.serve.processes.wire import Link, Message, open_link, params_from_json, params_to_json
from qwench.text.generation import CHAT_END_TOKENS, Delta
from qwench.text.thoughts import has_thoughts
from qwench.text.tokenizer import Tokenizer, special_ids
from qwench.text.tool_calls import tag_kind

METRICS_EVERY_S = 0.1
LAST_WORDS_S = 1.0  # to send what is still to be said, when the parent doesn't read


def main() -> int:
    link, options = open_link()
    try:
        llm = LLM(
            options["model"], config=QwenchConfig.from_dict(options["config"]), num_threads=options["num_threads"],
            enable_prefix_caching=options["enable_prefix_caching"], lora=options["lora"],
            draft=options["draft"],
        )  # fmt: skip
        if options["prefix_dir"] is not None:
            load_prefixes(llm, Path(options["prefix_dir"]))
    except (QwenchError, OSError, MemoryError) as error:
        with contextlib.suppress(OSError):  # the parent may have given up already
            link.send({"failed": str(error) or type(error).__name__})
        return 2
    EngineProcess(llm, link).run()
    os._exit(0)  # the reader and writer threads block for ever


def load_prefixes(llm: LLM, folder: Path) -> None:
    """Those of a folder into the cache. Raises QwenchError when one of them can't be used or they don't all fit."""
    if not folder.is_dir():
        raise ConfigError(f"--prefix-dir {folder} is not a folder")
    num_tokens = sum(llm.load_prefix(path) for path in sorted(folder.glob(f"*{SUFFIX}")))
    room = llm.engine.cache.num_blocks // len(llm.engine.scheduler.windows) * llm.engine.cache.block_size
    if num_tokens > room:
        raise CapacityError(
            f"the prefixes in {folder} have {num_tokens} tokens and the cache holds {room}; give it more memory "
            "(--kvcache-num-blocks) or remove some"
        )


class EngineProcess:
    """The loop. Ends when the parent does, or when one of several ranks is lost: then the parent starts all of them
    again."""

    def __init__(self, llm: LLM, link: Link) -> None:
        self._llm, self._link = llm, link
        self._inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._metrics_s = 0.0
        self._to_compile: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._compiling: set[str] = set()  # requests that wait for their grammar

    def run(self) -> None:
        if isinstance(executor := self._llm.engine.executor, TeamExecutor):
            executor.tell_of_loss(lambda: self._inbox.put(None))
        self._outbox.put({"ready": self._description()})
        writer, *others = (threading.Thread(target=w, daemon=True) for w in (self._write, self._read, self._compile))
        for thread in (writer, *others):
            thread.start()
        while self._take_in():
            self._step()
        lost = executor.lost if isinstance(executor, TeamExecutor) else None
        self._llm.close()  # before the parent hears of it, which ends this process
        if lost:
            self._outbox.put({"failed": lost})
        self._outbox.put(None)
        writer.join(LAST_WORDS_S)

    def _read(self) -> None:
        while (message := self._link.receive()) is not None:
            self._inbox.put(message)
        self._inbox.put(None)

    def _write(self) -> None:
        try:
            while (message := self._outbox.get()) is not None:
                self._link.send(message)
        except OSError:
            self._inbox.put(None)

    def _compile(self) -> None:
        """Compiles grammars, one after the other, and gives the requests that wait for them back to the loop."""
        grammars = self._llm.text_engine.grammars
        if grammars is None:
            return  # the text engine refuses them
        with contextlib.suppress(ConfigError):
            grammars.prepare()  # now, so that the first request with a grammar doesn't wait for it
        while True:
            self._compile_one(self._to_compile.get())

    def _compile_one(self, message: Message) -> None:
        grammars = self._llm.text_engine.grammars
        assert grammars is not None
        try:
            grammars.compile(Grammar(**message["params"]["grammar"]))
        except BaseException as error:  # a panic of the library's, too: without this thread requests wait for ever
            message["refusal"] = str(error) or type(error).__name__
        self._inbox.put(message)

    def _take_in(self) -> bool:
        """Handles all messages, waiting for one if there's nothing to do; False when the parent is gone."""
        engine = self._llm.text_engine
        while not (self._inbox.empty() and engine.has_unfinished()):
            if self._inbox.empty():
                self._outbox.put({"metrics": self._metrics()})
            message = self._inbox.get()
            if message is None:
                return False
            if "abort" in message:
                engine.abort(message["abort"])
                self._compiling.discard(message["abort"])
            elif "load_lora" in message or "unload_lora" in message:
                self._change_lora(message)
            elif not self._waits_for_grammar(message):
                self._add(message["add"], message)
        return True

    def _waits_for_grammar(self, message: Message) -> bool:
        """Whether the request can't be added now: its grammar is sent to be compiled, or it was aborted meanwhile."""
        name, grammars = message["add"], self._llm.text_engine.grammars
        if name in self._compiling:
            self._compiling.discard(name)
            return False
        if "was_compiled" in message:
            return True  # aborted meanwhile
        grammar = message.get("params", {}).get("grammar")
        if grammar is None or grammars is None or grammars.known(Grammar(**grammar)) is not None:
            return False
        self._compiling.add(name)
        self._to_compile.put({**message, "was_compiled": True})
        return True

    def _add(self, name: str, message: Message) -> None:
        if "refusal" in message:
            self._outbox.put({"refused": name, "reason": message["refusal"]})
            return
        engine, prompt = self._llm.text_engine, message["prompt"]
        wish = {"request_id": name, "cache_salt": message["salt"], "adapter": message["lora"]}
        try:
            if "pooling" in message:
                engine.add_pooled(prompt, PoolingParams(**message["pooling"]), **wish)
            else:
                engine.add(prompt, params_from_json(message["params"]), **wish)
        except RequestError as error:
            self._outbox.put({"refused": name, "reason": str(error)})

    def _change_lora(self, message: Message) -> None:
        """Between two steps, which wait meanwhile."""
        name, error = message.get("load_lora") or message["unload_lora"], None
        try:
            if "load_lora" in message:
                self._llm.load_lora(name, message["folder"], replace=message["replace"])
            else:
                self._llm.unload_lora(name)
        except (QwenchError, MemoryError) as refusal:
            error = str(refusal) or type(refusal).__name__
        self._outbox.put({"lora": name, "error": error})

    def _step(self) -> None:
        rows = [piece_of(delta, self._llm.tokenizer) for delta in self._llm.text_engine.step()]
        message: Message = {}
        if rows:
            message["deltas"] = rows
        now = time.monotonic()
        if now - self._metrics_s > METRICS_EVERY_S:
            self._metrics_s = now
            message["metrics"] = self._metrics()
        if message:
            self._outbox.put(message)

    def _metrics(self) -> Message:
        """As of now: the engine's own are as of its last step, and requests may have come or gone since."""
        engine = self._llm.engine
        metrics = engine.metrics
        metrics.num_running, metrics.num_waiting = len(engine.scheduler.running), len(engine.scheduler.waiting)
        metrics.blocks_used = metrics.blocks_total - engine.scheduler.pool.num_free
        return metrics.to_dict()

    def _description(self) -> Message:
        """What engine_client.EngineInfo holds."""
        llm = self._llm
        chat_ends = () if llm.tokenizer is None else special_ids(llm.tokenizer, CHAT_END_TOKENS)
        return {
            "limits": dataclasses.asdict(llm.engine.limits),
            "max_num_seqs": llm.engine.max_num_seqs,
            "hidden_size": llm.engine.executor.embed(np.zeros(1, np.int32)).shape[1],
            "loras": llm.loras,
            "defaults": params_to_json(llm.defaults.params),
            "chat_end_token_ids": [token for token in chat_ends if token not in llm.engine.eos_token_ids],
            "tool_tags": "text" if llm.tokenizer is None else tag_kind(llm.tokenizer),
            "has_thoughts": llm.tokenizer is not None and has_thoughts(llm.tokenizer),
            "embedding": dataclasses.asdict(llm.settings),
            "classifier": dataclasses.asdict(llm.classifier),
        }


def piece_of(delta: Delta, tokenizer: Tokenizer | None) -> list[Any]:
    """The request's name and behind it the fields of engine_client.Piece."""
    error, num_cached, logprobs, embedding, prompt_logprobs = delta.error, 0, None, None, None
    if delta.output is not None:
        error = delta.output.outputs[delta.index].error
        num_cached = delta.output.outputs[0].timings.num_cached_tokens
    if delta.logprobs is not None and delta.reasoning is None:
        logprobs = _logprobs(delta.token_ids[0], delta.logprobs, tokenizer)
    if delta.prompt_logprobs is not None:
        entries = zip(delta.prompt_token_ids or (), delta.prompt_logprobs, strict=True)
        prompt_logprobs = [_logprobs(*entry, tokenizer) for entry in entries]
    if delta.embedding is not None:
        embedding = base64.b64encode(delta.embedding.astype("<f4").tobytes()).decode()
    return [
        delta.request_id, delta.index, delta.text, delta.token_ids, logprobs, delta.finish_reason,
        delta.stop_reason, num_cached, error and [type(error).__name__, str(error)], embedding,
        prompt_logprobs, delta.reasoning,
    ]  # fmt: skip


def _logprobs(token_id: int, logprobs: TokenLogprobs | None, tokenizer: Tokenizer | None) -> list[Any]:
    """As Piece.logprobs has it; without numbers for a prompt's first token."""
    if logprobs is None:
        return [*_token(token_id, None, tokenizer), []]
    top = [_token(token, logprob, tokenizer) for token, logprob in logprobs.top]
    return [*_token(token_id, logprobs.logprob, tokenizer), top]


def _token(token_id: int, logprob: float | None, tokenizer: Tokenizer | None) -> list[Any]:
    """Id, bytes (as the characters of Latin-1, for JSON) and log-probability."""
    text = b"" if tokenizer is None else tokenizer.token_bytes(token_id)
    return [token_id, text.decode("latin-1"), logprob]


if __name__ == "__main__":
    sys.exit(main())
