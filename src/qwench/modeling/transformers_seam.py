"""All that qwench knows of transformers' inside: names, hooks and attributes that no promise of transformers covers.

`GenerationHooks` is `GenerationMixin` whose private hooks become a `GenerationCall` and three methods of the model.
tests/model/test_transformers_seam.py says which hook changed when a release moves one.
"""

from __future__ import annotations

import re
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import GenerationConfig, GenerationMixin
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

TESTED = ((4, 57), (5, 24))  # first and last release, as `make test-oldest` and `make test-newest` ran them

# What forward, its output and generate's keywords call the KV cache: past_key_values up to 5.23, cache from 5.24 on.
CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"

RepetitionPenalty, EosCriteria, LengthCriteria = RepetitionPenaltyLogitsProcessor, EosTokenCriteria, MaxLengthCriteria


def warn_if_untested(version: str = transformers.__version__) -> None:
    """One line for a release that lies outside of TESTED."""
    match = re.match(r"(\d+)\.(\d+)", version)
    if match and not TESTED[0] <= (int(match[1]), int(match[2])) <= TESTED[1]:
        first, last = (".".join(map(str, release)) for release in TESTED)
        warnings.warn(
            f"qwench was tested with transformers {first} to {last}; {version} may move what generate builds on",
            stacklevel=2,
        )


def known_to_pipelines(name: str) -> None:
    """Pipelines call a class unsupported unless its name is among these."""
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.setdefault(name, name)


@dataclass(frozen=True)
class GenerationCall:
    """A `generate` call once transformers has prepared and checked its arguments.

    input_ids: [batch, length]. logits_processor, stopping_criteria: lists. inputs: what forward gets beside the ids.
    """

    input_ids: torch.Tensor
    config: GenerationConfig
    logits_processor: Any
    stopping_criteria: Any
    streamer: Any
    inputs: dict[str, Any]

    @property
    def cache(self) -> Any:
        return self.inputs.get(CACHE)

    @property
    def has_users_cache(self) -> bool:
        """Whether the cache came with the call; else it is a new one that nobody sees."""
        return getattr(self.cache, "_is_user_defined", False)

    @property
    def attention_mask(self) -> torch.Tensor | None:
        return self.inputs.get("attention_mask")

    @property
    def inputs_embeds(self) -> torch.Tensor | None:
        return self.inputs.get("inputs_embeds")

    @property
    def pad_token_id(self) -> int | None:
        pad = self.config._pad_token_tensor
        return None if pad is None else int(pad)

    @property
    def repeats_cached_tokens(self) -> bool:
        """Whether input_ids begin with the tokens that are in the cache."""
        length = int(self.input_ids.shape[1])
        return bool(getattr(self.config, "_mask_length", length) == length)

    @property
    def looks_up_prompt(self) -> bool:
        """Whether its drafts come from the prompt, and nothing else is asked of assisted decoding."""
        return (self.config.prompt_lookup_num_tokens or 0) > 0 and self._drafts_plainly

    @property
    def assistant(self) -> Any:
        """The model that drafts, if it has the same tokenizer and nothing else is asked of assisted decoding."""
        has_tokenizers = any(self.inputs.get(name) is not None for name in ("tokenizer", "assistant_tokenizer"))
        return self.inputs.get("assistant_model") if self._drafts_plainly and not has_tokenizers else None

    @property
    def _drafts_plainly(self) -> bool:
        others = ("assistant_early_exit", "assistant_ensemble_weight")
        return all(getattr(self.config, name, None) is None for name in others) and bool(self.inputs.get("use_cache"))


class GenerationHooks(GenerationMixin, ABC):  # type: ignore[misc]
    """transformers' `generate`, which asks the model before each loop whether it answers by itself."""

    _is_stateful = False
    max_seq_len: int

    @abstractmethod
    def cache_for(self, given: Any, implementation: str | None) -> Any:
        """The cache of a call: `given` if not None, else a new one. Raises RequestError for what can't be used."""

    @abstractmethod
    def check_call(self, call: GenerationCall) -> None:
        """Raises RequestError for a call that can't end well, before its first step."""

    @abstractmethod
    def answer(self, call: GenerationCall) -> torch.Tensor | None:
        """[batch, length + new] int64; None: transformers' own loop is needed."""

    @abstractmethod
    def shares_tokens(self, assistant: Any) -> bool:
        """Whether a model that drafts has this one's tokens, though perhaps another number of them as padding."""

    def _validate_generation_mode(
        self, generation_mode: Any, generation_config: GenerationConfig, generation_mode_kwargs: dict[str, Any]
    ) -> None:
        """Takes vocabularies of different sizes for different tokenizers."""
        given = dict(generation_mode_kwargs)
        if given.get("assistant_model") is not None and self.shares_tokens(given["assistant_model"]):
            del given["assistant_model"]
        super()._validate_generation_mode(generation_mode, generation_config, given)

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        given = model_kwargs.get(CACHE)
        if given is None and generation_config.use_cache is False:
            return
        model_kwargs[CACHE] = self.cache_for(given, generation_config.cache_implementation)
        if given is not None:
            given._is_user_defined = True

    def _prepare_generated_length(
        self, generation_config: GenerationConfig, has_default_max_length: bool, *args: Any, **kwargs: Any
    ) -> GenerationConfig:
        """The default of 20 new tokens ends at max_seq_len."""
        prepared = super()._prepare_generated_length(generation_config, has_default_max_length, *args, **kwargs)
        if has_default_max_length and prepared.max_new_tokens is None:
            prepared.max_length = min(prepared.max_length, self.max_seq_len)
        return prepared

    def _sample(
        self, input_ids: torch.Tensor, logits_processor: Any, stopping_criteria: Any,
        generation_config: GenerationConfig, synced_gpus: bool = False, streamer: Any = None, **inputs: Any,
    ) -> Any:  # fmt: skip
        """Greedy decoding and sampling."""
        inputs.pop("tokenizer", None)  # passed on, though only the criteria need it
        call = GenerationCall(input_ids, generation_config, logits_processor, stopping_criteria, streamer, inputs)
        self.check_call(call)
        if (answer := self.answer(call)) is not None:
            return answer
        return super()._sample(
            input_ids, logits_processor, stopping_criteria, generation_config, synced_gpus, streamer, **inputs
        )

    def _beam_search(
        self, input_ids: torch.Tensor, logits_processor: Any, stopping_criteria: Any,
        generation_config: GenerationConfig, *args: Any, **inputs: Any,
    ) -> Any:  # fmt: skip
        inputs.pop("tokenizer", None)
        self.check_call(GenerationCall(input_ids, generation_config, logits_processor, stopping_criteria, None, inputs))
        return super()._beam_search(input_ids, logits_processor, stopping_criteria, generation_config, *args, **inputs)

    def _assisted_decoding(
        self, input_ids: torch.Tensor, logits_processor: Any, stopping_criteria: Any,
        generation_config: GenerationConfig, synced_gpus: bool = False, streamer: Any = None, *args: Any, **inputs: Any,
    ) -> Any:  # fmt: skip
        call = GenerationCall(input_ids, generation_config, logits_processor, stopping_criteria, streamer, inputs)
        self.check_call(call)
        if (call.looks_up_prompt or call.assistant is not None) and (answer := self.answer(call)) is not None:
            return answer
        return super()._assisted_decoding(
            input_ids, logits_processor, stopping_criteria, generation_config, synced_gpus, streamer, *args, **inputs
        )
