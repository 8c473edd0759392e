"""QwenchForCausalLM: a compiled model that generates as transformers' own model does.

`generate` is transformers': its argument handling, processors and criteria. Plain greedy requests go to the engine,
prompt lookup and drafts of other compiled models among them; every other mode runs transformers' loop over `forward`,
whose `past_key_values` are pages of the same KV cache. What is private to transformers is in `transformers_seam.py`.
Knows nothing of compiling or packing.
"""

from __future__ import annotations

from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.modeling_outputs import CausalLMOutputWithPast

from qwench.artifact.artifact import Artifact
from qwench.errors import ConfigError, NumericalError, RequestError
from qwench.load_draft import check_draft
from qwench.modeling import native
from qwench.modeling.base import IGNORED, QwenchPreTrained, refuse
from qwench.modeling.cache import QwenchCache
from qwench.modeling.drafts import Drafts
from qwench.modeling.forward import run_pass
from qwench.modeling.inputs import check_input_ids, check_inputs, check_inputs_embeds, real_tokens
from qwench.modeling.transformers_seam import CACHE, GenerationCall, GenerationHooks, known_to_pipelines

LOSS_OPTIONS = ("num_items_in_batch", "ignore_index", "shift_labels")


class QwenchForCausalLM(QwenchPreTrained, GenerationHooks):
    """Logits of the next token, and `generate`."""

    heads = ("causal_lm",)

    def __init__(self, artifact: Artifact, workspace: TemporaryDirectory[str] | None = None) -> None:
        """artifact: the compiled model. workspace: the temporary folder it lies in, kept as long as the model."""
        super().__init__(artifact, workspace)
        if not artifact.program.spec.is_causal:
            raise ConfigError("a model that attends in both directions can't continue a text; load it with QwenchModel")
        known_to_pipelines(type(self).__name__)
        self._drafts = Drafts(self)

    def can_generate(self) -> bool:
        return True

    def get_experts_implementation(self) -> dict[str, str]:
        """Qwen2 has no experts; transformers asks before each decoding."""
        return {}

    def new_cache(self) -> QwenchCache:
        """An empty `past_key_values`, to keep between calls."""
        return QwenchCache(self._pages)

    # --- forward ---------------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: QwenchCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        cache_position: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache: QwenchCache | None = None,
        **kwargs: Any,
    ) -> Any:
        """One pass over new tokens, as Qwen2ForCausalLM.forward: CausalLMOutputWithPast (a tuple if not return_dict).

        input_ids: [batch, length] int64, or inputs_embeds: [batch, length, hidden_size]. attention_mask:
        [batch, cached + length], zeros at padding. logits_to_keep: how many of the last columns get logits (0: all), or
        which. past_key_values, or cache, its name from transformers 5.24 on: a QwenchCache, extended in place. labels:
        [batch, length] of ids, -100 where there's none; the loss is transformers'. cache_position: [length], which
        transformers 4 passes: the columns after those in the cache. What is None is as `config` says.
        logits: [batch, kept, vocab_size] fp32. hidden_states: num_layers + 1 of [batch, length, hidden_size] fp32, what
        enters each layer and, the last, the head. Both are zeros at padding.
        Raises RequestError for what can't be run, NumericalError when logits aren't finite.
        """
        self._check_allowed(inputs_embeds, attention_mask)
        options = {name: kwargs.pop(name) for name in LOSS_OPTIONS if name in kwargs}
        asked = self.config.output_attentions if output_attentions is None else output_attentions
        refuse(output_attentions=asked, **{name: kwargs[name] for name in kwargs if name not in IGNORED})
        with_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        num_states = self._shape.num_layers + 1 if with_states else 0
        if cache is not None and past_key_values is not None:
            raise RequestError("cache and past_key_values are two names of one thing; give one of them")
        inputs = check_inputs(input_ids, inputs_embeds, self._shape.vocab_size, self._shape.hidden_size)
        with self._deadline.call(), torch.no_grad(), self._pages.lock:
            cache = self._cache(past_key_values if cache is None else cache)
            cache.start(inputs.shape[0])
            if cache_position is not None and cache_position[0] != cache.get_seq_length():
                start, cached = int(cache_position[0]), cache.get_seq_length()
                raise RequestError(f"cache_position starts at {start}, but {cached} columns are cached")
            real = real_tokens((inputs.shape[0], inputs.shape[1]), attention_mask, cache.columns, position_ids)
            adapters = self.adapter_numbers(inputs.shape[0])
            logits, hidden_states = run_pass(self._shape, cache, inputs, real, logits_to_keep, num_states, adapters)
        if not torch.isfinite(logits.sum()):
            raise NumericalError("the model produced NaN or infinite logits; is the checkpoint sound?")
        loss = None if labels is None else self._loss(logits, labels, options)
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=hidden_states,
            **{CACHE: cache if (self.config.use_cache if use_cache is None else use_cache) else None},
        )
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
        """transformers' mean cross entropy of the next token."""
        if labels.shape != logits.shape[:2]:
            raise RequestError(
                f"labels are {tuple(labels.shape)}, but logits are {tuple(logits.shape)}: keep all logits"
            )
        loss: torch.Tensor = ForCausalLMLoss(logits, labels.to("cpu"), self._shape.vocab_size, **options)
        return loss

    def _cache(self, given: Any) -> QwenchCache:
        if given is None:
            return self.new_cache()
        if not isinstance(given, QwenchCache) or given.pages is not self._pages:
            raise RequestError(
                f"past_key_values is a {type(given).__name__} that this model can't use; leave it out, or pass the one "
                "this model returned, or its new_cache()"
            )
        return given

    # --- generate: transformers' own, with these seams -------------------------------------------------------------

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' `generate`, within the `timeout` if there is one."""
        assert self.engine  # without a runtime, say so first
        with self._deadline.call():
            return super().generate(*args, **kwargs)

    def cache_for(self, given: Any, implementation: str | None) -> QwenchCache:
        """One kind of cache, ours."""
        if implementation not in (None, "dynamic", "dynamic_full"):
            raise RequestError(
                f"cache_implementation is {implementation!r}; a compiled model has one cache, whose format is "
                "qwench_kv_cache: leave cache_implementation out"
            )
        return self._cache(given)

    def shares_tokens(self, assistant: Any) -> bool:
        """Of another compiled model. Raises ConfigError if it has other tokens."""
        if not isinstance(assistant, QwenchForCausalLM):
            return False
        check_draft(assistant.artifact, self.artifact, by_files=False)
        return True

    def answer(self, call: GenerationCall) -> torch.Tensor | None:
        """What the engine can do itself, it does: plain greedy requests, with or without prompt lookup and a compiled
        model that drafts."""
        assistant = call.assistant
        if not (assistant is None or isinstance(assistant, QwenchForCausalLM)):
            return None
        request = native.plain_greedy(call)
        if request is None:
            return None
        with self._pages.lock, self._drafts.attached(None if assistant is None else assistant.artifact):
            names = self.adapters_of(len(request.input_ids))
            return native.run(self.engine, self._pages, request, names, call.streamer)

    def generate_batch(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' own continuous batching, which `cache_implementation="paged"` asks for: not available."""
        raise RequestError(
            "generate_batch and cache_implementation='paged' need the cache of a transformers model; give the whole "
            "batch to generate, which batches continuously by itself"
        )

    def check_call(self, call: GenerationCall) -> None:
        """What can't end well fails before the first step: too long, nothing to continue, padding on the right."""
        if getattr(call.config, "assistant_early_exit", None) is not None:
            raise RequestError(
                "assistant_early_exit drafts with the model's first layers, which a compiled model can't run alone; "
                "use prompt_lookup_num_tokens or an assistant_model"
            )
        input_ids, embeds, mask = call.input_ids, call.inputs_embeds, call.attention_mask
        self._check_allowed(embeds, mask)
        if embeds is not None:
            check_inputs_embeds(embeds, self._shape.hidden_size)
        if embeds is None or input_ids.numel():
            check_input_ids(input_ids, self._shape.vocab_size)
        num_tokens = _num_tokens(call)
        num_new = call.config.max_length - input_ids.shape[1]
        if num_tokens + num_new > self.max_seq_len:
            raise RequestError(
                f"{num_tokens} tokens of input and {num_new} new ones exceed max_seq_len {self.max_seq_len}; give a "
                f"shorter input or at most {max(self.max_seq_len - num_tokens, 0)} new tokens, or compile with a "
                "larger max_seq_len"
            )
        if mask is not None and not (mask != 0).any(dim=1).all():
            raise RequestError("a row of the input has no tokens: its attention_mask is all zeros")
        if mask is not None and not (mask[:, -1] != 0).all():
            raise RequestError("the input is padded on the right; pad on the left (tokenizer.padding_side = 'left')")


def _num_tokens(call: GenerationCall) -> int:
    """Real tokens of the longest row, cached ones included."""
    if call.attention_mask is not None:
        return int((call.attention_mask != 0).sum(dim=1).max())
    given = call.input_ids if call.inputs_embeds is None else call.inputs_embeds
    length = int(given.shape[1])
    return length if call.cache is None or call.repeats_cached_tokens else length + int(call.cache.get_seq_length())
