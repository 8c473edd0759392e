"""TextEngine: the Engine with text on both sides. Takes prompts and returns, step by step, the text of new tokens.

Adds to the engine detokenising, stop strings, and the defaults of generation_config.json. Called by `LLM`, the command
line and the server.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwench.checkpoint.json_file import read_object
from qwench.errors import CheckpointError, GrammarError, QwenchError, RequestError
from qwench.runtime.engine import Engine
from qwench.runtime.outputs import FinishReason, RequestTimings, TokenLogprobs, TokenOutput
from qwench.runtime.pooling import PoolingParams
from qwench.runtime.sampling.sampling_params import SamplingParams
from qwench.runtime.structured_output.matcher import CompiledGrammar, GrammarCompiler
from qwench.runtime.thoughts import Thoughts
from qwench.targets.target import Float32
from qwench.text.detokenizer import Detokenizer, StopChecker
from qwench.text.thoughts import ThoughtSplitter, has_thoughts, tag_ids, thoughts_after
from qwench.text.tokenizer import Tokenizer, special_ids
from qwench.text.tool_calls import tag_kind

CHAT_END_TOKENS = ("<|im_end|>", "<|im_start|>")  # a model that opens the next turn itself has finished its own


@dataclass(frozen=True)
class CompletionOutput:
    """One answer. token_ids: every generated token, including the one that ended it, whose text isn't in `text`.

    stop_reason: the stop string, or the token of stop_token_ids, that ended it; None for the model's own end.
    logprobs: one per token, and cumulative_logprob their sum, when asked for. error: why finish_reason is "error".
    reasoning: the thought before `text`, with SamplingParams.thinks; the first num_reasoning_tokens are its tokens.
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    stop_reason: int | str | None
    logprobs: list[TokenLogprobs] | None
    cumulative_logprob: float | None
    timings: RequestTimings
    error: QwenchError | None = None
    reasoning: str = ""
    num_reasoning_tokens: int = 0


@dataclass(frozen=True)
class RequestOutput:
    """A request and its `n` answers, in the order of their index. prompt is None when it was given as tokens.

    prompt_logprobs: of each token of the prompt, None of the first one; None where they weren't asked for.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[TokenLogprobs | None] | None = None


@dataclass(slots=True)  # not frozen: that would take three times as long, for every token
class Delta:
    """What one output of the engine adds to sample `index` of a request: at most one token, and the text that can be
    shown now. A step returns several for a sample when draft tokens were accepted.

    prompt_index: place of the prompt in the caller's list. finish_reason: in the last delta of a sample; the last delta
    of the whole request carries its `output`. A request for an embedding or for scores has a single delta, with the
    `embedding` fp32, as `Pooler.result` gives it, or the `error`. prompt_logprobs and their prompt_token_ids: in the
    first delta of sample 0, if asked for. reasoning: what the token adds to the thought before the text, None if it
    isn't one of the thought's.
    """

    request_id: str
    prompt_index: int
    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: TokenLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    output: RequestOutput | None = None
    embedding: Float32 | None = None
    error: QwenchError | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    prompt_token_ids: list[int] | None = None
    is_whole: bool = False  # the last delta of the request
    reasoning: str | None = None


class TextEngine:
    """An Engine with its tokenizer; without one prompts must be token ids and answers have no text."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer | None) -> None:
        self.engine, self.tokenizer = engine, tokenizer
        self.grammars = None
        if tokenizer is not None:
            self.grammars = GrammarCompiler(functools.partial(tokenizer.vocabulary, engine.vocab_size))
        self._requests: dict[str, _TextRequest] = {}
        self._pooled: dict[str, int] = {}  # request_id -> prompt_index

    def encode(self, prompt: str) -> list[int]:
        """The prompt's tokens. Raises RequestError when the model came without a tokenizer."""
        if self.tokenizer is None:
            raise RequestError("this model has no tokenizer files; give prompts as token ids")
        return self.tokenizer.encode(prompt)

    def check(self, prompt_token_ids: Sequence[int], params: SamplingParams) -> None:
        """Raises RequestError for a request that `add` would refuse."""
        if params.stop and self.tokenizer is None:
            raise RequestError("stop strings need a tokenizer, which this model doesn't have; use stop_token_ids")
        if params.thinks and self.tokenizer is None:
            raise RequestError("thoughts are known by their tags, and this model has no tokenizer that could read them")
        self.engine.check_request(prompt_token_ids, params)
        self._compile(params)

    def left_aside(self, params: SamplingParams) -> tuple[str, ...]:
        """The keywords of its schemas that the grammar of a request which `check` has passed doesn't hold."""
        compiled = self._compile(params)
        return () if compiled is None else compiled.left_aside

    def _compile(self, params: SamplingParams) -> CompiledGrammar | None:
        if params.grammar is None:
            return None
        if self.grammars is None:
            raise GrammarError("a grammar needs a tokenizer, which this model doesn't have")
        return self.grammars.compile(params.grammar)

    def add(
        self, prompt_token_ids: Sequence[int], params: SamplingParams, *, prompt: str | None = None,
        prompt_index: int = 0, request_id: str | None = None, cache_salt: str = "", adapter: str | None = None,
    ) -> str:  # fmt: skip
        """Queues a request and returns its id. `prompt`, its text, and `prompt_index` only come back in the outputs.
        adapter: as in Engine.add_request.

        Raises RequestError if it can't be served.
        """
        self.check(prompt_token_ids, params)
        thoughts = None
        if params.thinks and self.tokenizer is not None:
            thoughts = thoughts_after(self.tokenizer, prompt_token_ids, params)
        request_id = self.engine.add_request(
            prompt_token_ids, params, request_id, cache_salt=cache_salt, grammar=self._compile(params),
            adapter=adapter, thoughts=thoughts,
        )  # fmt: skip
        ids = [int(token) for token in prompt_token_ids]
        samples = [_TextSample(index, params, self.tokenizer, thoughts) for index in range(params.n)]
        self._requests[request_id] = _TextRequest(request_id, prompt, prompt_index, ids, samples)
        return request_id

    def add_pooled(
        self, prompt_token_ids: Sequence[int], pooling: PoolingParams, *, prompt_index: int = 0,
        request_id: str | None = None, cache_salt: str = "", adapter: str | None = None,
    ) -> str:  # fmt: skip
        """As `add`, for a prompt that gets an embedding or scores instead of an answer."""
        request_id = self.engine.add_pooled(
            prompt_token_ids, pooling, request_id, cache_salt=cache_salt, adapter=adapter
        )
        self._pooled[request_id] = prompt_index
        return request_id

    def step(self) -> list[Delta]:
        """One step of the engine, as text. A sample that meets a stop string ends in the same step."""
        deltas = []
        outputs = self.engine.step()
        for i, output in enumerate(outputs):
            request = self._requests.get(output.request_id)
            if request is None:
                if output.request_id in self._pooled:
                    deltas.append(self._pooled_delta(output))
                continue  # else added to the engine directly, or ended by a stop string before this output
            sample = request.samples[output.index]
            if sample.finish_reason is not None:
                continue  # ended by a stop string: further tokens of the same step are dropped
            text, reasoning = sample.push(output)
            if sample.met_stop_string and output.finish_reason is None:
                ended = self.engine.abort(output.request_id, output.index, "stop")
                sample.end("stop", (ended or _last_outputs(outputs[i:], output))[0].timings)
            deltas.append(self._delta(request, sample, text, reasoning, output))
        return deltas

    def abort(self, request_id: str) -> list[Delta]:
        """Ends a request at once. Returns the last delta of each unfinished sample; none for an unknown id."""
        if request_id in self._pooled:
            return [self._pooled_delta(output) for output in self.engine.abort(request_id)]
        request = self._requests.get(request_id)
        if request is None:
            return []
        deltas = []
        for output in self.engine.abort(request_id):
            sample = request.samples[output.index]
            deltas.append(self._delta(request, sample, *sample.push(output), output))
        return deltas

    def has_unfinished(self) -> bool:
        return bool(self._requests or self._pooled)

    def _pooled_delta(self, output: TokenOutput) -> Delta:
        index = self._pooled.pop(output.request_id)
        return Delta(
            output.request_id, index, 0, "", (), finish_reason=output.finish_reason, embedding=output.embedding,
            error=output.error, is_whole=True,
        )  # fmt: skip

    def _delta(
        self, request: _TextRequest, sample: _TextSample, text: str, reasoning: str | None, output: TokenOutput
    ) -> Delta:
        whole = prompt = None
        if output.prompt_logprobs is not None:
            request.prompt_logprobs, prompt = output.prompt_logprobs, request.prompt_token_ids
        if sample.finish_reason is not None:
            whole = request.output_if_finished()
            if whole is not None:
                del self._requests[request.request_id]
        tokens = () if output.token_id is None else (output.token_id,)
        return Delta(
            request.request_id, request.prompt_index, sample.index, text, tokens, output.logprobs,
            sample.finish_reason, sample.stop_reason, whole, prompt_logprobs=output.prompt_logprobs,
            prompt_token_ids=prompt, is_whole=whole is not None, reasoning=reasoning,
        )  # fmt: skip


def _last_outputs(outputs: list[TokenOutput], of: TokenOutput) -> list[TokenOutput]:
    """The outputs with which the engine itself ended the sample, in the same step but after its stop string."""
    same = (of.request_id, of.index)
    return [output for output in outputs if output.finish_reason and (output.request_id, output.index) == same]


@dataclass
class _TextRequest:
    """The text side of a request: its prompt and its samples."""

    request_id: str
    prompt: str | None
    prompt_index: int
    prompt_token_ids: list[int]
    samples: list[_TextSample]
    prompt_logprobs: list[TokenLogprobs | None] | None = None

    def output_if_finished(self) -> RequestOutput | None:
        if any(sample.finish_reason is None for sample in self.samples):
            return None
        outputs = [sample.completion() for sample in self.samples]
        return RequestOutput(self.request_id, self.prompt, self.prompt_token_ids, outputs, self.prompt_logprobs)


class _TextSample:
    """One answer as it grows: its tokens, its thought and its text, and what ended it."""

    def __init__(
        self, index: int, params: SamplingParams, tokenizer: Tokenizer | None, thoughts: Thoughts | None
    ) -> None:
        self.index, self.params = index, params
        self.detokenizer = None
        if tokenizer is not None:
            kept = frozenset() if thoughts is None else tag_ids(tokenizer)
            self.detokenizer = Detokenizer(tokenizer, skip_special_tokens=params.skip_special_tokens, kept=kept)
        self.splitter = None if thoughts is None else ThoughtSplitter(thoughts.place)
        self.reasoning: list[str] = []
        self.num_reasoning_tokens = 0
        self.stops = StopChecker(params.stop, include=params.include_stop_str_in_output)
        self.met_stop_string = False
        self.token_ids: list[int] = []
        self.pieces: list[str] = []
        self.logprobs: list[TokenLogprobs] | None = None if params.logprobs is None else []
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None
        self.timings: RequestTimings | None = None
        self.error: QwenchError | None = None

    def push(self, output: TokenOutput) -> tuple[str, str | None]:
        """Takes one output of the engine; returns the text that it adds, and what it adds to the thought, None unless
        its token is one of the thought's."""
        splitter = self.splitter
        if splitter is None:
            return self._push(output), None
        is_thinking, num_pieces = splitter.place == "inside", len(self.reasoning)
        text = self._push(output)
        if not (is_thinking or splitter.place == "inside"):
            return text, None
        if output.token_id is not None:
            self.num_reasoning_tokens = len(self.token_ids)
        return text, "".join(self.reasoning[num_pieces:])

    def _push(self, output: TokenOutput) -> str:
        text = "" if output.token_id is None else self._push_token(output, output.token_id)
        if output.finish_reason is not None:
            if not self.met_stop_string:
                self.stop_reason = output.stop_reason
                text += self._flush()
            self.error = output.error
            self.end("stop" if self.met_stop_string else output.finish_reason, output.timings)
        if text:
            self.pieces.append(text)
        return text

    def _push_token(self, output: TokenOutput, token: int) -> str:
        self.token_ids.append(token)
        if self.logprobs is not None and output.logprobs is not None:
            self.logprobs.append(output.logprobs)
        ends_it = output.finish_reason == "stop" and not self.params.include_stop_str_in_output
        if self.detokenizer is None or ends_it:
            return ""
        return self._watch(self.detokenizer.push(token))

    def _flush(self) -> str:
        text = "" if self.detokenizer is None else self._watch(self.detokenizer.flush())
        if self.splitter is not None:
            thought, answer = self.splitter.flush()
            self.reasoning.append(thought)
            if answer:  # the whole of it, which could have been a thought's tag
                text += self._watch_answer(answer)
        return text + self.stops.flush()

    def _watch(self, text: str) -> str:
        """Keeps a thought apart from the answer that can be shown now."""
        if self.splitter is not None:
            thought, text = self.splitter.push(text)
            if thought:
                self.reasoning.append(thought)
        return self._watch_answer(text) if text else ""

    def _watch_answer(self, text: str) -> str:
        """Looks for stop strings, which don't count before min_tokens."""
        if len(self.token_ids) <= self.params.min_tokens:
            return text
        text = self.stops.push(text)
        if self.stops.matched is not None:
            self.met_stop_string, self.stop_reason = True, self.stops.matched
        return text

    def end(self, reason: FinishReason, timings: RequestTimings | None) -> None:
        self.finish_reason, self.timings = reason, timings

    def completion(self) -> CompletionOutput:
        assert self.finish_reason is not None and self.timings is not None
        total = None if self.logprobs is None else sum(entry.logprob for entry in self.logprobs)
        return CompletionOutput(
            self.index, "".join(self.pieces), self.token_ids, self.finish_reason, self.stop_reason, self.logprobs,
            total, self.timings, self.error, "".join(self.reasoning), self.num_reasoning_tokens,
        )  # fmt: skip


@dataclass(frozen=True)
class GenerationDefaults:
    """generation_config.json: the model's end tokens, and its default sampling parameters."""

    eos_token_ids: tuple[int, ...] = ()
    params: SamplingParams = dataclasses.field(default_factory=lambda: SamplingParams(temperature=0.0))

    @classmethod
    def from_folder(cls, folder: Path) -> GenerationDefaults:
        """As transformers reads it: greedy unless do_sample is true. Raises CheckpointError for a malformed file."""
        path = folder / "generation_config.json"
        config = read_object(path)
        try:
            return cls(_ids(config.get("eos_token_id")), _default_params(config))
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{path} can't be used: {error}") from None


def _ids(value: Any) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(token) is int and token >= 0 for token in ids):
        raise ValueError(f"eos_token_id is {value!r}")
    return tuple(ids)


def _default_params(config: dict[str, Any]) -> SamplingParams:
    names = ["repetition_penalty"]
    if config.get("do_sample"):
        names += ["temperature", "top_k", "top_p", "min_p"]
    given = {name: config[name] for name in names if config.get(name) is not None}
    return SamplingParams(**({} if config.get("do_sample") else {"temperature": 0.0}) | given)


def chat_end_ids(tokenizer: Tokenizer, eos_token_ids: Collection[int]) -> list[int]:
    """The tokens that end a chat turn or open another one, less the model's own end tokens."""
    return [token for token in special_ids(tokenizer, CHAT_END_TOKENS) if token not in eos_token_ids]


def chat_params(
    params: SamplingParams, tokenizer: Tokenizer, eos_token_ids: frozenset[int], *, has_tools: bool = False
) -> SamplingParams:
    """`params` for a chat turn, which also ends at CHAT_END_TOKENS, and begins with a thought if the model has such.
    has_tools: tags of tool calls stay in its text even where they are special tokens."""
    if has_thoughts(tokenizer):
        params = dataclasses.replace(params, thinks=True)
    if has_tools and tag_kind(tokenizer) == "special tokens":
        params = dataclasses.replace(params, skip_special_tokens=False)
    if params.ignore_eos:
        return params
    ends = chat_end_ids(tokenizer, eos_token_ids)
    return dataclasses.replace(params, stop_token_ids=(*params.stop_token_ids, *ends))
