"""LLM: a model and everything it needs to answer, for use from Python.

    llm = LLM("path/to/model")
    llm.generate("Once upon a time", SamplingParams(max_tokens=64))[0].outputs[0].text
    for delta in llm.chat([{"role": "user", "content": "Hello"}], stream=True): print(delta.text, end="")

    llm = LLM("path/to/model", lora={"sql": "path/to/adapter"})
    llm.generate(["SELECT", "Once upon a time"], lora=["sql", None])

    LLM("path/to/model", draft="path/to/small/model")  # the same answers, sooner

Opens the model (compiling a checkpoint first), and lets one TextEngine run until the answers are there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, overload

import numpy as np

import qwench
from qwench.checkpoint.sentence_transformers import EmbeddingSettings
from qwench.checkpoint.tokenizer_files import has_tokenizer
from qwench.config import QwenchConfig
from qwench.errors import CapacityError, PrefixError, RequestError
from qwench.lora.peft_folder import read_adapter
from qwench.program.models import adaptable_shapes
from qwench.progress import ProgressCallback
from qwench.runtime.engine import Engine
from qwench.runtime.loading import load_engine
from qwench.runtime.metrics import Metrics
from qwench.runtime.prefix_file import SavedPrefix
from qwench.runtime.sampling.sampling_params import SamplingParams
from qwench.text.chat import Message, render_chat
from qwench.text.generation import Delta, GenerationDefaults, RequestOutput, TextEngine, chat_params
from qwench.text.pooled import Lora, PooledAnswers, Prompt, as_prompts, read_classifier
from qwench.text.scoring import ClassifierSettings
from qwench.text.shared_engine import SharedTextEngine
from qwench.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from qwench.artifact.artifact import Artifact

logger = logging.getLogger(__name__)

Params: TypeAlias = "SamplingParams | Sequence[SamplingParams] | None"


class Job(NamedTuple):
    """A prompt to be answered. lora: the name of its adapter."""

    text: str | None
    tokens: list[int]
    params: SamplingParams
    lora: str | None


class LLM(PooledAnswers):
    """A loaded model, for any number of threads: their requests share steps. Use it in a `with`, or `close()` it, to
    give its memory back at once. For asyncio there is `AsyncLLM`.

    model: an artifact, a checkpoint folder or a hub id. config or options: of QwenchConfig, as `weights="int8"`.
    num_threads: default: the processors this process may use. on_progress: told how far downloading or compiling is.
    lora: adapters to have beside the model, name -> folder as PEFT saves it; `load_lora` adds more.
    draft: a small model of the same tokenizer, named like `model`. It guesses tokens that the model then checks, some
    in one step, which changes no answer, only how soon it is there.
    Raises QwenchError of the kind that says why not.
    load_s: how long opening it took, in seconds.
    """

    def __init__(
        self, model: str | Path, *, config: QwenchConfig | None = None, num_threads: int | None = None,
        enable_prefix_caching: bool = True, on_progress: ProgressCallback | None = None,
        lora: Mapping[str, str | Path] | None = None, draft: str | Path | None = None, **options: Any,
    ) -> None:  # fmt: skip
        from qwench.load import resolve_model

        start = time.monotonic()
        config = QwenchConfig.merged(config, options)
        artifact = resolve_model(model, config, progress=on_progress)
        defaults = GenerationDefaults.from_folder(artifact.path)
        tokenizer = None
        if has_tokenizer(artifact.path):
            tokenizer = Tokenizer(artifact.path)
        else:
            logger.warning("%s has no tokenizer files: prompts must be token ids, answers have no text", model)
        eos_token_ids = _eos_token_ids(defaults, tokenizer, artifact.program.spec.vocab_size)
        engine = load_engine(
            artifact, num_threads=num_threads, enable_prefix_caching=enable_prefix_caching, eos_token_ids=eos_token_ids,
            draft=None if draft is None else _open_draft(draft, artifact, on_progress),
        )  # fmt: skip
        self._set_up(engine, tokenizer, defaults, artifact)
        for name, folder in (lora or {}).items():
            self.load_lora(name, folder)
        self.load_s = time.monotonic() - start

    @classmethod
    def from_engine(
        cls, engine: Engine, tokenizer: Tokenizer | None = None, defaults: GenerationDefaults | None = None
    ) -> LLM:
        """An LLM over an existing engine, which it closes."""
        llm = cls.__new__(cls)
        llm._set_up(engine, tokenizer, defaults or GenerationDefaults())
        llm.load_s = 0.0
        return llm

    def _set_up(
        self, engine: Engine, tokenizer: Tokenizer | None, defaults: GenerationDefaults,
        artifact: Artifact | None = None,
    ) -> None:  # fmt: skip
        self.engine, self.tokenizer, self.defaults = engine, tokenizer, defaults
        self._artifact = artifact
        self.settings, self.classifier = EmbeddingSettings(), ClassifierSettings()
        if artifact is not None:
            self.settings = EmbeddingSettings.from_folder(artifact.path)
            self.classifier = read_classifier(artifact.path, engine.limits.head.num_labels)
        self.text_engine = TextEngine(engine, tokenizer)
        self.shared = SharedTextEngine(self.text_engine)
        self._told: set[str] = set()

    @property
    def metrics(self) -> Metrics:
        return self.engine.metrics

    @property
    def loras(self) -> tuple[str, ...]:
        """The names of the adapters that are loaded."""
        return self.engine.adapters.names

    def load_lora(self, name: str, folder: str | Path, *, replace: bool = False) -> None:
        """Loads a LoRA adapter as PEFT saves it, to be used by its name, beside whatever else runs.

        replace: in place of the one of that name, if there is one. Raises CheckpointError when the folder holds none
        for this model, TargetError for one that can't be kept apart from the weights, RequestError for a name that is
        taken; then nothing has changed.
        """
        if self._artifact is None:
            raise RequestError("an LLM over an engine doesn't know its model, so it can't tell whose adapter that is")
        adapter = read_adapter(folder, adaptable_shapes(self._artifact.program.spec))
        with self.shared.turn():
            self.engine.adapters.load(name, adapter, replace=replace)

    def unload_lora(self, name: str) -> None:
        """Takes the name away; answers that run with it are finished first. Raises RequestError for an unknown one."""
        with self.shared.turn():
            self.engine.adapters.unload(name)

    @overload
    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: Params = None, *, stream: Literal[False] = False,
        progress: bool = False, lora: Lora = None,
    ) -> list[RequestOutput]: ...  # fmt: skip
    @overload
    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: Params = None, *, stream: Literal[True],
        progress: bool = False, lora: Lora = None,
    ) -> Iterator[Delta]: ...  # fmt: skip
    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: Params = None, *, stream: bool = False,
        progress: bool = False, lora: Lora = None,
    ) -> list[RequestOutput] | Iterator[Delta]:  # fmt: skip
        """Answers to one prompt or several (text or token ids), in their order; with `stream`, deltas as they come.

        params: for all prompts, or one per prompt. None: the defaults of the model's generation_config.json
        (temperature, top_k, top_p, min_p, repetition_penalty; greedy unless it says do_sample), until the end of
        text or context.
        lora: the name of a loaded adapter for all prompts, or one per prompt, None for the model itself. What a prompt
        is answered doesn't depend on the adapters of others.
        progress: show a bar. Raises RequestError before the first step if any of the requests is impossible; a single
        prompt's failure while it runs is raised, one of several is in its output as finish_reason "error".
        """
        return self._answer(*self.prompt_jobs(prompts, params, lora), stream, progress)

    @overload
    def chat(
        self, messages: Sequence[Message] | Sequence[Sequence[Message]], params: Params = None, *,
        stream: Literal[False] = False, progress: bool = False, lora: Lora = None, **template: Any,
    ) -> list[RequestOutput]: ...  # fmt: skip
    @overload
    def chat(
        self, messages: Sequence[Message] | Sequence[Sequence[Message]], params: Params = None, *,
        stream: Literal[True], progress: bool = False, lora: Lora = None, **template: Any,
    ) -> Iterator[Delta]: ...  # fmt: skip
    def chat(
        self, messages: Sequence[Message] | Sequence[Sequence[Message]], params: Params = None, *,
        stream: bool = False, progress: bool = False, lora: Lora = None, **template: Any,
    ) -> list[RequestOutput] | Iterator[Delta]:  # fmt: skip
        """As `generate`, for one conversation of messages or several, through the model's chat template.

        template: `tools`, `chat_template`, `add_generation_prompt` and whatever the template itself understands. With
        tools `qwench.text.tool_calls.parse` finds the calls in an answer's text.
        """
        return self._answer(*self.chat_jobs(messages, params, lora, template), stream, progress)

    def prompt_jobs(self, prompts: Prompt | Sequence[Prompt], params: Params, lora: Lora) -> tuple[list[Job], bool]:
        """What `generate` has to do, checked, and whether it is for a single prompt. Raises RequestError."""
        batch, is_single = as_prompts(prompts)
        tokens = [self.text_engine.encode(p) if isinstance(p, str) else [int(t) for t in p] for p in batch]
        texts = [p if isinstance(p, str) else None for p in batch]
        return self._jobs(texts, tokens, self._params_of(params, len(batch)), lora), is_single

    def chat_jobs(
        self, messages: Sequence[Message] | Sequence[Sequence[Message]], params: Params, lora: Lora,
        template: Mapping[str, Any],
    ) -> tuple[list[Job], bool]:  # fmt: skip
        """The same for `chat`."""
        if self.tokenizer is None:
            raise RequestError("this model has no tokenizer files, so no chat template; use generate with token ids")
        is_single = not messages or isinstance(messages[0], Mapping)
        conversations: Any = [messages] if is_single else messages
        texts = [render_chat(self.tokenizer, conversation, **template) for conversation in conversations]
        tokens = [self.tokenizer.encode(text, add_special_tokens=False) for text in texts]
        each = [
            chat_params(p, self.tokenizer, self.engine.eos_token_ids, has_tools=bool(template.get("tools")))
            for p in self._params_of(params, len(texts))
        ]
        return self._jobs(texts, tokens, each, lora), is_single

    def _params_of(self, params: Params, count: int) -> list[SamplingParams]:
        if params is None or isinstance(params, SamplingParams):
            return [params or self.defaults.params] * count
        if len(params) != count:
            raise RequestError(f"there are {count} prompts but {len(params)} sampling parameters; give one for each")
        return list(params)

    def _loras_of(self, lora: Lora, count: int) -> list[str | None]:
        """Of each prompt. Raises RequestError for a name that isn't loaded."""
        names = [lora] * count if lora is None or isinstance(lora, str) else list(lora)
        if len(names) != count:
            raise RequestError(f"there are {count} prompts but {len(names)} adapters; give one for each, or None")
        for name in dict.fromkeys(names):
            if name is not None:
                self.engine.adapters.find(name)
        return names

    def _jobs(
        self, texts: Sequence[str | None], tokens: list[list[int]], params: list[SamplingParams], lora: Lora
    ) -> list[Job]:
        jobs = list(map(Job, texts, tokens, params, self._loras_of(lora, len(tokens))))
        for job in jobs:
            self.text_engine.check(job.tokens, job.params)
            self._tell_left_aside(job.params)
        return jobs

    def _answer(
        self, jobs: list[Job], is_single: bool, stream: bool, progress: bool
    ) -> list[RequestOutput] | Iterator[Delta]:
        deltas = self._run(jobs, is_single)
        if progress:
            deltas = _with_progress(deltas, len(jobs))
        if stream:
            return deltas
        finished = {delta.prompt_index: delta.output for delta in deltas if delta.output is not None}
        return [finished[i] for i in range(len(jobs))]

    def save_prefix(self, prompt: Prompt, path: str | Path) -> int:
        """Saves the KV cache blocks of a prompt to a file, for `load_prefix`; computes them first if necessary.

        Returns how many tokens that are: as many as fill blocks of the cache. Raises RequestError for a prompt that
        fills none or can't be read, CapacityError when the disk is full, PrefixError when nothing can be written there.
        """
        model = self._fingerprint()
        ids = np.array(self.text_engine.encode(prompt) if isinstance(prompt, str) else prompt, np.int32)
        size = self.engine.cache.block_size
        count = len(ids) // size * size
        if not self.engine.scheduler.enable_prefix_caching:
            raise RequestError("without prefix caching there are no prefixes to keep")
        if count == 0:
            raise RequestError(
                f"the prompt has {len(ids)} tokens; nothing can be kept of fewer than fill a block of the cache, {size}"
            )
        self.generate(ids[:count].tolist(), SamplingParams(max_tokens=1, temperature=0.0))
        with self.shared.turn():
            found = self.engine.prefixes.copy(ids[:count])
        if found is None:
            raise CapacityError("the cache is too full to keep the prompt; try again with fewer requests beside it")
        SavedPrefix(model, ids[:count].tolist(), *found).write(Path(path))
        return count

    def load_prefix(self, path: str | Path) -> int:
        """Loads a prefix from `save_prefix` into the prefix cache: prompts that begin with it compute only the rest,
        with the same bits. It can be evicted like any cached prefix.

        Returns how many tokens that are. Raises PrefixError unless the file is whole and of this very model, target and
        kind of cache; CapacityError when the cache has too few free blocks.
        """
        saved = SavedPrefix.read(Path(path))
        if saved.model != self._fingerprint():
            raise PrefixError(
                f"{path} was saved with another model, other options, or another version of qwench; save it again"
            )
        if not self.engine.scheduler.enable_prefix_caching:
            raise PrefixError("without prefix caching no prefix can be used")
        with self.shared.turn():
            self.engine.prefixes.restore(np.array(saved.token_ids, np.int32), saved.firsts, saved.blocks)
        return len(saved.token_ids)

    def _fingerprint(self) -> str:
        """Hash of everything that keys and values depend on: which kernels compute them is not among it."""
        from qwench.artifact.artifact import WEIGHTS

        if self._artifact is None:
            raise PrefixError("an LLM over an engine doesn't know its model's files, so it can't tell prefixes apart")
        cache = dataclasses.replace(self.engine.cache, num_blocks=0)
        parts = (
            qwench.__version__, self._artifact.manifest.files[WEIGHTS].sha256, self._artifact.program.to_dict(),
            self._artifact.manifest.layout, dataclasses.asdict(cache),
        )  # fmt: skip
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _run(self, jobs: list[Job], is_single: bool) -> Iterator[Delta]:
        for delta in self._follow(lambda engine: self.add_jobs(engine, jobs)):
            self.raise_if_failed(delta, is_single)
            yield delta

    def add_jobs(self, engine: TextEngine, jobs: list[Job]) -> list[str]:
        """Queues what `prompt_jobs` or `chat_jobs` gave, in a turn; returns the requests' ids."""
        return [
            engine.add(job.tokens, job.params, prompt=job.text, prompt_index=i, adapter=job.lora)
            for i, job in enumerate(jobs)
        ]

    def _follow(self, add: Callable[[TextEngine], list[str]]) -> Iterator[Delta]:
        return self.shared.follow(add)

    def _tell_left_aside(self, params: SamplingParams) -> None:
        """Warns once of each keyword that schemas have and grammars can't hold."""
        for keyword in self.text_engine.left_aside(params):
            if keyword not in self._told:
                self._told.add(keyword)
                logger.warning("answers may break what a schema says with %s: a grammar can't hold it", keyword)

    def raise_if_failed(self, delta: Delta, is_single: bool) -> None:
        """Raises what made a single prompt fail; of several it is logged, and in the output."""
        for completion in delta.output.outputs if delta.output is not None else ():
            if completion.error is not None:
                if is_single:
                    raise completion.error
                logger.error("request %s failed: %s", delta.request_id, completion.error)

    def close(self) -> None:
        """Ends what is unfinished and frees cache and threads. Idempotent."""
        self.shared.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _open_draft(draft: str | Path, artifact: Artifact, progress: ProgressCallback | None) -> Artifact:
    from qwench.load_draft import resolve_draft

    return resolve_draft(draft, artifact, progress)


def _eos_token_ids(defaults: GenerationDefaults, tokenizer: Tokenizer | None, vocab_size: int) -> frozenset[int]:
    ids = set(defaults.eos_token_ids)
    if tokenizer is not None and tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    return frozenset(token for token in ids if token < vocab_size)


def _with_progress(deltas: Iterator[Delta], num_prompts: int) -> Iterator[Delta]:
    """Passes deltas on behind a bar of finished prompts and the speed so far, on stderr."""
    from rich.console import Console
    from rich.progress import Progress

    start, tokens = time.monotonic(), 0
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("generating", total=num_prompts)
        for delta in deltas:
            tokens += len(delta.token_ids)
            if delta.output is not None:
                speed = tokens / max(time.monotonic() - start, 1e-9)
                bar.update(task, advance=1, description=f"generating, {speed:.0f} tokens/s")
            yield delta
