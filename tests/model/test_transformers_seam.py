"""What qwench takes for granted of transformers' inside, item by item: a release that breaks it is told by name."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
from transformers import GenerationConfig, GenerationMixin
from transformers.models.qwen2.modeling_qwen2 import Qwen2ForCausalLM

from qwench.modeling import transformers_seam as seam
from qwench.modeling.cache import QwenchCache
from qwench.modeling.model import QwenchForCausalLM

HOOKS = {
    "_prepare_cache_for_generation": ("generation_config", "model_kwargs"),
    "_prepare_generated_length": ("generation_config", "has_default_max_length"),
    "_sample": (
        "input_ids", "logits_processor", "stopping_criteria", "generation_config", "synced_gpus", "streamer",
    ),
    "_beam_search": ("input_ids", "logits_processor", "stopping_criteria", "generation_config"),
    "_assisted_decoding": (
        "input_ids", "logits_processor", "stopping_criteria", "generation_config", "synced_gpus", "streamer",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOOKS)
def test_the_hook_is_there_with_these_parameters_in_this_order(name: str) -> None:
    assert hasattr(GenerationMixin, name), f"transformers has no {name} any more"
    parameters = tuple(inspect.signature(getattr(GenerationMixin, name)).parameters)[1:]
    wanted = HOOKS[name]
    if name == "_prepare_cache_for_generation":
        assert parameters[: len(wanted)] == wanted
    else:
        assert tuple(p for p in parameters if p in wanted) == wanted, f"{name} has {parameters}"


def test_the_cache_s_name_is_that_of_transformers_own_qwen2() -> None:
    assert seam.CACHE in inspect.signature(Qwen2ForCausalLM.forward).parameters
    assert {"cache", "past_key_values"} <= set(inspect.signature(QwenchForCausalLM.forward).parameters)


def test_no_parameter_of_transformers_own_qwen2_is_unknown_to_ours() -> None:
    theirs = inspect.signature(inspect.unwrap(Qwen2ForCausalLM.forward)).parameters
    named = {name for name, p in theirs.items() if p.kind is not inspect.Parameter.VAR_KEYWORD}
    assert named <= set(inspect.signature(QwenchForCausalLM.forward).parameters)


def test_the_hooks_are_called_and_see_what_they_expect(pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each mode asks `answer` or `check_call` with a call whose private parts are there."""
    model, _ = pair
    seen: list[seam.GenerationCall] = []

    def look(self: Any, call: seam.GenerationCall) -> None:
        assert isinstance(call.config, GenerationConfig) and isinstance(call.cache, QwenchCache)
        assert call.config.max_length > call.input_ids.shape[1]
        assert call.pad_token_id is None or isinstance(call.pad_token_id, int)
        assert isinstance(call.repeats_cached_tokens, bool) and isinstance(call.looks_up_prompt, bool)
        seen.append(call)

    monkeypatch.setattr(QwenchForCausalLM, "check_call", look)
    ids = torch.arange(5, 12)[None]
    for options in ({}, {"do_sample": True}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 3}):
        seen.clear()
        model.generate(ids, max_new_tokens=3, pad_token_id=0, **options)
        assert seen, options
        assert seen[0].looks_up_prompt == ("prompt_lookup_num_tokens" in options)
        assert not seen[0].has_users_cache
    cache = model.new_cache()
    model.generate(ids, max_new_tokens=3, pad_token_id=0, **{seam.CACHE: cache})
    assert seen[-1].has_users_cache and seen[-1].cache is cache


@pytest.mark.parametrize(
    ("version", "warns"), [("4.57.0", False), ("5.24.1", False), ("4.56.9", True), ("6.0.0", True)]
)
def test_a_release_that_was_not_tested_is_named_in_one_line(version: str, warns: bool) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        seam.warn_if_untested(version)
    assert len(caught) == warns
    if warns:
        text = str(caught[0].message)
        assert version in text and "4.57 to 5.24" in text and "\n" not in text
