"""Plain greedy generation through the engine: continuous batching, prefix reuse, prompt lookup, the same tokens in the
same tensor.

Decides whether a prepared `generate` call is one that the engine answers exactly as transformers' loop would, and
runs it. Called by QwenchForCausalLM, once transformers has prepared and checked all arguments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from qwench.modeling.cache import Pages
from qwench.modeling.inputs import real_tokens
from qwench.modeling.transformers_seam import EosCriteria, GenerationCall, LengthCriteria, RepetitionPenalty
from qwench.runtime.engine import Engine
from qwench.runtime.sampling.sampling_params import SamplingParams


@dataclass(frozen=True)
class GreedyRequest:
    """input_ids: [batch, length], of which `real` [batch, length] bool aren't padding. pad_token_id: after an end.
    prompt_lookup_num_tokens: guesses per step at most; 0: none."""

    input_ids: torch.Tensor
    real: torch.Tensor
    max_new_tokens: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    repetition_penalty: float
    prompt_lookup_num_tokens: int


def plain_greedy(call: GenerationCall) -> GreedyRequest | None:
    """The request for the engine, or None if only transformers' loop does what is asked.

    Raises RequestError for padding that no path can run.
    """
    input_ids, config, cache, pad = call.input_ids, call.config, call.cache, call.pad_token_id
    ends = [c for c in call.stopping_criteria if type(c) is EosCriteria]
    lengths = [c.max_length for c in call.stopping_criteria if type(c) is LengthCriteria]
    if (
        config.do_sample
        or config.return_dict_in_generate
        or call.inputs_embeds is not None
        or len(ends) + len(lengths) != len(call.stopping_criteria)
        or not lengths
        or (ends and pad is None)
        or (call.streamer is not None and len(input_ids) > 1)
        or (cache is not None and (cache.rows or call.has_users_cache))
    ):
        return None
    shape = (int(input_ids.shape[0]), int(input_ids.shape[1]))
    past = torch.zeros(shape[0], 0, dtype=torch.bool)
    real = real_tokens(shape, call.attention_mask, past, call.inputs.get("position_ids"))
    penalty = _repetition_penalty(list(call.logits_processor), real)
    if penalty is None:
        return None
    eos = {int(token) for criterion in ends for token in criterion.eos_token_id}
    return GreedyRequest(
        input_ids, real, min(lengths) - shape[1], tuple(sorted(eos)), pad, penalty,
        config.prompt_lookup_num_tokens or 0,
    )  # fmt: skip


def _repetition_penalty(processors: list[Any], real: torch.Tensor) -> float | None:
    """The penalty if that, or nothing, is all that changes the logits; None if something else does.

    Qwen2.5's own generation_config.json asks for one. The engine penalises all real tokens and no padding.
    """
    if not processors:
        return 1.0
    processor = processors[0]
    if len(processors) > 1 or type(processor) is not RepetitionPenalty:
        return None
    ignored = 0 if processor.prompt_ignore_length is None else processor.prompt_ignore_length
    ignores_padding = bool((torch.as_tensor(ignored) == (~real).sum(dim=1)).all())
    return float(processor.penalty) if ignores_padding else None


def run(
    engine: Engine, pages: Pages, request: GreedyRequest, adapters: list[str | None], streamer: Any = None
) -> torch.Tensor:
    """Generates: [batch, length + longest answer] int64, shorter answers padded. Raises what a request failed with.

    adapters: the name of each row's. streamer: gets each token as it comes; only with a batch of one.
    """
    params = SamplingParams(
        max_tokens=request.max_new_tokens,
        temperature=0.0,
        repetition_penalty=request.repetition_penalty,
        ignore_eos=True,
        stop_token_ids=[token for token in request.eos_token_ids if 0 <= token < engine.vocab_size],
        prompt_lookup_num_tokens=request.prompt_lookup_num_tokens,
    )
    # The engine counts on the blocks that its requests may need; caches that live on hold some of the pool's.
    longest = int(request.real.sum(dim=1).max()) + request.max_new_tokens - 1
    pages.require(engine.scheduler.most_blocks(longest))
    answers: dict[str, list[int]] = {}
    try:
        for ids, real, adapter in zip(request.input_ids.to("cpu"), request.real, adapters, strict=True):
            answers[engine.add_request(ids[real].numpy(), params, adapter=adapter)] = []
        while engine.has_unfinished():
            for output in engine.step():
                if output.error is not None:
                    raise output.error
                if output.token_id is not None:
                    answers[output.request_id].append(output.token_id)
                    if streamer is not None:
                        streamer.put(torch.tensor([output.token_id]))
    finally:
        for request_id in answers:
            engine.abort(request_id)  # a no-op but when something was raised
    if streamer is not None:
        streamer.end()
    return _joined(request, list(answers.values()))


def _joined(request: GreedyRequest, answers: list[list[int]]) -> torch.Tensor:
    width = max(len(answer) for answer in answers)
    fill = 0 if request.pad_token_id is None else request.pad_token_id
    new = torch.full((len(answers), width), fill, dtype=torch.int64, device=request.input_ids.device)
    for row, answer in enumerate(answers):
        new[row, : len(answer)] = torch.tensor(answer, dtype=new.dtype)
    return torch.cat([request.input_ids, new], dim=1)
