"""`generate` against transformers in fp32, token for token: greedy over random shapes, and every decoding mode.

Whatever the engine does itself or transformers' loop does over `forward`, the truth is transformers' own model.
"""

from __future__ import annotations

import copy
import dataclasses
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="compares with transformers: pip install qwench[hf]")
pytest.importorskip("torch", reason="compares with transformers: pip install qwench[hf]")

import torch
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MaxTimeCriteria,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
    TextStreamer,
    WatermarkingConfig,
    pipeline,
    set_seed,
)
from transformers_parity import (
    OLDER,
    Ties,
    assert_same_tokens,
    left_padded,
    load_truth,
    random_prompts,
    write_checkpoint,
)

from qwench import QwenchForCausalLM
from qwench.errors import ConfigError, TargetError
from qwench.targets.registry import get_target

NEW = 24
CHUNK = 8
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "rope_theta": 5e5, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}


def _sliding(window: int, first: int, **more: Any) -> dict[str, Any]:
    return {"use_sliding_window": True, "sliding_window": window, "max_window_layers": first, **more}


def _heads(heads: int, kv_heads: int, hidden: int, **more: Any) -> dict[str, Any]:
    return {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "hidden_size": hidden, **more}


# heads, key-value heads, hidden: GQA ratios 1 to 7, odd head counts, sizes that divide by 128, by 2, or by nothing much
CONFIGS: list[dict[str, Any]] = [
    _heads(1, 1, 30, intermediate_size=50),
    _heads(2, 1, 64, tie_word_embeddings=True),
    _heads(3, 1, 96, intermediate_size=200),
    _heads(3, 3, 66, intermediate_size=70, rope_parameters=YARN),
    _heads(4, 1, 72, tie_word_embeddings=True, rope_parameters=LLAMA3),
    _heads(4, 4, 128, intermediate_size=256, vocab_size=384),
    _heads(5, 1, 100, intermediate_size=36, num_hidden_layers=3),
    _heads(5, 5, 50, **_sliding(7, 1)),
    _heads(6, 1, 84, rope_parameters=LINEAR),
    _heads(6, 2, 96, **_sliding(16, 0), tie_word_embeddings=True),
    _heads(6, 3, 60, intermediate_size=128, vocab_size=257),
    _heads(7, 1, 112, head_dim=16, rope_parameters=YARN, tie_word_embeddings=True),
    _heads(7, 7, 70, intermediate_size=90),
    _heads(8, 2, 128, intermediate_size=384, num_hidden_layers=3, vocab_size=512),
    _heads(9, 3, 54, **_sliding(5, 2), num_hidden_layers=3),
    _heads(10, 2, 80, rope_parameters={**YARN, "attention_factor": 1.2}),
    _heads(12, 2, 120, intermediate_size=130, rope_parameters=LLAMA3),
    _heads(14, 2, 112, tie_word_embeddings=True, intermediate_size=152),
    _heads(3, 1, 64, head_dim=32),
    _heads(5, 1, 64, head_dim=8, rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
    _heads(4, 2, 64, head_dim=64, **_sliding(33, 1, rope_parameters=YARN)),
    _heads(2, 2, 46, head_dim=24, intermediate_size=47, vocab_size=301, rms_norm_eps=1e-5),
]
OTHER_TARGETS = {"reference": (3, 9, 20), "cpu-avx2": (4, 13), "cpu-generic": (11, 16)}


@pytest.fixture(scope="module")
def ties() -> Iterator[Ties]:
    """Excused differences of the module: shown, and few."""
    found = Ties([])
    yield found
    for line in found.shown:
        print("tie:", line)
    assert len(found.shown) <= 3


def _parity_cases() -> list[Any]:
    cases = [(i, "best") for i in range(len(CONFIGS))]
    cases += [(i, target) for target, indices in OTHER_TARGETS.items() for i in indices]
    return [pytest.param(i, target, id=f"{i}-{target}") for i, target in cases]


@pytest.mark.parametrize(("index", "target"), _parity_cases())
def test_greedy(index: int, target: str, best_target: str, tmp_path: Path, ties: Ties) -> None:
    """Left padding, unequal lengths, one token, exactly one chunk, and the full context (104 + 24 of 128)."""
    folder = write_checkpoint(tmp_path, seed=index, **CONFIGS[index])
    truth = load_truth(folder)
    target = best_target if target == "best" else _runnable(target)
    model = QwenchForCausalLM.from_pretrained(
        folder, qwench_target=target, qwench_prefill_chunk_size=CHUNK, qwench_kvcache_block_size=16
    )
    inputs = left_padded(random_prompts(index, truth.config.vocab_size, [1, CHUNK, 13, 104]))
    theirs = truth.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    native = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    assert_same_tokens(truth, inputs, native, theirs, ties)
    if index % 4 == 0:
        loop = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True)
        assert torch.equal(loop.sequences, native)


def _runnable(target: str) -> str:
    try:
        get_target(target)
    except TargetError as error:
        pytest.skip(str(error))
    return target


DEFAULT_MODEL = Path(__file__).parents[2] / "models" / "qwench-tiny"


@pytest.mark.skipif(not any(DEFAULT_MODEL.glob("*.safetensors")), reason="models/qwench-tiny holds no weights")
def test_greedy_on_the_default_model(best_target: str, ties: Ties) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEFAULT_MODEL, padding_side="left")
    truth, model = (
        load_truth(DEFAULT_MODEL),
        QwenchForCausalLM.from_pretrained(DEFAULT_MODEL, qwench_target=best_target),
    )
    chat = [{"role": "user", "content": "Tell me a story about a dog."}]
    texts = ["Once upon a time", "A", tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
    theirs = truth.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    assert_same_tokens(truth, inputs, model.generate(**inputs, max_new_tokens=NEW, do_sample=False), theirs, ties)


def test_logits_closer_than_transformers_in_bf16(tmp_path: Path, best_target: str) -> None:
    """Mean KL and the worst token's correlation against fp32: qwench's bf16 beats transformers' bf16."""
    folder = write_checkpoint(tmp_path, seed=3, num_hidden_layers=4, hidden_size=128, intermediate_size=256)
    ids = torch.randint(0, 300, (4, 64), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        exact = load_truth(folder)(ids).logits
        theirs = load_truth(folder, torch.bfloat16)(ids).logits.float()
    model = QwenchForCausalLM.from_pretrained(folder, qwench_weights="bf16", qwench_target=best_target)
    kl, correlation = _mean_kl(exact, model(ids).logits), _worst_correlation(exact, model(ids).logits)
    their_kl, their_correlation = _mean_kl(exact, theirs), _worst_correlation(exact, theirs)
    print(f"KL {kl:.3g} against {their_kl:.3g}, worst correlation {correlation:.9f} against {their_correlation:.9f}")
    assert kl < their_kl and correlation > their_correlation


def _mean_kl(exact: torch.Tensor, other: torch.Tensor) -> float:
    p, q = (torch.log_softmax(x.double(), dim=-1) for x in (exact, other))
    return float((p.exp() * (p - q)).sum(-1).mean())


def _worst_correlation(exact: torch.Tensor, other: torch.Tensor) -> float:
    a, b = (x.double() - x.double().mean(-1, keepdim=True) for x in (exact, other))
    return float(((a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))).min())


# --- decoding modes, each token for token -------------------------------------------------------------------------


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    return left_padded(random_prompts(21, 300, [6, 17, 11]))


@pytest.fixture
def single() -> dict[str, torch.Tensor]:
    return left_padded(random_prompts(22, 300, [15]))


AN_END = {"eos_token_id": 299, "pad_token_id": 0}  # without one transformers 4 can't look guesses up in the prompt


class OnlyEven(LogitsProcessor):
    """A processor that the engine can't know."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.masked_fill(torch.arange(scores.shape[1]) % 2 == 1, -torch.inf)


class AfterLength(StoppingCriteria):
    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), input_ids.shape[1] >= 23)


MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy_without_cache": {"use_cache": False, "return_dict_in_generate": True},
    "eos": {"eos_token_id": [17, 33, 250, 100, 200], "pad_token_id": 0},
    "min_new_tokens": {"min_new_tokens": 9, "eos_token_id": list(range(0, 300, 3)), "pad_token_id": 0},
    "max_length": {"max_length": 40, "max_new_tokens": None},
    "repetition_penalty": {"repetition_penalty": 1.3},
    "no_repeat_ngram": {"no_repeat_ngram_size": 2},
    "bad_words": {"bad_words_ids": [[i] for i in range(0, 300, 2)]},
    "processor": {"logits_processor": LogitsProcessorList([OnlyEven()])},
    "stopping": {"stopping_criteria": StoppingCriteriaList([AfterLength()])},
    "max_time": {"stopping_criteria": StoppingCriteriaList([MaxTimeCriteria(1000.0)])},
    "sample": {"do_sample": True},
    "sample_top_k_p": {"do_sample": True, "top_k": 20, "top_p": 0.8, "temperature": 1.7},
    "sample_min_p": {"do_sample": True, "min_p": 0.05, "top_k": 0},
    "sample_return_sequences": {"do_sample": True, "num_return_sequences": 3},
    "beam": {"num_beams": 4},
    "beam_return_sequences": {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.5},
    "beam_eos": {"num_beams": 3, "eos_token_id": list(range(0, 300, 7)), "pad_token_id": 0, "early_stopping": True},
    "beam_sample": {"num_beams": 3, "do_sample": True, "temperature": 1.5},
    "guidance": {"guidance_scale": 1.5},
    "chunked_prefill": {"prefill_chunk_size": 5, "return_dict_in_generate": True},
    "prefix_allowed": {"prefix_allowed_tokens_fn": lambda row, ids: [3, 5, 8 + row, 100]},
    "typical": {"do_sample": True, "typical_p": 0.5},
    "cutoffs": {"do_sample": True, "eta_cutoff": 0.01, "epsilon_cutoff": 0.01},
    "sequence_bias": {"sequence_bias": {(5,): 10.0}},
    "watermark": {"watermarking_config": WatermarkingConfig(bias=2.5)},
    "forced_and_suppressed": {"forced_eos_token_id": 9, "suppress_tokens": [1, 2], "begin_suppress_tokens": [3]},
    "negative_prompt": {"guidance_scale": 2.0, "negative_prompt_ids": torch.tensor([[7, 8], [9, 3], [4, 4]])},
    "all_logits": {"logits_to_keep": 0, "return_dict_in_generate": True},
    "position_ids": {"position_ids": torch.arange(17).expand(3, 17) - torch.tensor([[11], [0], [6]])},
    "dynamic_cache": {"cache_implementation": "dynamic"},
    "generation_config": {"generation_config": GenerationConfig(max_new_tokens=11, repetition_penalty=1.1)},
}


# Older releases forget the padding when they read a prompt in chunks, and positions after the first step.
@pytest.mark.parametrize("mode", [m for m in MODES if not (OLDER and m in ("chunked_prefill", "position_ids"))])
def test_mode(pair: tuple[Any, Any], batch: dict[str, torch.Tensor], mode: str) -> None:
    ours, theirs = (_generate(model, batch, MODES[mode]) for model in pair)
    assert torch.equal(*(getattr(x, "sequences", x) for x in (ours, theirs)))


def _generate(model: Any, inputs: dict[str, torch.Tensor], kwargs: dict[str, Any]) -> Any:
    set_seed(5)
    defaults = {} if "generation_config" in kwargs else {"max_new_tokens": 20}
    if OLDER and "prompt_lookup_num_tokens" in kwargs:
        defaults |= AN_END
    return model.generate(**inputs, **(defaults | kwargs))


@pytest.mark.parametrize("penalty", [1.05, 1.3, 0.8])
def test_repetition_penalty_in_the_engine(pair: tuple[Any, Any], penalty: float) -> None:
    """Greedy batches with a penalty, as Qwen2.5's own generation config asks for; padding isn't penalised."""
    inputs = left_padded(random_prompts(30, 300, [12, 7]), pad=17)
    model, truth = pair
    before = model.engine.metrics.steps
    ours = _generate(model, inputs, {"repetition_penalty": penalty, "max_new_tokens": NEW})
    assert OLDER or model.engine.metrics.steps > before  # which penalise padding; the engine doesn't
    assert torch.equal(ours, _generate(truth, inputs, {"repetition_penalty": penalty, "max_new_tokens": NEW}))


@pytest.mark.parametrize("kwargs", [{}, {"do_sample": True}, {"num_beams": 3}, {"prompt_lookup_num_tokens": 3}])
def test_scores_and_logits(pair: tuple[Any, Any], single: dict[str, torch.Tensor], kwargs: dict[str, Any]) -> None:
    wanted = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, **kwargs}
    ours, theirs = (_generate(model, single, wanted) for model in pair)
    assert type(ours) is type(theirs) and torch.equal(ours.sequences, theirs.sequences)
    for name in ("scores", "logits"):
        for mine, right in zip(getattr(ours, name), getattr(theirs, name), strict=True):
            torch.testing.assert_close(mine, right, rtol=1e-3, atol=1e-3)
    beams = getattr(ours, "beam_indices", None)
    transitions = [
        model.compute_transition_scores(theirs.sequences, theirs.scores, beams, normalize_logits=True) for model in pair
    ]
    assert torch.equal(*transitions)
    if "num_beams" in kwargs:
        assert torch.equal(ours.beam_indices, theirs.beam_indices)
        torch.testing.assert_close(ours.sequences_scores, theirs.sequences_scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kwargs", [{}, {"do_sample": True}, {"repetition_penalty": 1.2}])
def test_prompt_lookup(pair: tuple[Any, Any], single: dict[str, torch.Tensor], kwargs: dict[str, Any]) -> None:
    repeated = {name: tensor.repeat(1, 3) for name, tensor in single.items()}
    ours, theirs = (_generate(model, repeated, {"prompt_lookup_num_tokens": 4, **kwargs}) for model in pair)
    assert torch.equal(ours, theirs)


# Older releases penalise padding, which the engine doesn't: their own loop answers, one request at a time.
LOOKUP_MODES = [{"eos_token_id": [17, 33], "pad_token_id": 0}, {}, *([] if OLDER else [{"repetition_penalty": 1.1}])]


@pytest.mark.parametrize("kwargs", LOOKUP_MODES)
def test_prompt_lookup_in_the_engine(pair_folder: Path, best_target: str, kwargs: dict[str, Any]) -> None:
    """Greedy prompt lookup never enters transformers' loop: fewer steps, transformers' tokens, batches too."""
    model = QwenchForCausalLM.from_pretrained(pair_folder, qwench_target=best_target)
    truth = load_truth(pair_folder)
    asked = {"logits_processor": LogitsProcessorList(), "max_new_tokens": 60, "do_sample": False}
    asked |= (AN_END if OLDER else {}) | kwargs
    prompts = [p.repeat(3) for p in random_prompts(12, 300, [9, 20])]
    for prompt in prompts:
        inputs = left_padded([prompt])
        ours = model.generate(**inputs, prompt_lookup_num_tokens=10, **asked)
        assert torch.equal(ours, truth.generate(**inputs, prompt_lookup_num_tokens=10, **asked))
    metrics = model.engine.metrics
    assert metrics.requests == 2 and metrics.drafted_tokens > 0
    batch = left_padded(prompts)
    assert torch.equal(
        model.generate(**batch, prompt_lookup_num_tokens=10, **asked), truth.generate(**batch, **asked)
    )  # which transformers itself refuses
    for refused in ({"prompt_lookup_num_tokens": 0}, {"prompt_lookup_num_tokens": 3, "use_cache": False}):
        with pytest.raises((ValueError, RuntimeError)):  # which of them, depends on transformers
            model.generate(**left_padded(prompts[:1]), **asked, **refused)


@pytest.mark.parametrize("kwargs", [{}, {"do_sample": True}])
def test_assistant_model(
    pair: tuple[Any, Any], single: dict[str, torch.Tensor], tmp_path: Path, kwargs: dict[str, Any]
) -> None:
    """A transformers model drafts for qwench's, and qwench's drafts for transformers'."""
    model, truth = pair
    folder = write_checkpoint(tmp_path, seed=9, num_hidden_layers=1)
    answers = [_generate(m, single, {"assistant_model": load_truth(folder), **kwargs}) for m in pair]
    assert torch.equal(*answers)
    if not kwargs:
        assert torch.equal(answers[0], _generate(truth, single, {}))
        assert torch.equal(answers[0], _generate(truth, single, {"assistant_model": model}))
        assert torch.equal(answers[0], _generate(model, single, {"assistant_model": model}))


def test_a_compiled_assistant_drafts_in_the_engine(
    pair: tuple[Any, Any], single: dict[str, torch.Tensor], tmp_path: Path, best_target: str
) -> None:
    """Greedy calls never enter transformers' loop: its tokens in fewer steps, batches too; another draft may follow."""
    model, truth = pair
    plain = _generate(truth, single, {"max_new_tokens": 40})
    folder = write_checkpoint(tmp_path, seed=9, num_hidden_layers=1)
    other = QwenchForCausalLM.from_pretrained(folder, qwench_target=best_target, qwench_weights="int8")
    metrics = model.engine.metrics
    for assistant, share in ((model, 1.0), (other, 0.0), (model, 1.0)):
        before = dataclasses.replace(metrics)
        assert torch.equal(_generate(model, single, {"assistant_model": assistant, "max_new_tokens": 40}), plain)
        drafted = metrics.draft_model_tokens - before.draft_model_tokens
        assert metrics.draft_model_accepted_tokens - before.draft_model_accepted_tokens >= share * drafted
        assert metrics.generated_tokens > before.generated_tokens
        assert model.engine.speculation.draft is None
    rows = {name: value.repeat(2, 1) for name, value in single.items()}
    assert torch.equal(
        model.generate(**rows, max_new_tokens=20, do_sample=False, assistant_model=other)[0],
        model.generate(**single, max_new_tokens=20, do_sample=False)[0],
    )


def test_an_assistant_with_other_tokens(pair: tuple[Any, Any], single: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """Padding is no difference, as between the small and the large Qwen2.5."""
    model, _ = pair
    padded, other = (
        QwenchForCausalLM.from_pretrained(write_checkpoint(tmp_path / str(size), seed=9, vocab_size=size))
        for size in (320, 2000)
    )
    asked: dict[str, Any] = {**single, "max_new_tokens": 10, "do_sample": False}
    assert torch.equal(model.generate(**asked, assistant_model=padded), model.generate(**asked))
    with pytest.raises(ConfigError, match="has 2000 tokens"):
        model.generate(**asked, assistant_model=other)


EMBED_MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sample": {"do_sample": True, "num_return_sequences": 2},
    "beam": {"num_beams": 3, "num_return_sequences": 2},
    "eos": {"eos_token_id": list(range(0, 300, 9)), "pad_token_id": 0},
    "max_length": {"max_length": 30, "max_new_tokens": None},
    "min_length": {"min_length": 25, "eos_token_id": list(range(0, 300, 9)), "pad_token_id": 0},
    "repetition_penalty": {"repetition_penalty": 1.3},
}


@pytest.mark.parametrize("with_ids", [False, True, "fewer"])
@pytest.mark.parametrize("mode", EMBED_MODES)
def test_inputs_embeds(pair: tuple[Any, Any], batch: dict[str, torch.Tensor], mode: str, with_ids: bool | str) -> None:
    """Without input_ids only new tokens come back, with them the ids before them, though the embeddings are read."""
    model = pair[0]
    embeds = torch.randn(3, 17, 64, generator=torch.Generator().manual_seed(13))
    inputs = {"inputs_embeds": embeds, "attention_mask": batch["attention_mask"]}
    if with_ids:
        inputs["input_ids"] = batch["input_ids"][:, -4:] if with_ids == "fewer" else batch["input_ids"]
    ours, theirs = (_generate(m, inputs, EMBED_MODES[mode]) for m in pair)
    assert torch.equal(ours, theirs)
    alone = {"inputs_embeds": model.get_input_embeddings()(batch["input_ids"]), **batch}
    assert torch.equal(_generate(model, alone, EMBED_MODES[mode]), _generate(model, batch, EMBED_MODES[mode]))


@pytest.mark.parametrize(
    "kwargs",
    [
        {}, {"do_sample": True}, {"num_beams": 3}, {"num_beams": 2, "do_sample": True}, {"use_cache": False},
        {"prompt_lookup_num_tokens": 3}, {"num_return_sequences": 2, "do_sample": True},
    ],
    ids=str,
)  # fmt: skip
def test_hidden_states_of_generated_tokens(pair: tuple[Any, Any], single: Any, kwargs: dict[str, Any]) -> None:
    wanted = {"output_hidden_states": True, "return_dict_in_generate": True, "max_new_tokens": 8, **kwargs}
    ours, theirs = (_generate(model, single, wanted) for model in pair)
    assert torch.equal(ours.sequences, theirs.sequences)
    for mine, right in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        assert isinstance(mine, tuple) and len(mine) == len(right)
        for a, b in zip(mine, right, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_continue_from_past_key_values(pair: tuple[Any, Any], batch: dict[str, torch.Tensor]) -> None:
    """A second turn on the first one's cache, with the whole text or only its new part as input."""
    answers = []
    for model in pair:
        first = _generate(model, batch, {"return_dict_in_generate": True})
        more = torch.cat([first.sequences, torch.tensor([[7, 8], [9, 10], [11, 12]])], dim=1)
        mask = torch.nn.functional.pad(
            batch["attention_mask"], (0, more.shape[1] - batch["attention_mask"].shape[1]), value=1
        )
        inputs = {"input_ids": more, "attention_mask": mask}
        only_new = {"input_ids": more[:, first.past_key_values.get_seq_length() :], "attention_mask": mask}
        fork = copy.deepcopy(first.past_key_values)
        answers.append(_generate(model, inputs, {"past_key_values": first.past_key_values}))
        assert torch.equal(answers[-1], _generate(model, inputs, {}))
        if not OLDER:  # which takes the whole text only
            short = _generate(model, only_new, {"past_key_values": fork})
            assert torch.equal(short[:, -20:], answers[-1][:, -20:])
    assert torch.equal(*answers)


def test_continue_from_inputs_embeds(pair: tuple[Any, Any], single: dict[str, torch.Tensor]) -> None:
    """A prompt of embeddings goes on with its answer as embeddings, or as ids."""
    answers = []
    for model in pair:
        embed = model.get_input_embeddings()
        prompt = embed(single["input_ids"])
        first = model.generate(inputs_embeds=prompt, max_new_tokens=3, return_dict_in_generate=True)
        fork = copy.deepcopy(first.past_key_values)
        more = torch.cat([prompt, embed(first.sequences)], dim=1)
        answers.append(model.generate(inputs_embeds=more, past_key_values=first.past_key_values, max_new_tokens=9))
        ids = torch.cat([single["input_ids"], first.sequences], dim=1)
        assert torch.equal(model.generate(ids, past_key_values=fork, max_new_tokens=9)[:, -9:], answers[-1])
    assert torch.equal(*answers)


def test_without_any_input(pair: tuple[Any, Any]) -> None:
    """transformers begins with the token of the beginning."""
    assert torch.equal(*(model.generate(bos_token_id=5, max_new_tokens=9, do_sample=False) for model in pair))


def test_a_new_cache_is_filled(pair: tuple[Any, Any], batch: dict[str, torch.Tensor]) -> None:
    """A cache given by the caller holds the sequences afterwards, even where the engine could do without it."""
    model, _ = pair
    cache = model.new_cache()
    answer = model.generate(**batch, past_key_values=cache, max_new_tokens=5)
    assert torch.equal(answer, model.generate(**batch, max_new_tokens=5))
    assert cache.get_seq_length() == answer.shape[1] - 1 and cache.batch_size == 3


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_quantised_paths_agree(pair_folder: Path, best_target: str, batch: dict[str, Any], weights: str) -> None:
    """The engine, transformers' loop and assisted decoding see the same bits of one model."""
    model = QwenchForCausalLM.from_pretrained(pair_folder, qwench_weights=weights, qwench_target=best_target)
    native = model.generate(**batch, max_new_tokens=30)
    loop = model.generate(**batch, max_new_tokens=30, return_dict_in_generate=True)
    assert torch.equal(native, loop.sequences)
    for row in range(len(native)):
        prompt = batch["input_ids"][row][batch["attention_mask"][row].bool()][None]
        assisted = model.generate(prompt, max_new_tokens=30, prompt_lookup_num_tokens=3)
        assert torch.equal(assisted[0, prompt.shape[1] :], native[row, -30:])


def test_batches_share_the_engine(pair: tuple[Any, Any], batch: dict[str, torch.Tensor]) -> None:
    """Threads that generate at once get the answers they would get alone, by either path."""
    model, _ = pair
    kinds: list[dict[str, Any]] = [{}, {"num_beams": 2}, {"return_dict_in_generate": True}]
    alone = [_sequences(model.generate(**batch, max_new_tokens=12, **kind)) for kind in kinds]
    together: dict[int, torch.Tensor] = {}

    def work(i: int) -> None:
        together[i] = _sequences(model.generate(**batch, max_new_tokens=12, **kinds[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(alone[i], together[i]) for i in range(3))


def _sequences(answer: Any) -> torch.Tensor:
    return getattr(answer, "sequences", answer)


# --- text: streamers, stop strings, pipeline ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One word per token id: w0 to w298, and the word that transformers' stop strings try a tokenizer with."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(299)} | {"abcdef": 299}, unk_token="w1"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", unk_token="w1", padding_side="left")


@dataclass
class Recorder:
    """A streamer that keeps what it gets."""

    values: list[list[int]] = field(default_factory=list)
    ended: int = 0

    def put(self, value: torch.Tensor) -> None:
        self.values.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended += 1


@pytest.mark.parametrize("kwargs", [{}, {"do_sample": True}, {"prompt_lookup_num_tokens": 3}])
def test_streamers(
    pair: tuple[Any, Any], tokenizer: Any, kwargs: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = tokenizer("w5 w6 w7 w5 w6", return_tensors="pt", return_token_type_ids=False)
    recorders = [Recorder(), Recorder()]
    for model, recorder in zip(pair, recorders, strict=True):
        _generate(model, inputs, {"streamer": recorder, **kwargs})
    if "prompt_lookup_num_tokens" in kwargs:  # transformers puts accepted tokens together, the engine each alone
        for recorder in recorders:
            recorder.values = [[token] for value in recorder.values for token in value]
    assert recorders[0] == recorders[1] and recorders[0].ended == 1
    texts = []
    for model in pair:
        _generate(model, inputs, {"streamer": TextStreamer(tokenizer), **kwargs})
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != ""


def test_iterator_streamer_and_batched_streamer(pair: tuple[Any, Any], tokenizer: Any, batch: Any) -> None:
    model, truth = pair
    inputs = tokenizer("w5 w6 w7", return_tensors="pt", return_token_type_ids=False)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=30)
    thread = threading.Thread(target=model.generate, kwargs={**inputs, "streamer": streamer, "max_new_tokens": 9})
    thread.start()
    streamed = "".join(streamer)
    thread.join()
    answer = truth.generate(**inputs, max_new_tokens=9)
    assert streamed == tokenizer.decode(answer[0, 3:])
    recorders = [Recorder(), Recorder()]
    for each, recorder in zip(pair, recorders, strict=True):
        _generate(each, batch, {"streamer": recorder})
    assert recorders[0] == recorders[1]


def test_stop_strings(pair: tuple[Any, Any], tokenizer: Any) -> None:
    inputs = tokenizer(["w5 w6 w7", "w8"], return_tensors="pt", padding=True, return_token_type_ids=False)
    free = _generate(pair[1], inputs, {})
    word = tokenizer.decode(free[0, 3 + 6])
    ours, theirs = (
        _generate(model, inputs, {"stop_strings": [word], "tokenizer": tokenizer, "pad_token_id": 0}) for model in pair
    )
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kwargs", [{"do_sample": False}, {"do_sample": True}, {"do_sample": False, "num_beams": 2}])
def test_pipeline(pair: tuple[Any, Any], tokenizer: Any, kwargs: dict[str, Any], monkeypatch: Any) -> None:
    """The same texts, and no word about a class that isn't supported."""
    texts, complaints = [], []
    monkeypatch.setattr("transformers.pipelines.base.logger.error", complaints.append)
    for model in pair:
        pipe = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
        set_seed(5)
        texts.append(pipe(["w5 w6 w7", "w8 w9"], max_new_tokens=8, batch_size=2, **kwargs))
    assert texts[0] == texts[1] and not complaints
    repr(pipe)
