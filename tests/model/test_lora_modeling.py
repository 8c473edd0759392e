"""Adapters in the transformers class and under Optimum RBLN's names, against PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("peft")

import torch
from lora_adapters import load_peft, write_adapter
from transformers_parity import left_padded, write_checkpoint

from qwench import QwenchForCausalLM
from qwench.errors import ConfigError, QwenchError, RequestError
from qwench.rbln import RBLNLoRAAdapterConfig, RBLNLoRAConfig, RBLNQwen2ForCausalLM

PROMPTS = [torch.arange(3, 20), torch.tensor([5, 9, 14]), torch.arange(40, 110, 3)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("base"), seed=3)


@pytest.fixture(scope="module")
def folders(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {"one": write_adapter(base, folder / "1", seed=1), "two": write_adapter(base, folder / "2", seed=2, r=16)}


@pytest.fixture(scope="module")
def truths(base: Path, folders: dict[str, Path]) -> dict[str, Any]:
    return {name: load_peft(base, folder) for name, folder in folders.items()}


@pytest.fixture
def model(base: Path, folders: dict[str, Path]) -> QwenchForCausalLM:
    model = QwenchForCausalLM.from_pretrained(base, qwench_kvcache_block_size=16)
    for name, folder in folders.items():
        model.load_adapter(folder, name)
    return model


MODES: dict[str, dict[str, Any]] = {
    "greedy": {}, "beams": {"num_beams": 3}, "prompt lookup": {"prompt_lookup_num_tokens": 4},
    "processors": {"no_repeat_ngram_size": 2},
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_of_generate_has_the_active_adapter(
    model: QwenchForCausalLM, truths: dict[str, Any], mode: str
) -> None:
    prompts = PROMPTS[:1] if mode == "prompt lookup" else PROMPTS
    inputs = left_padded(prompts)
    options = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0, **MODES[mode]}
    for name in ("one", "two", "one"):
        model.set_adapter(name)
        assert model.active_adapters() == [name]
        expected = truths[name].generate(**inputs, **options)
        assert torch.equal(model.generate(**inputs, **options), expected)
    model.disable_adapters()
    assert model.active_adapters() == []
    with truths["one"].disable_adapter():
        assert torch.equal(model.generate(**inputs, **options), truths["one"].generate(**inputs, **options))
    model.enable_adapters()
    assert model.active_adapters() == ["one"]


def test_forward_and_rows_of_several_adapters(model: QwenchForCausalLM, truths: dict[str, Any]) -> None:
    ids = torch.stack([PROMPTS[0], PROMPTS[0]])
    model.set_adapter(["one", "two"])
    with torch.no_grad():
        expected = torch.cat([truths[name](ids[:1]).logits for name in ("one", "two")])
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-3, atol=1e-4)
    answers = model.generate(ids, max_new_tokens=8, do_sample=False, num_beams=2, pad_token_id=0)
    for row, name in zip(answers, ("one", "two"), strict=True):
        alone = truths[name].generate(ids[:1], max_new_tokens=8, do_sample=False, num_beams=2, pad_token_id=0)
        assert torch.equal(row, alone[0])
    with pytest.raises(RequestError, match="2 adapters, one for each row, but there are 1 rows"):
        model(ids[:1])


def test_what_adapters_refuse(model: QwenchForCausalLM, folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no adapter 'three'; loaded: 'one', 'two'"):
        model.set_adapter("three")
    with pytest.raises(ConfigError, match="already an adapter 'one'"):
        model.load_adapter(folders["one"], "one")
    with pytest.raises(ConfigError, match="is_trainable isn't an option"):
        model.load_adapter(folders["one"], "three", is_trainable=True)
    with pytest.raises(QwenchError, match="no LoRA adapter"):
        model.load_adapter(tmp_path, "three")
    with pytest.raises(ConfigError, match="train with PEFT"):
        model.add_adapter(None)
    with pytest.raises(ConfigError, match="no name"):
        model.set_adapter([])
    model.delete_adapter("two")
    assert model.active_adapters() == []
    model.set_adapter("one")
    model.delete_adapter(["one"])
    with pytest.raises(ConfigError, match="loaded: none"):
        model.set_adapter("one")


def lora_config(folders: dict[str, Path], **options: Any) -> RBLNLoRAConfig:
    return RBLNLoRAConfig(
        adapters=[RBLNLoRAAdapterConfig(1, "one", folders["one"]), RBLNLoRAAdapterConfig(2, "two", folders["two"])],
        **options,
    )


def test_rbln_s_adapters(base: Path, folders: dict[str, Path], truths: dict[str, Any], tmp_path: Path) -> None:
    """Compiled, saved without the adapters' own folders, loaded again."""
    config = lora_config(folders)
    assert (config.adapter_names, config.adapter_ids, config.num_adapters) == (["base", "one", "two"], [0, 1, 2], 3)
    made = RBLNQwen2ForCausalLM.from_pretrained(base, export=True, rbln_lora_config=config, rbln_batch_size=3)
    made.save_pretrained(tmp_path / "saved")
    loaded = RBLNQwen2ForCausalLM.from_pretrained(tmp_path / "saved", rbln_lora_config=config)
    assert [Path(a.lora_path) for a in loaded.rbln_config.lora_config.adapters] == [
        tmp_path / "saved" / "lora" / str(i) for i in (1, 2)
    ]
    ids, options = PROMPTS[0][None], {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    with truths["one"].disable_adapter():
        expected = {"base": truths["one"].generate(ids, **options)}
    expected |= {name: truth.generate(ids, **options) for name, truth in truths.items()}
    for model in (made, loaded):
        assert torch.equal(model.generate(ids, **options), expected["base"])
        for name in config.adapter_names:
            model.set_adapter(name)
            assert torch.equal(model.generate(ids, **options), expected[name])
        rows = model.generate(ids.repeat(3, 1), lora_int_ids=torch.tensor([2, 0, 1]), **options)
        assert torch.equal(rows, torch.cat([expected[name] for name in ("two", "base", "one")]))
        assert model.active_adapters() == ["two"]
        model.set_lora_int_ids([0, 1, 2])
        assert torch.equal(model.generate(ids.repeat(3, 1), **options), torch.cat(list(expected.values())))
        with torch.no_grad():
            logits = truths["two"](ids).logits
        torch.testing.assert_close(model(ids, lora_int_ids=[2]).logits, logits, rtol=1e-3, atol=1e-4)


def test_rbln_s_overrides_of_an_adapter(base: Path, folders: dict[str, Path]) -> None:
    from qwench.checkpoint.spec import ModelSpec
    from qwench.program.models import adaptable_shapes

    shapes = adaptable_shapes(ModelSpec.from_folder(base))
    plain = RBLNLoRAAdapterConfig(1, "a", folders["two"]).read(shapes)
    changed = RBLNLoRAAdapterConfig(
        1, "a", folders["two"], r=16, lora_alpha=4, target_modules=["q_proj"], use_rslora=True, scaling_factor=3
    ).read(shapes)
    assert {pair.scale for pair in plain.pairs.values()} == {1.0}
    assert {pair.scale for pair in changed.pairs.values()} == {3.0}
    assert len(changed.pairs) == 2 and all(".q_proj." in name for name in changed.pairs)


@pytest.mark.parametrize(
    ("adapters", "message"),
    [([], "must be 1, 2"), ([{"lora_int_id": 0, "lora_name": "a", "lora_path": "x"}], "0 is the model itself"),
     ([{"lora_int_id": 2, "lora_name": "a", "lora_path": "x"}], r"ids are \[2\]"),
     ([{"lora_int_id": 1, "lora_name": "base", "lora_path": "x"}], "not 'base'"),
     ([{"lora_int_id": i, "lora_name": "a", "lora_path": "x"} for i in (1, 2)], "one name"),
     ([{"lora_int_id": 1, "lora_name": "a", "lora_path": "x", "bias": "all"}], "bias is 'all'"),
     ([{"lora_int_id": 1, "lora_name": "a", "lora_path": "x", "lora_alpha": -2}], "lora_alpha is -2"),
     ([{"lora_int_id": 1, "lora_name": "a", "lora_path": "x", "rank": 2}], "an adapter isn't one"),
     ([{"lora_int_id": True, "lora_name": "a", "lora_path": "x"}], "lora_int_id is True")],
)  # fmt: skip
def test_rbln_s_rules(adapters: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RBLNLoRAConfig(adapters)
    with pytest.raises(ConfigError, match=message):
        RBLNQwen2ForCausalLM.from_pretrained("nowhere", rbln_lora_config={"adapters": adapters})


def test_rbln_says_what_doesn_t_fit(base: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rank 16, but max_lora_rank is 8"):
        RBLNQwen2ForCausalLM.from_pretrained(base, export=True, rbln_lora_config=lora_config(folders, max_lora_rank=8))
    plain = RBLNQwen2ForCausalLM.from_pretrained(base, export=True)
    with pytest.raises(ConfigError, match="no adapter 'one'"):
        plain.set_adapter("one")
    with pytest.raises(ConfigError, match=r"lora_int_ids are \[1\]; this model has the ids 0 to 0"):
        plain.set_lora_int_ids([1])
    plain.save_pretrained(tmp_path / "saved")
    with pytest.raises(ConfigError, match="lora_config is"):
        RBLNQwen2ForCausalLM.from_pretrained(tmp_path / "saved", rbln_lora_config=lora_config(folders))
