"""qwench.rbln as a whole: its answers against transformers in fp32, its folders, its options of a run, its cache.

Each fault of Optimum RBLN that docs/rbln.md names has a test here that fails if we had it too.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="compares with transformers: pip install qwench[hf]")
pytest.importorskip("torch", reason="compares with transformers: pip install qwench[hf]")

import torch
from transformers import Qwen2ForCausalLM
from transformers_parity import Ties, assert_same_tokens, left_padded, load_truth, random_prompts, write_checkpoint

from qwench import QwenchForCausalLM
from qwench.errors import ArtifactError, CapacityError, ConfigError, DeadlineError, RequestError
from qwench.parallel.team_executor import TeamExecutor
from qwench.rbln import RBLNDecoderOnlyModelForCausalLM, RBLNQwen2ForCausalLM, RBLNQwen2ForCausalLMConfig
from qwench.runtime import loading
from qwench.runtime.loading import memory_budget

POSITIONS, PAGE = 512, 32
BLOCK_BYTES = 2 * 2 * 2 * POSITIONS * 16 * 4  # k and v, layers, kv heads, positions, head_dim, fp32


@pytest.fixture(scope="module", autouse=True)
def _exact_kernels(best_target: str) -> Iterator[None]:
    """There is no option for the kernels here; where `cpu` rounds to bf16, this takes those that don't."""
    original = RBLNQwen2ForCausalLMConfig.to_qwench
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            RBLNQwen2ForCausalLMConfig, "to_qwench", lambda c: dataclasses.replace(original(c), target=best_target)
        )
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("rbln"), seed=3, max_position_embeddings=POSITIONS)


@pytest.fixture(scope="module")
def truth(folder: Path) -> Any:
    return load_truth(folder)


@pytest.fixture(scope="module")
def model(folder: Path) -> RBLNQwen2ForCausalLM:
    return RBLNQwen2ForCausalLM.from_pretrained(folder, export=True, rbln_batch_size=2, rbln_use_inputs_embeds=True)


@pytest.fixture(scope="module")
def compiled(model: RBLNQwen2ForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "compiled"
    model.save_pretrained(path)
    return path


def assert_equal_answers(model: Any, truth: Any, inputs: dict[str, torch.Tensor], **options: Any) -> torch.Tensor:
    """Token for token, ties of transformers' own logits excepted."""
    ours = model.generate(**inputs, **options)
    with torch.no_grad():
        assert_same_tokens(truth, inputs, ours, truth.generate(**inputs, **options), Ties([]))
    return ours


# --- answers ------------------------------------------------------------------------------------------------------


def test_greedy_token_for_token_with_left_padding_and_more_rows_than_the_batch(model: Any, truth: Any) -> None:
    inputs = left_padded(random_prompts(1, 300, [5, 71, 130, 33, 64]))
    assert_equal_answers(model, truth, inputs, max_new_tokens=40, do_sample=False)


@pytest.mark.parametrize("length", [64, 128, 256, 127, 129])
def test_a_prompt_of_whole_chunks_is_answered(model: Any, truth: Any, length: int) -> None:
    assert model.rbln_config.prefill_chunk_size == 128
    [prompt] = random_prompts(length, 300, [length])
    inputs = left_padded([prompt])
    answer = assert_equal_answers(model, truth, inputs, max_new_tokens=8, do_sample=False)
    assert answer.shape[1] == length + 8


def test_the_signature_of_the_page(model: Any, truth: Any) -> None:
    inputs = left_padded(random_prompts(2, 300, [7, 12]))
    answer = model.generate(inputs["input_ids"], inputs["attention_mask"], 30)
    with torch.no_grad():
        assert torch.equal(answer, truth.generate(**inputs, max_length=30))


def test_beam_search(model: Any, truth: Any) -> None:
    inputs = left_padded(random_prompts(3, 300, [9, 40]))
    assert_equal_answers(model, truth, inputs, num_beams=3, max_new_tokens=16, do_sample=False)


def test_assisted_decoding(model: Any, truth: Any, folder: Path) -> None:
    inputs = left_padded(random_prompts(4, 300, [20]))
    draft = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32, num_hidden_layers=1).eval()
    for helper in ({"assistant_model": draft}, {"prompt_lookup_num_tokens": 4}):
        ours = model.generate(**inputs, **helper, max_new_tokens=24, do_sample=False)
        with torch.no_grad():
            theirs = truth.generate(**inputs, max_new_tokens=24, do_sample=False)
        assert_same_tokens(truth, inputs, ours, theirs, Ties([]))


def test_logits_at_every_position(model: Any, truth: Any) -> None:
    [ids] = random_prompts(5, 300, [150])
    with torch.no_grad():
        torch.testing.assert_close(model(ids[None]).logits, truth(ids[None]).logits, rtol=2e-4, atol=2e-4)


def test_too_long_is_said_before_the_first_step(model: Any) -> None:
    [prompt] = random_prompts(6, 300, [100])
    steps = model.engine.metrics.steps
    for options in ({"max_length": POSITIONS + 1}, {"max_new_tokens": POSITIONS - 99}):
        with pytest.raises(ValueError, match=f"exceed max_seq_len {POSITIONS}") as caught:
            model.generate(prompt[None], **options)
        assert isinstance(caught.value, RequestError)
    assert model.engine.metrics.steps == steps


def test_inputs_embeds_are_for_models_compiled_for_them(model: Any, truth: Any, folder: Path) -> None:
    inputs = left_padded(random_prompts(7, 300, [11, 25]))
    embeds = truth.get_input_embeddings()(inputs["input_ids"]).detach()
    answer = model.generate(
        inputs_embeds=embeds, attention_mask=inputs["attention_mask"], max_new_tokens=12, do_sample=False
    )
    with torch.no_grad():
        assert torch.equal(answer, truth.generate(**inputs, max_new_tokens=12, do_sample=False)[:, 25:])
    without = RBLNQwen2ForCausalLM.from_pretrained(folder, export=True)
    for call in (without, without.generate):
        with pytest.raises(RequestError, match="compiled with use_inputs_embeds=False"):
            call(inputs_embeds=embeds, **({"max_new_tokens": 3} if call == without.generate else {}))


def test_padding_is_for_models_compiled_with_a_mask(folder: Path) -> None:
    model = RBLNQwen2ForCausalLM.from_pretrained(folder, export=True, rbln_use_attention_mask=False)
    inputs = left_padded(random_prompts(8, 300, [11, 25]))
    for call in (model, model.generate):
        with pytest.raises(RequestError, match="compiled with use_attention_mask=False"):
            call(**inputs)
    ids = inputs["input_ids"][1:]
    assert torch.equal(model.generate(ids, torch.ones_like(ids), 30), model.generate(ids, max_length=30))


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_it_quantises_in_groups_of_the_size_asked_for(folder: Path, truth: Any, kind: str) -> None:
    model = RBLNQwen2ForCausalLM.from_pretrained(
        folder, export=True, rbln_quantization={"format": "rbln", "weights": kind, "group_size": 32}
    )
    formats = {str(weight.format) for weight in model.artifact.program.weights.values()}
    assert f"{kind}/g32" in formats
    [ids] = random_prompts(9, 300, [60])
    with torch.no_grad():
        ours, theirs = model(ids[None]).logits.flatten(), truth(ids[None]).logits.flatten()
    assert float(torch.corrcoef(torch.stack([ours, theirs]))[0, 1]) > 0.9  # rounded, yet this model


# --- the cache ----------------------------------------------------------------------------------------------------


def test_equal_beginnings_are_computed_once(model: Any) -> None:
    beginning, *ends = random_prompts(10, 300, [96, 10, 10])
    before = model.engine.metrics.cached_prompt_tokens
    for end in ends:
        model.generate(torch.cat([beginning, end])[None], max_new_tokens=2)
    assert model.engine.metrics.cached_prompt_tokens - before == 96


def test_blocks_are_free_as_soon_as_their_row_ends(model: Any, truth: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = left_padded(random_prompts(11, 300, [60, 60]))
    with torch.no_grad():
        first, second = truth.generate(**inputs, max_new_tokens=20, do_sample=False)[:, 60:].tolist()
    end = next(i for i, token in enumerate(first) if token not in second and token not in first[:i])
    engine, step, free = model.engine, model.engine.step, []
    monkeypatch.setattr(engine, "step", lambda: (step(), free.append(engine.scheduler.pool.num_free))[0])
    answer = model.generate(**inputs, max_new_tokens=20, do_sample=False, eos_token_id=first[end], pad_token_id=0)
    assert answer[0, 60 + end] == first[end] and not answer[0, 61 + end :].any()
    steps_left = 19 - end  # in which the second row goes on alone
    assert max(free[:-1]) == free[-2 - (steps_left - 1)] > free[-3 - (steps_left - 1)]


def test_a_full_cache_preempts_and_the_answer_is_the_same(
    folder: Path, truth: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    probe = RBLNQwen2ForCausalLM.from_pretrained(folder, export=True, rbln_batch_size=4)
    used = memory_budget(probe.artifact).used
    monkeypatch.setattr(loading, "available_memory_bytes", lambda: used + BLOCK_BYTES * 3 // 2)
    model = RBLNQwen2ForCausalLM.from_pretrained(folder, export=True, rbln_batch_size=4)
    assert "memory holds 1 cache blocks, 4 would hold a full sequence in each of 4 rows" in caplog.text
    inputs = left_padded(random_prompts(12, 300, [100, 120, 90, 110]))
    assert_equal_answers(model, truth, inputs, max_new_tokens=60, do_sample=False)
    assert model.engine.metrics.preemptions > 0


def test_the_estimate_of_kvcache_num_blocks(
    compiled: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    used = memory_budget(RBLNQwen2ForCausalLM.from_pretrained(compiled).artifact).used
    for free, estimate, blocks in [(5.5, 5, 2), (2.0, 2, 2), (1.9, 1, 1)]:
        caplog.clear()
        monkeypatch.setattr(loading, "available_memory_bytes", lambda f=free: used + int(f * BLOCK_BYTES))
        model = RBLNQwen2ForCausalLM.from_pretrained(compiled)
        assert f"kvcache_num_blocks: estimated {estimate} (" in caplog.text and f"{blocks} used" in caplog.text
        assert model.engine.cache.num_blocks * PAGE == blocks * POSITIONS
        assert ("memory holds 1 cache blocks" in caplog.text) == (blocks == 1)
    caplog.clear()
    monkeypatch.setattr(loading, "available_memory_bytes", lambda: used + 3 * BLOCK_BYTES)
    many = RBLNQwen2ForCausalLM.from_pretrained(compiled, rbln_kvcache_num_blocks=7)
    assert "kvcache_num_blocks is 7, but memory holds 3" in caplog.text
    assert many.engine.cache.num_blocks * PAGE == 7 * POSITIONS
    monkeypatch.setattr(loading, "available_memory_bytes", lambda: used + BLOCK_BYTES // 2)
    with pytest.raises(CapacityError, match=f"one sequence of {POSITIONS} tokens"):
        RBLNQwen2ForCausalLM.from_pretrained(compiled)


def test_layers_that_slide_count_as_the_others(tmp_path: Path) -> None:
    """A block is of all layers; those with a window use less of it."""
    sliding = {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}
    folder = write_checkpoint(tmp_path / "checkpoint", seed=4, max_position_embeddings=POSITIONS, **sliding)
    model = RBLNQwen2ForCausalLM.from_pretrained(folder, export=True)
    cache, program = model.engine.cache, model.artifact.program
    assert cache.num_blocks * cache.block_bytes(program) == BLOCK_BYTES
    inputs = left_padded(random_prompts(14, 300, [200]))
    assert_equal_answers(model, load_truth(folder), inputs, max_new_tokens=30, do_sample=False)


# --- options and folders ------------------------------------------------------------------------------------------


def test_the_three_ways_to_give_options(folder: Path) -> None:
    given = {"batch_size": 2, "max_seq_len": 256, "tensor_parallel_size": 2}
    config = RBLNQwen2ForCausalLMConfig(**given)
    kept = copy.deepcopy((given, config))
    keywords = {f"rbln_{name}": value for name, value in given.items()}
    first, *others = (
        RBLNQwen2ForCausalLM.from_pretrained(folder, export=True, **options).rbln_config
        for options in (keywords, {"rbln_config": given}, {"rbln_config": config})
    )
    assert others == [first, first] and first.batch_size == 2
    won = RBLNQwen2ForCausalLM.from_pretrained(folder, export=True, rbln_config=config, rbln_batch_size=3)
    assert (won.rbln_config.batch_size, won.rbln_config.max_seq_len, won.engine.max_num_seqs) == (3, 256, 3)
    assert isinstance(won.engine.executor, TeamExecutor)
    inputs = left_padded(random_prompts(3, 300, [9, 30]))
    assert_equal_answers(won, load_truth(folder), inputs, max_new_tokens=10, do_sample=False, num_beams=2)
    assert (given, config) == kept


def test_save_and_load(model: Any, compiled: Path) -> None:
    saved = json.loads((compiled / "rbln_config.json").read_text())
    assert not set(saved) & {"create_runtimes", "device", "activate_profiler", "timeout"}
    assert saved["batch_size"] == 2 and saved["kvcache_num_blocks"] is None
    agreeing = {"batch_size": 2, "attn_impl": "eager", "decoder_batch_sizes": [2], "quantization": {"weights": "bf16"}}
    loaded = RBLNDecoderOnlyModelForCausalLM.from_pretrained(str(compiled), rbln_config=agreeing)
    assert loaded.rbln_config == model.rbln_config
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(loaded.generate(ids, max_length=20), model.generate(ids, max_length=20))
    assert torch.equal(QwenchForCausalLM.from_pretrained(compiled)(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rbln_batch_size": 1}, "batch_size is 1, but .* was compiled with 2"),
        ({"rbln_config": {"max_seq_len": 128}}, f"max_seq_len is 128, but .* was compiled with {POSITIONS}"),
        ({"rbln_tensor_parallel_size": 4}, "tensor_parallel_size is 4, but .* was compiled with 1"),
        ({"rbln_prefill_chunk_size": 64}, "prefill_chunk_size is 64, but .* was compiled with 128"),
        ({"rbln_use_inputs_embeds": False}, "use_inputs_embeds is False, but .* was compiled with True"),
        ({"rbln_quantization": {"weights": "int8"}}, "weights is 'int8', but .* was compiled with 'bf16'"),
        ({"rbln_kvcache_num_blocks": 1}, "each of 2 rows needs 2 blocks"),
        ({"rbln_batchsize": 1}, "unknown option 'batchsize'"),
        ({"num_hidden_layers": 1}, "unknown keyword 'num_hidden_layers'; options begin with 'rbln_'"),
    ],
)
def test_what_contradicts_the_compiled_folder_is_an_error(compiled: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        RBLNQwen2ForCausalLM.from_pretrained(compiled, **options)
    assert isinstance(caught.value, ConfigError)


def test_folders_that_are_none(folder: Path, compiled: Path, model: Any, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="say export=True to compile"):
        RBLNQwen2ForCausalLM.from_pretrained(folder)
    with pytest.raises(ArtifactError, match="compiled already; leave export=True out"):
        RBLNQwen2ForCausalLM.from_pretrained(compiled, export=True)
    QwenchForCausalLM.save_pretrained(model, tmp_path / "plain")
    with pytest.raises(ArtifactError, match=r"has no rbln_config.json.*QwenchForCausalLM loads it"):
        RBLNQwen2ForCausalLM.from_pretrained(tmp_path / "plain")
    for text, words in (
        ("{", "can't be used"),
        ('{"batch_size": 0}', "batch_size is 0"),
        ('{"batch_size": 3}', "batch_size is 3, but"),
    ):
        (tmp_path / "plain" / "rbln_config.json").write_text(text)
        with pytest.raises((ArtifactError, ConfigError), match=words):
            RBLNQwen2ForCausalLM.from_pretrained(tmp_path / "plain")


def test_other_keywords_go_to_transformers(folder: Path) -> None:
    changes: dict[str, Any] = {"num_hidden_layers": 1, "layer_types": ["full_attention"], "dtype": torch.float32}
    short = RBLNQwen2ForCausalLM.from_pretrained(folder, export=True, **changes)
    truth = Qwen2ForCausalLM.from_pretrained(folder, **changes).eval()
    assert short.config.num_hidden_layers == 1
    ids = torch.tensor([[9, 8, 7]])
    with torch.no_grad():
        torch.testing.assert_close(short(ids).logits, truth(ids).logits, rtol=2e-4, atol=2e-4)


def test_from_model(truth: Any, model: Any) -> None:
    live = RBLNQwen2ForCausalLM.from_model(truth, rbln_config={"batch_size": 1}, rbln_max_seq_len=100)
    assert (live.rbln_config.batch_size, live.rbln_config.max_seq_len) == (1, 100)
    ids = torch.tensor([[9, 8, 7]])
    assert torch.equal(live(ids).logits, model(ids).logits)
    with pytest.raises(ConfigError, match="unknown keyword 'batch_size'"):
        RBLNQwen2ForCausalLM.from_model(truth, batch_size=1)


def test_without_a_runtime_it_is_saved_and_not_run(folder: Path, tmp_path: Path, model: Any) -> None:
    idle = RBLNQwen2ForCausalLM.from_pretrained(folder, export=True, rbln_create_runtimes=False, rbln_batch_size=2)
    ids = torch.tensor([[9, 8, 7]])
    for call in (idle, idle.generate):
        with pytest.raises(ConfigError, match="create_runtimes=False: it can be saved, not run"):
            call(ids)
    idle.save_pretrained(tmp_path / "idle")
    loaded = RBLNQwen2ForCausalLM.from_pretrained(tmp_path / "idle", rbln_create_runtimes=True)
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_a_timeout_ends_every_way_of_running(compiled: Path) -> None:
    hasty = RBLNQwen2ForCausalLM.from_pretrained(compiled, rbln_timeout=1e-6)
    [ids] = random_prompts(13, 300, [40])
    for call in (
        lambda: hasty.generate(ids[None], max_length=60),
        lambda: hasty.generate(ids[None], max_length=60, do_sample=True),
        lambda: hasty.generate(ids[None], max_length=60, num_beams=2),
        lambda: hasty(ids[None]),
    ):
        with pytest.raises(DeadlineError, match="timeout of 1e-06 seconds"):
            call()
    hasty._pages.reclaim()
    assert hasty.engine.scheduler.pool.num_free == hasty.engine.cache.num_blocks
    patient = RBLNQwen2ForCausalLM.from_pretrained(compiled, rbln_timeout=600)
    assert patient.generate(ids[None], max_length=60).shape[1] == 60


def test_the_profile_of_a_run(compiled: Path, model: Any, best_target: str) -> None:
    with pytest.raises(ConfigError, match="activate_profiler=True"):
        _ = model.profiler
    if best_target == "reference":
        pytest.skip("the reference keeps no clock")
    profiled = RBLNQwen2ForCausalLM.from_pretrained(compiled, rbln_activate_profiler=True)
    profiled.generate(torch.tensor([[9, 8, 7]]), max_length=10)
    assert profiled.profiler.seconds()["lm_head"] > 0
