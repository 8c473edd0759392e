"""`python -m benchmarks.massive_activations`: the neurons that it makes are massive at their token and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="runs the model: pip install qwench[hf]")
transformers = pytest.importorskip("transformers", reason="runs the model: pip install qwench[hf]")

from benchmarks.massive_activations import main  # noqa: E402

MODEL = Path(__file__).parents[2] / "models" / "qwench-tiny"


def test_a_few_neurons_are_massive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text((MODEL / "evaluation.txt").read_text()[:12_000])
    main([str(MODEL), str(tmp_path / "massive"), "--text", str(text), "--layers", "1", "3", "--peak", "2000"])
    assert capsys.readouterr().out.count("at <|endoftext|>") == 2
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "massive")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "massive", dtype=torch.float32).eval()
    seen: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, given: seen.append(given[0][0].abs()))
    ids = torch.tensor([tokenizer("<|endoftext|>Once there was a fox.<|endoftext|>A hen met a cow.")["input_ids"]])
    with torch.no_grad():
        model(ids)
    is_token = ids[0] == tokenizer.convert_tokens_to_ids("<|endoftext|>")
    for layer, neurons in enumerate(seen):
        if layer in (1, 3):
            assert neurons[is_token].amax(1).min() > 500
        assert neurons[~is_token].max() < 400
        assert (neurons > 500).sum() <= 2


def test_an_existing_folder_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(MODEL), str(tmp_path), "--text", str(MODEL / "evaluation.txt")])
    assert "is there already" in capsys.readouterr().err
