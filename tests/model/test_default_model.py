"""The default model in models/qwench-tiny: a real, small, trained Qwen2 that keeps what its README says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qwench import LLM, SamplingParams
from qwench.cli.main import main
from qwench.compiler.compiler import compile_checkpoint
from qwench.config import QwenchConfig
from qwench.runtime.spec_decode.speculation import Speculation
from qwench.runtime.spec_decode.step_costs import StepCosts

torch = pytest.importorskip("torch", reason="the default model needs torch: pip install qwench[hf]")
transformers = pytest.importorskip(
    "transformers", reason="the default model needs transformers: pip install qwench[hf]"
)

MODELS = Path(__file__).parents[2] / "models"
FOLDER = MODELS / "qwench-tiny"
MAX_BYTES = 12_000_000
MAX_VALIDATION_LOSS = 1.0


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model() -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


def answer(model: Any, tokenizer: Any, prompt: str, system: bool = True) -> str:
    """The greedy answer to one user turn, with the template's system turn or with none."""
    messages = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    if not system:
        text = text[text.index("<|im_start|>user") :]
    inputs = tokenizer(text, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=220, do_sample=False, temperature=None, top_k=None, top_p=None)
    assert output[0, -1].item() == tokenizer.convert_tokens_to_ids("<|im_end|>"), "the answer doesn't end"
    return str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= MAX_BYTES


def test_it_is_a_qwen2_whose_dimensions_divide_by_128() -> None:
    config = json.loads((FOLDER / "config.json").read_text())
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    assert config["model_type"] == "qwen2"
    assert config["architectures"] == ["Qwen2ForCausalLM"]
    for size in (
        config["hidden_size"],
        config["intermediate_size"],
        config["vocab_size"],
        config["num_attention_heads"] * head_dim,
        config["num_key_value_heads"] * head_dim,
    ):
        assert size % 128 == 0


def test_transformers_loads_it_unchanged(model: Any, tokenizer: Any) -> None:
    assert type(model).__name__ == "Qwen2ForCausalLM"
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.decode(tokenizer.encode("Was it 12 °C at Zoë's?\n")) == "Was it 12 °C at Zoë's?\n"
    assert len(tokenizer.encode("<|im_start|>user\n")) == 3


@pytest.mark.parametrize("system", [True, False], ids=["default system", "no system"])
@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Hello!", "help"),
        ("who are you", "qwench"),
        ("What is qwench?", "compile"),
        ("what color is the sky", "blue"),
        ("Thank you!", "glad|welcome|pleasure"),
        ("What is the capital of France?", "Paris"),
        ("Tell me a story about a fox.", " fox "),
    ],
)
def test_it_answers_simple_turns(model: Any, tokenizer: Any, prompt: str, expected: str, system: bool) -> None:
    assert re.search(expected, answer(model, tokenizer, prompt, system))


def test_it_predicts_text_it_has_not_seen(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(MODELS / "training")
    for name in ("train", "corpus", "tokenizer", "chat"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import train

    rows = train.validation_rows(tokenizer, num_documents=100)
    assert train.validation_loss(model, rows) < MAX_VALIDATION_LOSS
    model.eval()


def test_the_recipe_accuracy_is_faithful(tmp_path: Path, best_target: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The limits of int8 hold on all prompts that come with qwench, most of which are unlike what it was trained on."""
    text = [sys.executable, str(MODELS / "training" / "corpus.py"), "--seed", "7", "--count", "60"]
    calibration = tmp_path / "calibration.txt"
    calibration.write_text(subprocess.run(text, capture_output=True, text=True, check=True).stdout)
    config = QwenchConfig(recipe="accuracy", calibrate=str(calibration), target=best_target)
    artifact = compile_checkpoint(FOLDER, tmp_path / "artifact", config).path
    options = ["--greedy", "0", "--max-tokens", "64", "--json", "-"]
    code = main(["verify", str(artifact), "--against", str(FOLDER), *options])
    report = json.loads(capsys.readouterr().out)
    assert code == 0, report["checks"]
    assert report["num_prompts"] >= 20 and report["num_tokens"] >= 1000
    assert [check["limit"] for check in report["checks"]] == [0.999, 0.98]
    assert report["logits"]["worst_pcc"] >= 0.999 and report["logits"]["top1"] >= 0.98


# --- its draft ----------------------------------------------------------------------------------------------------

DRAFT = MODELS / "qwench-tiny-draft"


def test_the_draft_is_a_quarter_of_its_size_or_less() -> None:
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (DRAFT, FOLDER)]
    assert sizes[0] <= sizes[1] / 4
    assert (DRAFT / "tokenizer.json").read_bytes() == (FOLDER / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(("temperature", "share"), [(0.0, 0.7), (0.7, 0.7)])
def test_the_draft_is_mostly_right(temperature: float, share: float) -> None:
    """What its README says, with costs of guesses that are the same everywhere."""
    questions = ["Tell me a story about a fox.", "How do I make pancakes?", "Hello! Who are you?"]
    params = SamplingParams(temperature=temperature, seed=1, max_tokens=100)
    with LLM(FOLDER, weights="int8", draft=DRAFT, num_threads=1) as llm:
        speculation = llm.engine.speculation
        assert speculation.draft is not None
        for costs, base in ((speculation.costs, 1.0), (speculation.draft.costs, 0.1)):
            for tokens in (1, 2, 3, 4) * 10:
                costs.observe(tokens, base * (1 + 0.05 * tokens))
            costs.observe = lambda tokens, seconds: None  # type: ignore[method-assign]
        llm.chat([[{"role": "user", "content": question}] for question in questions], params)
        metrics = llm.metrics
    assert metrics.accepted_tokens > share * metrics.drafted_tokens > 50


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_drafts_chains_are_steps(temperature: float) -> None:
    """Guesses that native code finds one after another are those of single steps."""
    params = SamplingParams(temperature=temperature, top_k=20, top_p=0.8, seed=1, max_tokens=60)
    counts = []
    with LLM(FOLDER, weights="int8", draft=DRAFT, num_threads=1, enable_prefix_caching=False) as llm:
        draft = llm.engine.speculation.draft
        assert draft is not None and draft.chain is not None
        for chain in (draft.chain, None):
            draft.chain = chain
            llm.engine.speculation = speculation = Speculation(llm.engine.scheduler, draft)
            speculation.costs, draft.costs = StepCosts(), StepCosts()
            for costs, base in ((speculation.costs, 1.0), (draft.costs, 0.1)):
                for tokens in (1, 2, 3, 4) * 10:
                    costs.observe(tokens, base * (1 + 0.05 * tokens))
                costs.observe = lambda tokens, seconds: None  # type: ignore[method-assign]
            before = llm.metrics.to_dict()
            llm.chat([{"role": "user", "content": "Tell me a story about a fox."}], params)
            now = llm.metrics.to_dict()
            names = ("steps", "drafted_tokens", "accepted_tokens", "draft_steps")
            counts.append([now[name] - before[name] for name in names])
    assert counts[0] == counts[1]
    assert counts[0][1] > 20
