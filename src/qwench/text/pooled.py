"""What a model says of a prompt that it doesn't continue: embeddings, classes, scores and rewards.

`PooledAnswers` is that part of `LLM`. What the numbers mean is
`scoring.py`'s, which rows of a step are pooled `runtime/pooling.py`'s.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from qwench.checkpoint.json_file import read_object
from qwench.checkpoint.sentence_transformers import EmbeddingSettings
from qwench.errors import RequestError
from qwench.runtime.engine import Engine
from qwench.runtime.pooling import Pooling, PoolingParams
from qwench.targets.target import Float32
from qwench.text.chat import Message, render_chat
from qwench.text.generation import Delta, TextEngine
from qwench.text.scoring import (
    ClassifierSettings,
    activated,
    embedding_messages,
    finish_embeddings,
    prompt_text,
    prompts_of_search,
)
from qwench.text.tokenizer import Tokenizer

Prompt: TypeAlias = "str | Sequence[int]"
Lora: TypeAlias = "str | Sequence[str | None] | None"


class PooledAnswers(ABC):
    """settings: of the model's embeddings. classifier: of its classification head."""

    engine: Engine
    text_engine: TextEngine
    tokenizer: Tokenizer | None
    settings: EmbeddingSettings
    classifier: ClassifierSettings

    @property
    def labels(self) -> tuple[str, ...]:
        return self.classifier.labels

    @abstractmethod
    def _follow(self, add: Callable[[TextEngine], list[str]]) -> Iterator[Delta]: ...

    @abstractmethod
    def _loras_of(self, lora: Lora, count: int) -> list[str | None]: ...

    def embed(
        self, prompts: Prompt | Sequence[Prompt], *, pooling: Pooling | None = None, normalize: bool | None = None,
        dimensions: int | None = None, prompt_name: str | None = None, lora: Lora = None,
    ) -> Float32:  # fmt: skip
        """Embeddings of one prompt or several (text or token ids), in their order: [num_prompts, dimensions] fp32.

        pooling: the hidden state after the model's final norm, of the last token or the first, or the mean of all.
        normalize: to length 1, so that a product of two is their cosine. Both are by default as the checkpoint's
        sentence-transformers files say, else the last token's, normalised. dimensions: the first so many numbers alone,
        for models that were trained so (Matryoshka). prompt_name: which of the checkpoint's prompts goes before a
        text; "": none. lora: the adapter of all prompts, or one for each, here and below. A text is read without a chat
        template, unless those files say otherwise. Raises RequestError for what can't be read.
        """
        pooling = self.settings.pooling if pooling is None else pooling
        if pooling == "all":
            raise RequestError("pooling 'all' is no embedding of a prompt; there are last, mean and first")
        before = prompt_text(self.settings, prompt_name)
        given = _at_least_one(prompts)
        if prompt_name and not all(isinstance(prompt, str) for prompt in given):
            raise RequestError("a prompt by name goes before texts; put its tokens before token ids yourself")
        tokens = [
            embedding_tokens(self._need_tokenizer(), self.settings, before, prompt)
            if isinstance(prompt, str)
            else self._encode(prompt)
            for prompt in given
        ]
        rows = np.stack(self._pool(tokens, PoolingParams(pooling), lora))
        return finish_embeddings(rows, self.settings.normalize if normalize is None else normalize, dimensions)

    def classify(self, prompts: Prompt | Sequence[Prompt], *, activation: bool = True, lora: Lora = None) -> Float32:
        """Probabilities of `labels` for one prompt or several: [num_prompts, num_labels] fp32. activation: False gives
        what the head says, before softmax (of a single label: sigmoid)."""
        self._check_head("sequence_classification", "classify", "classify_tokens")
        return activated(self._scores([self._encode(prompt) for prompt in _at_least_one(prompts)], lora), activation)

    def classify_tokens(
        self, prompts: Prompt | Sequence[Prompt], *, activation: bool = True, lora: Lora = None
    ) -> list[Float32]:
        """As `classify` of every token: for each prompt [num_tokens, num_labels] fp32."""
        self._check_head("token_classification", "classify_tokens", "classify")
        tokens = [self._encode(prompt) for prompt in _at_least_one(prompts)]
        return [activated(rows, activation) for rows in self._pool(tokens, PoolingParams("all", "scores"), lora)]

    def score(
        self, query: str, documents: str | Sequence[str], *, activation: bool = True, lora: str | None = None
    ) -> Float32:
        """How well each document answers the query: [num_documents] fp32.

        A classifier of one label reads query and document together and says it, through a sigmoid if `activation`.
        Without a head it is the cosine of their embeddings, with the checkpoint's prompts for either if it has them.
        """
        texts = [documents] if isinstance(documents, str) else list(documents)
        check_texts([query, *texts])
        if self.engine.limits.head.kind != "sequence_classification":
            return self._cosines(query, texts, lora)
        if len(self.labels) != 1:
            raise RequestError(f"a model with {len(self.labels)} labels gives no score of two texts; classify them")
        tokenizer = self._need_tokenizer()
        pairs = [tokenizer.encode_pair(query, text) for text in texts]
        return activated(self._scores(pairs, lora), activation)[:, 0]

    def reward(self, messages: Sequence[Message] | Sequence[Sequence[Message]], *, lora: Lora = None) -> Float32:
        """What a reward model gives for one conversation or several, through its chat template, as the head says it:
        [num_conversations, num_labels] fp32."""
        self._check_head("sequence_classification", "reward", "classify_tokens")
        tokenizer = self._need_tokenizer()
        conversations: Any = [messages] if not messages or isinstance(messages[0], Mapping) else messages
        texts = [render_chat(tokenizer, conversation, add_generation_prompt=False) for conversation in conversations]
        return self._scores([tokenizer.encode(text, add_special_tokens=False) for text in texts], lora)

    def _scores(self, tokens: list[list[int]], lora: Lora) -> Float32:
        """[num_prompts, num_labels], as the head says them."""
        if self.engine.limits.is_causal:
            tokens = [self.classifier.scored(ids) for ids in tokens]
        return np.stack(self._pool(tokens, PoolingParams(source="scores"), lora))

    def _cosines(self, query: str, documents: list[str], lora: str | None) -> Float32:
        for_query, for_document = prompts_of_search(self.settings)
        one = self.embed(query, normalize=True, prompt_name=for_query, lora=lora)
        cosines: Float32 = self.embed(documents, normalize=True, prompt_name=for_document, lora=lora) @ one[0]
        return cosines

    def _check_head(self, wanted: str, name: str, other: str) -> None:
        kind = self.engine.limits.head.kind
        if kind != wanted:
            hint = "embed gives embeddings" if kind in ("causal_lm", "none") else f"{other} does what it can"
            raise RequestError(f"{name} needs a head for {wanted}, and this model's is {kind!r}; {hint}")

    def _need_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise RequestError("this model has no tokenizer files, so it reads token ids alone")
        return self.tokenizer

    def _encode(self, prompt: Prompt) -> list[int]:
        return self.text_engine.encode(prompt) if isinstance(prompt, str) else [int(token) for token in prompt]

    def _pool(self, tokens: list[list[int]], params: PoolingParams, lora: Lora) -> list[Float32]:
        """One result a prompt, in their order. All are checked before the first step."""
        for ids in tokens:
            self.engine.limits.check_pooled(ids, params.source)
        adapters = self._loras_of(lora, len(tokens))

        def add(engine: TextEngine) -> list[str]:
            return [
                engine.add_pooled(ids, params, prompt_index=i, adapter=adapter)
                for i, (ids, adapter) in enumerate(zip(tokens, adapters, strict=True))
            ]

        found: dict[int, Float32] = {}
        for delta in self._follow(add):
            if delta.embedding is None:
                raise delta.error or RequestError("the request was aborted")
            found[delta.prompt_index] = delta.embedding
        return [found[i] for i in range(len(tokens))]


def as_prompts(prompts: Prompt | Sequence[Prompt]) -> tuple[list[Prompt], bool]:
    """The prompts as a list, and whether it was a single one, a text or token ids. Raises RequestError."""
    if isinstance(prompts, str):
        return [prompts], True
    items: list[Any] = list(prompts)
    if items and all(hasattr(item, "__index__") for item in items):
        return [items], True
    for item in items:
        if not isinstance(item, (str, Sequence)) and not hasattr(item, "__array__"):
            raise RequestError(f"a prompt is {item!r}; it must be text or a list of token ids")
    return items, False


def _at_least_one(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """Raises RequestError for none, of which nothing could be stacked."""
    given, _ = as_prompts(prompts)
    if not given:
        raise RequestError("there are no prompts; give at least one")
    return given


def check_texts(texts: Sequence[Any]) -> None:
    """Raises RequestError unless there is a query and a document, all of them texts."""
    if len(texts) < 2:
        raise RequestError("there are no documents; give at least one")
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise RequestError(f"a query and its documents are texts, but one is a {type(wrong[0]).__name__}")


def embedding_tokens(tokenizer: Tokenizer, settings: EmbeddingSettings, before: str, text: str) -> list[int]:
    """The tokens of a text behind a prompt's, as the checkpoint reads texts to be embedded."""
    if not settings.through_chat:
        return tokenizer.encode(before + text)
    rendered = render_chat(tokenizer, embedding_messages(before, text), add_generation_prompt=False)
    return tokenizer.encode(rendered, add_special_tokens=False)


def read_classifier(folder: Path, num_labels: int) -> ClassifierSettings:
    """Of a compiled model; labels without a name are called as transformers calls them."""
    config = read_object(folder / "config.json")
    names, pad = config.get("id2label") or {}, config.get("pad_token_id")
    labels = tuple(str(names.get(str(i), f"LABEL_{i}")) for i in range(num_labels))
    return ClassifierSettings(labels, pad if type(pad) is int else None)
