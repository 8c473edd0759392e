"""QwenchModel and the classifiers: compiled models that are asked once, with transformers' outputs.

Each is one pass over a padded batch; no cache is kept. `base.py` loads them, `forward.py` runs the pass.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.loss.loss_utils import ForSequenceClassificationLoss, ForTokenClassification
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)

from qwench.errors import NumericalError, RequestError
from qwench.modeling.base import IGNORED, QwenchPreTrained, refuse
from qwench.modeling.cache import QwenchCache
from qwench.modeling.forward import PassOutput, run_pass
from qwench.modeling.inputs import check_inputs, real_tokens

NO_COLUMNS = torch.empty(0, dtype=torch.long)


class OnePass(QwenchPreTrained):
    """A model whose `forward` is one pass."""

    def can_generate(self) -> bool:
        return False

    def _run(
        self, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, position_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None, options: dict[str, Any], least_states: int, columns: int | torch.Tensor,
    ) -> PassOutput:  # fmt: skip
        """options: the rest of `forward`'s keywords. least_states: hidden states that are wanted unless all are asked
        for. columns: whose logits are. Raises RequestError, and NumericalError for what isn't finite."""
        self._check_allowed(inputs_embeds, attention_mask)
        asked = {name: value for name, value in options.items() if name not in IGNORED}
        all_states = _choose(asked.pop("output_hidden_states", None), self.config.output_hidden_states)
        for harmless in ("use_cache", "return_dict"):
            asked.pop(harmless, None)
        refuse(output_attentions=asked.pop("output_attentions", None) or self.config.output_attentions, **asked)
        inputs = check_inputs(input_ids, inputs_embeds, self._shape.vocab_size, self._shape.hidden_size)
        with self._deadline.call(), torch.no_grad(), self._pages.lock:
            cache = QwenchCache(self._pages)
            cache.start(inputs.shape[0])
            real = real_tokens((inputs.shape[0], inputs.shape[1]), attention_mask, cache.columns, position_ids)
            num_states = self._shape.num_layers + 1 if all_states else least_states
            adapters = self.adapter_numbers(inputs.shape[0])
            found = run_pass(self._shape, cache, inputs, real, columns, num_states, adapters)
            cache.reset()
        states = () if found.hidden_states is None else found.hidden_states[-1:]
        if not all(torch.isfinite(part.sum()) for part in (found.logits, *states)):
            raise NumericalError("the model produced NaN or infinite numbers; is the checkpoint sound?")
        return found

    def _finish(self, output: Any, options: dict[str, Any]) -> Any:
        return output if _choose(options.get("return_dict"), self.config.return_dict) else output.to_tuple()

    def _states(self, found: PassOutput, options: dict[str, Any]) -> tuple[torch.Tensor, ...] | None:
        wanted = _choose(options.get("output_hidden_states"), self.config.output_hidden_states)
        return found.hidden_states if wanted else None


class QwenchModel(OnePass):
    """The hidden states of a model, whatever its head."""

    heads = ("none", "causal_lm", "sequence_classification", "token_classification")

    def forward(
        self, input_ids: torch.Tensor | None = None, attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None, inputs_embeds: torch.Tensor | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """As Qwen2Model.forward: BaseModelOutputWithPast (a tuple if not return_dict), without a cache.

        last_hidden_state: [batch, length, hidden_size] fp32, zeros at padding. Raises RequestError for what can't be
        run, NumericalError when it isn't finite.
        """
        found = self._run(input_ids, attention_mask, position_ids, inputs_embeds, kwargs, 1, NO_COLUMNS)
        assert found.hidden_states is not None
        output = BaseModelOutputWithPast(
            last_hidden_state=found.hidden_states[-1], hidden_states=self._states(found, kwargs)
        )
        return self._finish(output, kwargs)


class QwenchForSequenceClassification(OnePass):
    """Numbers of each label for a sequence: classifiers, rerankers, reward models."""

    heads = ("sequence_classification",)

    def forward(
        self, input_ids: torch.Tensor | None = None, attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None, inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """As Qwen2ForSequenceClassification.forward: SequenceClassifierOutputWithPast (a tuple if not return_dict).

        logits: [batch, num_labels] fp32, of each row's last token that isn't config.pad_token_id.
        """
        found = self._run(input_ids, attention_mask, position_ids, inputs_embeds, kwargs, 0, 0)
        rows = torch.arange(found.logits.shape[0])
        logits = found.logits[rows, self._last_columns(input_ids, len(rows))]
        loss = None if labels is None else ForSequenceClassificationLoss(labels.to("cpu"), logits, self.config)
        output = SequenceClassifierOutputWithPast(loss=loss, logits=logits, hidden_states=self._states(found, kwargs))
        return self._finish(output, kwargs)

    def _last_columns(self, input_ids: torch.Tensor | None, num_rows: int) -> Any:
        pad = self.config.pad_token_id
        if pad is None and num_rows > 1:
            raise RequestError("config.json names no pad_token_id, so the last tokens of several rows can't be told")
        if pad is None or input_ids is None:
            return -1
        is_token = (input_ids.to("cpu") != pad).to(torch.int32)
        return (is_token * torch.arange(input_ids.shape[1], dtype=torch.int32)).argmax(-1)


class QwenchForTokenClassification(OnePass):
    """Numbers of each label for each token."""

    heads = ("token_classification",)

    def forward(
        self, input_ids: torch.Tensor | None = None, attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None, inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """As Qwen2ForTokenClassification.forward: TokenClassifierOutput (a tuple if not return_dict).

        logits: [batch, length, num_labels] fp32, zeros at padding.
        """
        found = self._run(input_ids, attention_mask, position_ids, inputs_embeds, kwargs, 0, 0)
        loss = None if labels is None else ForTokenClassification(found.logits, labels.to("cpu"), self.config)
        output = TokenClassifierOutput(loss=loss, logits=found.logits, hidden_states=self._states(found, kwargs))
        return self._finish(output, kwargs)


def _choose(asked: bool | None, default: bool) -> bool:
    return bool(default if asked is None else asked)
