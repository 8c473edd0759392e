"""LoRA adapters against PEFT: its fp32 tokens and logits, apart and merged, alone and in one batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("peft")

import torch
from lora_adapters import load_peft, write_adapter
from transformers_parity import write_checkpoint

from qwench import LLM, SamplingParams
from qwench.checkpoint.open_checkpoint import open_checkpoint
from qwench.checkpoint.spec import ModelSpec
from qwench.compiler.compiler import compile_checkpoint
from qwench.config import QwenchConfig
from qwench.errors import CheckpointError, ConfigError, QwenchError, RequestError
from qwench.evaluate.batches import whole_sequences
from qwench.load import resolve_model
from qwench.lora.merged_checkpoint import MergedCheckpoint
from qwench.lora.peft_folder import read_adapter
from qwench.program.models import adaptable_shapes
from qwench.runtime.loading import load_engine

CONFIGS: dict[str, dict[str, Any]] = {
    "all": {},
    "q and v": {"target_modules": ["q_proj", "v_proj"], "r": 16},
    "mlp": {"target_modules": ["gate_proj", "down_proj"], "r": 3, "lora_alpha": 5},
    "rsLoRA": {"use_rslora": True, "r": 64},
    "rank 256": {"r": 256, "lora_alpha": 32, "target_modules": ["o_proj", "up_proj"]},
    "patterns": {
        "rank_pattern": {"q_proj": 4, "layers.1.mlp.down_proj": 17}, "alpha_pattern": {"v_proj": 3, "up_proj": 40},
    },
    "one layer": {"layers_to_transform": [1]},
    "head": {"target_modules": ["lm_head", "q_proj"]},
}  # fmt: skip
PROMPTS = [list(range(3, 20)), [5], [100, 7, 9, 250], list(range(40, 110, 3))]
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("base"), seed=3)


def tokens_of(outputs: list[Any]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


def greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    ids = torch.tensor([prompt])
    found = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False,
                           eos_token_id=None, pad_token_id=0)  # fmt: skip
    return [int(token) for token in found[0, len(prompt) :]]


@pytest.mark.parametrize("name", CONFIGS)
def test_tokens_are_peft_s(base: Path, tmp_path: Path, name: str) -> None:
    adapter = write_adapter(base, tmp_path / "adapter", **CONFIGS[name])
    truth = load_peft(base, adapter)
    expected = [greedy(truth, prompt, 12) for prompt in PROMPTS]
    with LLM(base, lora={"a": adapter}) as llm:
        plain = tokens_of(llm.generate(PROMPTS, GREEDY))
        assert tokens_of(llm.generate(PROMPTS, GREEDY, lora="a")) == expected
        assert tokens_of(llm.generate(PROMPTS, GREEDY)) == plain != expected
    if name != "head":  # rounding the sum to bf16 moves tokens of so random a model, so the merged one is kept in fp32
        with LLM(base, merged_lora=str(adapter), weights="int8", activations="fp32") as merged:
            agreed = np.mean(np.array(tokens_of(merged.generate(PROMPTS, GREEDY))) == np.array(expected))
            assert agreed > 0.5


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
def test_one_batch_of_several_adapters_gives_each_its_own_bits(base: Path, tmp_path: Path, weights: str) -> None:
    folders = {str(i): write_adapter(base, tmp_path / str(i), seed=i, r=4 * i + 4) for i in range(3)}
    names = [None, "0", "1", "2", "1", None, "0", "2"]
    prompts = [PROMPTS[i % 4] for i in range(8)]
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, logprobs=2)
    with LLM(base, lora=folders, weights=weights, kvcache_block_size=16) as llm:
        together = [output.outputs[0] for output in llm.generate(prompts, params, lora=names)]
        for prompt, name, answer in zip(prompts, names, together, strict=True):
            alone = llm.generate(prompt, params, lora=name)[0].outputs[0]
            assert alone.token_ids == answer.token_ids and alone.logprobs == answer.logprobs
        assert len({tuple(answer.token_ids) for answer in together}) >= 6


def test_logits_are_as_close_as_those_without(base: Path, tmp_path: Path) -> None:
    """bf16 weights and fp32 activations: an adapter whose values are bf16's costs nothing; one of fp32 is rounded."""
    artifact = resolve_model(base)
    spec, ids = artifact.program.spec, np.array(PROMPTS[3], np.int32)
    engine = load_engine(artifact, num_threads=1)
    for dtype, bound in ((torch.bfloat16, 1e-6), (torch.float32, 1e-4)):
        folder = write_adapter(base, tmp_path / str(dtype), dtype=dtype, r=16)
        with torch.no_grad():
            expected = load_peft(base, folder)(torch.tensor(ids[None].astype(np.int64))).logits[0].numpy()
        engine.executor.set_adapter(0, read_adapter(folder, adaptable_shapes(spec)))
        step = whole_sequences([ids], engine.cache.block_size)
        found = engine.executor.step(step.__class__(**{**vars(step), "adapters": np.zeros(1, np.int32)}))
        cosine = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
        assert 1 - cosine.min() < bound, dtype
    engine.close()


def test_cached_prefixes_are_not_shared_between_adapters(base: Path, tmp_path: Path) -> None:
    folders = {str(i): write_adapter(base, tmp_path / str(i), seed=i) for i in range(2)}
    prompt = list(range(10, 80))
    with LLM(base, lora=folders, kvcache_block_size=16) as llm:
        for name in (None, "0", "1"):
            outputs = [llm.generate(prompt, GREEDY, lora=name)[0].outputs[0] for _ in range(2)]
            assert [output.timings.num_cached_tokens for output in outputs] == [0, 64]
            assert outputs[0].token_ids == outputs[1].token_ids
        llm.unload_lora("0")
        llm.load_lora("0", folders["1"])  # other values under a known name, known values under another name
        again = llm.generate(prompt, GREEDY, lora="0")[0].outputs[0]
        assert again.timings.num_cached_tokens == 64 and again.token_ids == outputs[0].token_ids


def test_an_adapter_is_unloaded_when_its_last_answer_is_done(base: Path, tmp_path: Path) -> None:
    folder = write_adapter(base, tmp_path / "a")
    with LLM(base, lora={"a": folder}) as llm:
        whole = llm.generate(PROMPTS[0], GREEDY, lora="a")[0].outputs[0].token_ids
        stream = llm.generate(PROMPTS[0], GREEDY, lora="a", stream=True)
        first = next(stream)
        llm.unload_lora("a")
        assert llm.loras == ()
        with pytest.raises(RequestError, match="no adapter 'a'; there are none"):
            llm.generate(PROMPTS[0], GREEDY, lora="a")
        llm.load_lora("a", write_adapter(base, tmp_path / "b", seed=9))
        rest = [token for delta in stream for token in delta.token_ids]
        assert [*first.token_ids, *rest] == whole
        assert not llm.engine.adapters.find("a").num_requests and len(llm.engine.adapters._numbers) == 1


def test_embeddings_have_adapters_too(base: Path, tmp_path: Path) -> None:
    folder = write_adapter(base, tmp_path / "a")
    model = load_peft(base, folder)
    with torch.no_grad():
        hidden = model(torch.tensor([PROMPTS[0]]), output_hidden_states=True).hidden_states[-1][0, -1].numpy()
    with LLM(base, lora={"a": folder}) as llm:
        plain, adapted = llm.embed([PROMPTS[0]] * 2, lora=[None, "a"])
    assert adapted @ hidden / np.linalg.norm(hidden) > 0.99999 > plain @ hidden / np.linalg.norm(hidden)


def test_names_are_checked_before_anything_runs(base: Path, tmp_path: Path) -> None:
    folder = write_adapter(base, tmp_path / "a")
    with LLM(base, lora={"a": folder}) as llm:
        with pytest.raises(RequestError, match="no adapter 'b'; those are 'a'"):
            llm.generate(PROMPTS, GREEDY, lora=["a", "b", None, None])
        with pytest.raises(RequestError, match="4 prompts but 2 adapters"):
            llm.generate(PROMPTS, GREEDY, lora=["a", None])
        with pytest.raises(RequestError, match="already an adapter 'a'"):
            llm.load_lora("a", folder)
        assert not llm.engine.has_unfinished()


def test_merged_weights_are_peft_s(base: Path, tmp_path: Path) -> None:
    folder = write_adapter(base, tmp_path / "a", use_rslora=True)
    expected = load_peft(base, folder).merge_and_unload().state_dict()
    spec = ModelSpec.from_folder(base)
    checkpoint = MergedCheckpoint(open_checkpoint(base), read_adapter(folder, adaptable_shapes(spec)))
    for name, shape in adaptable_shapes(spec).items():
        np.testing.assert_allclose(checkpoint.read(name), expected[name].reshape(shape), rtol=1e-5, atol=1e-6)


def test_an_artifact_knows_what_was_merged(base: Path, tmp_path: Path) -> None:
    folder, other = write_adapter(base, tmp_path / "a"), write_adapter(base, tmp_path / "b", seed=1)
    plain = compile_checkpoint(base, tmp_path / "plain")
    merged = compile_checkpoint(base, tmp_path / "merged", QwenchConfig(merged_lora=str(folder)))
    assert str(merged.config.merged_lora).startswith("a sha256:")
    assert merged.manifest.source_digest != plain.manifest.source_digest
    assert {c.stored for c in merged.manifest.conversions.values()} == {"BF16", "BF16 with LoRA"}
    assert resolve_model(tmp_path / "merged", QwenchConfig(merged_lora=str(folder))).config == merged.config
    with pytest.raises(ConfigError, match="merged_lora is"):
        resolve_model(tmp_path / "merged", QwenchConfig(merged_lora=str(other)))


def test_tied_models(tmp_path: Path) -> None:
    """A head that is the embedding gets an adapter of its own beside it, but none merged into it."""
    base = write_checkpoint(tmp_path / "base", tie_word_embeddings=True)
    folder = write_adapter(base, tmp_path / "a", target_modules=["lm_head", "up_proj"])
    expected = greedy(load_peft(base, folder), PROMPTS[0], 8)
    with LLM(base, lora={"a": folder}) as llm:
        assert tokens_of(llm.generate(PROMPTS[0], GREEDY, lora="a"))[0][:8] == expected
    with pytest.raises(CheckpointError, match="one matrix in this model"):
        LLM(base, merged_lora=str(folder))


def test_another_model_s_adapter(base: Path, tmp_path: Path) -> None:
    larger = write_checkpoint(tmp_path / "larger", hidden_size=128, num_hidden_layers=3)
    folder = write_adapter(larger, tmp_path / "a")
    with LLM(base) as llm:
        with pytest.raises(QwenchError, match="another model's adapter"):
            llm.load_lora("a", folder)
        assert llm.loras == () and tokens_of(llm.generate(PROMPTS[0], GREEDY))
