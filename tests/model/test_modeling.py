"""QwenchForCausalLM as a class: loading, saving, options, `forward` and its cache, and what it refuses."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="compares with transformers: pip install qwench[hf]")
pytest.importorskip("torch", reason="compares with transformers: pip install qwench[hf]")

import numpy as np
import torch
from tokenizers import models, pre_tokenizers
from transformers import DynamicCache
from transformers_parity import left_padded, load_truth, random_prompts, write_checkpoint

from qwench import LLM, QwenchConfig, QwenchForCausalLM
from qwench.checkpoint.tokenizer_files import byte_level_tokenizer
from qwench.errors import ArtifactError, CapacityError, ConfigError, DeadlineError, NumericalError, RequestError

CLOSE = {"rtol": 2e-4, "atol": 2e-4}  # fp32 on both sides, summed in different orders


@pytest.fixture
def free_blocks(pair: tuple[Any, Any]) -> Any:
    """Asserts that the test gives every block of the cache back."""
    pool, pages = pair[0].engine.scheduler.pool, pair[0]._pages
    pages.reclaim()
    assert pool.num_free == pool.num_blocks
    yield
    pages.require(pool.num_blocks)


# --- loading and saving -------------------------------------------------------------------------------------------


def test_keyword_wins_over_config_over_default(pair_folder: Path, best_target: str) -> None:
    given = {"max_seq_len": 64, "prefill_chunk_size": 24, "target": best_target}
    model = QwenchForCausalLM.from_pretrained(pair_folder, qwench_config=given, qwench_max_seq_len=48)
    assert (model.qwench_config.max_seq_len, model.qwench_config.prefill_chunk_size) == (48, 24)
    assert model.qwench_config.weights == "bf16"
    assert given == {"max_seq_len": 64, "prefill_chunk_size": 24, "target": best_target}


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"qwench_max_seqlen": 8}, "max_seqlen"),
        ({"qwench_config": {"weight": "int8"}}, "weight"),
        ({"qwench_config": "int8"}, "QwenchConfig or a dict"),
        ({"qwench_weights": "fp4"}, "bf16, int8, int4"),
        ({"load_in_4bit": True}, "load_in_4bit"),
        ({"trust_remote_code": True}, "trust_remote_code"),
        ({"dtype": torch.bfloat16}, "qwench_weights"),
    ],
)
def test_bad_options_are_config_errors(pair_folder: Path, kwargs: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        QwenchForCausalLM.from_pretrained(pair_folder, **kwargs)


def test_harmless_keywords_of_transformers_stay(pair_folder: Path, best_target: str) -> None:
    model = QwenchForCausalLM.from_pretrained(
        pair_folder, device_map="auto", torch_dtype="auto", trust_remote_code=False, qwench_target=best_target
    )
    assert model.to("cpu").eval() is model
    assert model.device == torch.device("cpu") and model.dtype == torch.float32
    assert model.float().cpu().to(dtype=torch.float32) is model and not model.training
    for attempt in (lambda: model.to("cuda"), model.cuda, model.half, lambda: model.to(torch.bfloat16)):
        with pytest.raises(ConfigError, match="stays on the CPU"):
            attempt()


def test_export_none_compiles_once_and_true_again(pair_folder: Path, best_target: str) -> None:
    first = QwenchForCausalLM.from_pretrained(pair_folder, qwench_target=best_target, qwench_max_seq_len=80)
    second = QwenchForCausalLM.from_pretrained(pair_folder, qwench_target=best_target, qwench_max_seq_len=80)
    third = QwenchForCausalLM.from_pretrained(
        pair_folder, export=True, qwench_target=best_target, qwench_max_seq_len=80
    )
    assert first.artifact.path == second.artifact.path != third.artifact.path


def test_save_and_load(pair: tuple[Any, Any], tmp_path: Path) -> None:
    model, _ = pair
    model.save_pretrained(tmp_path / "saved")
    model.save_pretrained(tmp_path / "saved")  # replaces an artifact
    loaded = QwenchForCausalLM.from_pretrained(tmp_path / "saved", export=False)
    assert loaded.artifact.path == tmp_path / "saved"
    where = {"_name_or_path": ""}
    assert loaded.config.to_dict() | where == model.config.to_dict() | where
    assert loaded.generation_config.to_dict() == model.generation_config.to_dict()
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    with pytest.raises(ArtifactError, match="left alone"):
        model.save_pretrained(tmp_path / "mine")
    with pytest.raises(ConfigError, match="push_to_hub"):
        model.save_pretrained(tmp_path / "pushed", push_to_hub=True)


def test_export_false_demands_an_artifact(pair_folder: Path) -> None:
    with pytest.raises(ArtifactError, match="export=False"):
        QwenchForCausalLM.from_pretrained(pair_folder, export=False)


def test_options_of_a_run_reach_the_model_however_it_is_made(
    pair: tuple[Any, Any], pair_folder: Path, tmp_path: Path, best_target: str
) -> None:
    """Compiled now, from the cache, from a live model, from a folder; and an artifact keeps none of them."""
    given = {"qwench_target": best_target, "qwench_max_seq_len": 72, "qwench_timeout": 1e-6}
    model, truth = pair
    model.save_pretrained(tmp_path / "saved")
    ids = torch.tensor([[5, 6, 7]])
    for hasty in (
        QwenchForCausalLM.from_pretrained(pair_folder, export=True, **given),
        QwenchForCausalLM.from_pretrained(pair_folder, **given),
        QwenchForCausalLM.from_pretrained(pair_folder, **given),
        QwenchForCausalLM.from_model(truth, **given),
        QwenchForCausalLM.from_pretrained(tmp_path / "saved", qwench_timeout=1e-6),
    ):
        for call in (hasty, hasty.generate):
            with pytest.raises(DeadlineError, match="timeout of 1e-06 seconds"):
                call(ids)
    hasty.save_pretrained(tmp_path / "again")
    assert QwenchForCausalLM.from_pretrained(tmp_path / "again").qwench_config.timeout is None
    idle = QwenchForCausalLM.from_pretrained(tmp_path / "again", qwench_create_runtimes=False)
    with pytest.raises(ConfigError, match="can be saved, not run"):
        idle(ids)


def test_from_model(pair: tuple[Any, Any], best_target: str) -> None:
    model, truth = pair
    live = QwenchForCausalLM.from_model(truth, qwench_config=QwenchConfig(target=best_target), qwench_max_seq_len=64)
    ids = torch.tensor([[9, 8, 7, 6]])
    assert torch.equal(live(ids).logits, model(ids).logits)
    assert live.qwench_config.max_seq_len == 64
    assert not (live.artifact.path.parent / "checkpoint").exists()


def test_generation_config_comes_with_the_checkpoint(tmp_path: Path, best_target: str) -> None:
    folder = write_checkpoint(tmp_path / "ckpt")
    truth = load_truth(folder)
    truth.generation_config.update(eos_token_id=[5, 6], pad_token_id=5, max_new_tokens=7)
    truth.generation_config.save_pretrained(folder)
    model = QwenchForCausalLM.from_pretrained(folder, qwench_target=best_target)
    assert model.generation_config.eos_token_id == [5, 6]
    ids = torch.tensor([[11, 12, 13]])
    assert torch.equal(model.generate(ids), truth.generate(ids))


def write_tokenizer(folder: Path, **described: Any) -> None:
    """A token per byte, then 256 <|endoftext|>, 257 <|im_start|>, 258 <|im_end|>."""
    alphabet = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    byte_level_tokenizer(models.BPE(alphabet, [])).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(described))


def test_an_answer_in_chat_ends_where_another_turn_begins(tmp_path: Path, best_target: str) -> None:
    """<|im_start|> is an end beside those of the checkpoint where there's a chat template, unless asked otherwise."""

    def load(name: str, **described: Any) -> tuple[Any, Any]:
        folder = write_checkpoint(tmp_path / name)
        truth = load_truth(folder)
        truth.generation_config.update(eos_token_id=[258, 256], pad_token_id=256)
        truth.generation_config.save_pretrained(folder)
        write_tokenizer(folder, **described)
        return QwenchForCausalLM.from_pretrained(folder, qwench_target=best_target), truth

    chat, truth = load("chat", chat_template="{{ messages[0].content }}")
    assert chat.generation_config.eos_token_id == [258, 256, 257]
    plain, _ = load("plain")
    assert plain.generation_config.eos_token_id == [258, 256]
    ids = torch.tensor([[11, 12, 13]])
    runs_on: dict[str, Any] = {"sequence_bias": [[[257], 1e4]], "max_new_tokens": 5}
    assert chat.generate(ids, **runs_on)[0, 3:].tolist() == [257]
    assert chat.generate(ids, eos_token_id=256, **runs_on)[0, 3:].tolist() == [257] * 5
    assert torch.equal(plain.generate(ids, **runs_on), truth.generate(ids, **runs_on))
    assert torch.equal(chat.generate(ids, max_new_tokens=9), truth.generate(ids, max_new_tokens=9))


# --- forward ------------------------------------------------------------------------------------------------------


def test_forward_equals_transformers(pair: tuple[Any, Any], free_blocks: None) -> None:
    model, truth = pair
    ids = torch.randint(0, 300, (3, 41), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = truth(ids, labels=ids)
    ours = model(ids, labels=ids)
    assert ours.logits.dtype == torch.float32
    torch.testing.assert_close(ours.logits, theirs.logits, **CLOSE)
    torch.testing.assert_close(ours.loss, theirs.loss, **CLOSE)
    assert model(ids, use_cache=False).past_key_values is None
    assert isinstance(model(ids, return_dict=False), tuple)


@pytest.mark.parametrize("keep", [1, 5, 100, torch.tensor([0, 7]), torch.tensor([9, 2, 2]), torch.tensor([-1])])
def test_logits_to_keep(pair: tuple[Any, Any], keep: Any) -> None:
    model, truth = pair
    ids = torch.randint(0, 300, (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = truth(ids, logits_to_keep=keep).logits
    torch.testing.assert_close(model(ids, logits_to_keep=keep).logits, theirs, **CLOSE)


@pytest.mark.parametrize("options", [{}, {"num_items_in_batch": 7}, {"ignore_index": 5}])
def test_loss_is_that_of_transformers(pair: tuple[Any, Any], options: dict[str, Any]) -> None:
    model, truth = pair
    ids = torch.randint(0, 300, (2, 20), generator=torch.Generator().manual_seed(2))
    labels = ids.masked_fill(torch.arange(20) < 6, options.get("ignore_index", -100))
    with torch.no_grad():
        theirs = truth(ids, labels=labels, **options).loss
    torch.testing.assert_close(model(ids, labels=labels, **options).loss, theirs, **CLOSE)


def test_hidden_states_equal_transformers(pair: tuple[Any, Any], free_blocks: None) -> None:
    """All of them, over several steps, with padding, whatever logits are kept; config.output_hidden_states too."""
    model, truth = pair
    inputs = left_padded(random_prompts(9, 300, [5, 41, 18]))
    with torch.no_grad():
        theirs = truth(**inputs, output_hidden_states=True).hidden_states
    ours = model(**inputs, output_hidden_states=True, logits_to_keep=1).hidden_states
    real = inputs["attention_mask"].bool()
    assert isinstance(ours, tuple) and len(ours) == len(theirs) == 3
    for mine, right in zip(ours, theirs, strict=True):
        assert mine.shape == right.shape
        torch.testing.assert_close(mine[real], right[real], **CLOSE)
        assert not mine[~real].any()
    assert model(**inputs).hidden_states is None
    try:
        model.config.output_hidden_states = True
        assert torch.equal(model(**inputs).hidden_states[1], ours[1])
        assert model(**inputs, output_hidden_states=False).hidden_states is None
    finally:
        model.config.output_hidden_states = False


def test_hidden_states_of_equal_rows(pair: tuple[Any, Any]) -> None:
    model, _ = pair
    ids = torch.randint(0, 300, (1, 9), generator=torch.Generator().manual_seed(8))
    one = model(ids, output_hidden_states=True).hidden_states
    three = model(ids.repeat(3, 1), output_hidden_states=True).hidden_states
    assert all(torch.equal(a.repeat(3, 1, 1), b) for a, b in zip(one, three, strict=True))


def test_embeddings_of_tokens_are_those_tokens(pair: tuple[Any, Any], free_blocks: None) -> None:
    """inputs_embeds in place of input_ids: the same bits, cached, padded and kept in part."""
    model, truth = pair
    inputs = left_padded(random_prompts(10, 300, [30, 11]))
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    embed = model.get_input_embeddings()
    assert torch.equal(embed(ids), truth.get_input_embeddings()(ids)) and embed(ids).dtype == torch.float32
    assert torch.equal(embed.weight, truth.get_input_embeddings().weight)
    assert (embed.num_embeddings, embed.embedding_dim) == (300, 64)
    whole = model(**inputs, output_hidden_states=True)
    given = model(inputs_embeds=embed(ids), attention_mask=mask, output_hidden_states=True)
    assert torch.equal(given.logits, whole.logits)
    assert all(torch.equal(a, b) for a, b in zip(given.hidden_states, whole.hidden_states, strict=True))
    first = model(inputs_embeds=embed(ids[:, :13]).to(torch.float64), attention_mask=mask[:, :13])
    second = model(ids[:, 13:20], mask[:, :20], past_key_values=first.past_key_values)
    third = model(inputs_embeds=embed(ids[:, 20:]), attention_mask=mask, past_key_values=second.past_key_values)
    pieces = [first.logits, second.logits, third.logits]
    assert torch.equal(torch.cat(pieces, dim=1), whole.logits)
    for bad in (torch.tensor([300]), torch.tensor([-1]), torch.tensor([0.0])):
        with pytest.raises(RequestError):
            embed(bad)


def test_embeddings_of_no_token_equal_transformers(pair: tuple[Any, Any]) -> None:
    model, truth = pair
    embeds = torch.randn(3, 21, 64, generator=torch.Generator().manual_seed(3))
    embeds[1] = embeds[0]
    with torch.no_grad():
        theirs = truth(inputs_embeds=embeds, output_hidden_states=True)
    ours = model(inputs_embeds=embeds, output_hidden_states=True)
    torch.testing.assert_close(ours.logits, theirs.logits, **CLOSE)
    for mine, right in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        torch.testing.assert_close(mine, right, **CLOSE)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_llm_embeds_what_transformers_would(pair: tuple[Any, Any], pooling: Any) -> None:
    model, truth = pair
    prompts = random_prompts(11, 300, [5, 41, 18])
    got = LLM.from_engine(model.engine).embed([prompt.tolist() for prompt in prompts], pooling=pooling)
    for row, prompt in zip(got, prompts, strict=True):
        with torch.no_grad():
            states = truth.model(prompt[None]).last_hidden_state[0]
        pooled = states[-1] if pooling == "last" else states.mean(dim=0)
        torch.testing.assert_close(torch.from_numpy(row), torch.nn.functional.normalize(pooled, dim=0), **CLOSE)


def test_it_is_a_module_that_others_can_handle(pair: tuple[Any, Any]) -> None:
    model, truth = pair
    assert isinstance(model, torch.nn.Module) and model.eval() is model
    assert model.num_parameters() == truth.num_parameters()
    assert model.num_parameters(exclude_embeddings=True) == truth.num_parameters(exclude_embeddings=True)
    assert model.num_parameters(only_trainable=True) == 0 and not list(model.parameters())
    model.tie_weights()
    assert model.resize_token_embeddings(300).num_embeddings == 300 and model.get_output_embeddings() is None
    with pytest.raises(ConfigError, match="resize"):
        model.resize_token_embeddings(301)
    assert model.get_memory_footprint() == model.artifact.weights_bytes > 0
    seen = []
    handle = model.register_forward_hook(lambda module, args, output: seen.append(output.logits.shape))
    model(torch.tensor([[1, 2]]), token_type_ids=torch.zeros(1, 2, dtype=torch.long))
    handle.remove()
    assert seen == [(1, 2, 300)]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_not_fed_and_gets_zeros(pair: tuple[Any, Any], side: str, free_blocks: None) -> None:
    model, truth = pair
    inputs = left_padded(random_prompts(3, 300, [4, 19, 9]))
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    if side == "right":
        ids, mask = ids.flip(1), mask.flip(1)
    with torch.no_grad():
        theirs = truth(input_ids=ids, attention_mask=mask).logits
    ours = model(input_ids=ids, attention_mask=mask).logits
    real = mask.bool()
    torch.testing.assert_close(ours[real], theirs[real], **CLOSE)
    assert not ours[~real].any()
    kept = model(input_ids=ids, attention_mask=mask, logits_to_keep=3).logits
    assert torch.equal(kept, ours[:, -3:])


def test_cached_continuation_is_bit_identical(pair: tuple[Any, Any], free_blocks: None) -> None:
    """Any split of the tokens over calls gives the same bits, with padding too."""
    model, _ = pair
    inputs = left_padded(random_prompts(4, 300, [30, 11]))
    whole = model(**inputs).logits
    cache, pieces, at = None, [], 0
    for end in (1, 16, 17, 33, 30):
        end = min(end, 30)
        if end <= at:
            continue
        out = model(inputs["input_ids"][:, at:end], inputs["attention_mask"][:, :end], past_key_values=cache)
        cache, at = out.past_key_values, end
        pieces.append(out.logits)
    assert torch.equal(torch.cat(pieces, dim=1), whole)
    assert cache.get_seq_length() == 30 and cache.batch_size == 2


def test_cache_forks_share_blocks_until_written(pair: tuple[Any, Any], free_blocks: None) -> None:
    model, _ = pair
    pool = model.engine.scheduler.pool
    prompt = torch.randint(0, 300, (1, 37), generator=torch.Generator().manual_seed(5))
    cache = model(prompt).past_key_values
    used = pool.num_blocks - pool.num_free
    assert used == 3
    fork = copy.deepcopy(cache)
    assert pool.num_blocks - pool.num_free == used
    a, b = (model(torch.tensor([[t]]), past_key_values=c).logits for c, t in ((cache, 11), (fork, 22)))
    assert pool.num_blocks - pool.num_free == used + 1  # the last block, which the fork's token went to
    for token, logits in ((11, a), (22, b)):
        alone = model(torch.cat([prompt, torch.tensor([[token]])], dim=1)).logits[:, -1:]
        assert torch.equal(logits, alone)


def test_equal_rows_are_computed_once(pair: tuple[Any, Any], free_blocks: None) -> None:
    model, _ = pair
    pool = model.engine.scheduler.pool
    ids = torch.randint(0, 300, (1, 37), generator=torch.Generator().manual_seed(6))
    other = ids.flip(1)
    out = model(torch.cat([ids, other, ids, ids]))
    assert pool.num_blocks - pool.num_free == 6
    assert torch.equal(out.logits[[0, 1]], torch.cat([model(ids).logits, model(other).logits]))
    assert torch.equal(out.logits[2], out.logits[0]) and torch.equal(out.logits[3], out.logits[0])


def test_cache_operations_against_recomputation(pair: tuple[Any, Any], free_blocks: None) -> None:
    """Random forks, crops and selections: every row's next logits equal those of its tokens computed afresh."""
    model, _ = pair
    rng = np.random.default_rng(0)
    rows = [[int(t) for t in rng.integers(0, 300, 20)] for _ in range(3)]
    cache = model(torch.tensor(rows)).past_key_values
    for _ in range(12):
        kind = rng.integers(0, 5)
        if kind == 0 and len(rows[0]) > 8:
            count = int(rng.integers(1, 6))
            cache.crop(-count) if rng.integers(0, 2) else cache.crop(len(rows[0]) - count)
            rows = [row[:-count] for row in rows]
        elif kind == 1:
            index = rng.integers(0, len(rows), len(rows))
            cache.reorder_cache(torch.tensor(index))
            rows = [list(rows[i]) for i in index]
        elif kind == 2 and len(rows) < 4:
            cache.batch_repeat_interleave(2)
            rows = [list(row) for row in rows for _ in range(2)]
        elif kind == 3 and len(rows) > 2:
            cache.batch_select_indices(torch.tensor([2, 0]))
            rows = [rows[2], rows[0]]
        new = rng.integers(0, 300, (len(rows), int(rng.integers(1, 4))))
        rows = [row + [int(t) for t in add] for row, add in zip(rows, new, strict=True)]
        logits = model(torch.tensor(new), past_key_values=cache).logits
        afresh = model(torch.tensor(rows)).logits[:, -new.shape[1] :]
        assert torch.equal(logits, afresh)
    with pytest.raises(RequestError, match="rows, but input_ids have 9"):
        model(torch.ones(9, 1, dtype=torch.long), past_key_values=cache)
    cache.reset()
    assert cache.get_seq_length() == 0
    assert model(torch.ones(9, 1, dtype=torch.long), past_key_values=cache).past_key_values.batch_size == 9


def test_positions_may_be_given_as_transformers_counts_them(pair: tuple[Any, Any]) -> None:
    model, _ = pair
    inputs = left_padded(random_prompts(8, 300, [5, 12]))
    plain = model(**inputs).logits
    by_count = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    assert torch.equal(model(**inputs, position_ids=by_count).logits, plain)
    assert torch.equal(model(**inputs, position_ids=torch.arange(12)[None]).logits, plain)


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"input_ids": None}, "both are missing"),
        ({"inputs_embeds": torch.zeros(1, 3, 64)}, "both are given"),
        ({"input_ids": None, "inputs_embeds": torch.zeros(1, 3, 63)}, r"\[batch, length, 64\]"),
        ({"input_ids": None, "inputs_embeds": torch.zeros(3, 64)}, r"\[batch, length, 64\]"),
        ({"input_ids": None, "inputs_embeds": torch.zeros(1, 3, 64, dtype=torch.long)}, "real numbers"),
        ({"input_ids": None, "inputs_embeds": torch.zeros(1, 0, 64)}, "empty"),
        ({"input_ids": None, "inputs_embeds": torch.zeros(1, 129, 64)}, "max_seq_len 128"),
        ({"labels": torch.tensor([[1, 2]])}, "keep all logits"),
        ({"input_ids": torch.tensor([[300]])}, "300"),
        ({"input_ids": torch.tensor([[-1]])}, "-1"),
        ({"input_ids": torch.tensor([[0.5]])}, "integers"),
        ({"input_ids": torch.zeros(1, 0, dtype=torch.long)}, "empty"),
        ({"input_ids": torch.zeros(1, 129, dtype=torch.long)}, "max_seq_len 128"),
        ({"output_attentions": True}, "output_attentions"),
        ({"no_such_option": 1}, "no_such_option"),
        ({"attention_mask": torch.tensor([[1, 0, 1]])}, "between the tokens of row 0"),
        ({"attention_mask": torch.ones(1, 4)}, r"must be \(1, 3\)"),
        ({"position_ids": torch.tensor([[0, 1, 3]])}, "not consecutive"),
        ({"position_ids": torch.tensor([[4, 5, 6]])}, "not consecutive"),
        ({"past_key_values": DynamicCache()}, "DynamicCache"),
    ],
)
def test_forward_refuses(pair: tuple[Any, Any], kwargs: dict[str, Any], match: str, free_blocks: None) -> None:
    with pytest.raises(RequestError, match=match):
        pair[0](**({"input_ids": torch.tensor([[1, 2, 3]])} | kwargs))


def test_generate_refuses_before_the_first_step(
    pair: tuple[Any, Any], free_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = pair
    for holder in (model.engine, model._pages):
        monkeypatch.setattr(holder, "executor", None)  # a step would fail otherwise
    ids = torch.ones(1, 100, dtype=torch.long)
    for kwargs in ({}, {"do_sample": True}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 2}):
        with pytest.raises(RequestError, match=r"100 tokens of input and 29 new ones exceed max_seq_len 128"):
            model.generate(ids, max_new_tokens=29, **kwargs)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    with pytest.raises(RequestError, match="padded on the right"):
        model.generate(torch.ones(2, 3, dtype=torch.long), attention_mask=mask, max_new_tokens=2)
    with pytest.raises(RequestError, match="no tokens"):
        model.generate(torch.ones(2, 3, dtype=torch.long), attention_mask=mask * 0, max_new_tokens=2)
    with pytest.raises(RequestError, match="cache_implementation"):
        model.generate(ids, max_new_tokens=2, cache_implementation="static")
    with pytest.raises(RequestError, match="inputs_embeds"):
        model.generate(inputs_embeds=torch.zeros(1, 3, 63), max_new_tokens=2)
    with pytest.raises(RequestError, match=r"100 tokens of input and 29 new ones exceed max_seq_len 128"):
        model.generate(inputs_embeds=torch.zeros(1, 100, 64), max_new_tokens=29)
    with pytest.raises(ValueError, match=r"generate_batch|Invalid .* \(paged\)"):  # transformers 4 knows no such cache
        model.generate(ids, max_new_tokens=2, cache_implementation="paged")
    with pytest.raises(RequestError, match="assistant_early_exit"):
        model.generate(ids, max_new_tokens=2, assistant_early_exit=1)
    with pytest.raises(RequestError, match="output_attentions"):
        model.generate(ids, max_new_tokens=2, output_attentions=True, return_dict_in_generate=True)


def test_padding_does_not_count_as_length(pair: tuple[Any, Any]) -> None:
    model, _ = pair
    inputs = left_padded([torch.tensor([4, 5, 6])])
    wide = {k: torch.nn.functional.pad(v, (197, 0)) for k, v in inputs.items()}
    assert torch.equal(
        model.generate(**wide, max_new_tokens=100)[:, -100:], model.generate(**inputs, max_new_tokens=100)[:, -100:]
    )


def test_blocks_run_out_with_a_clear_error(pair_folder: Path, best_target: str) -> None:
    model = QwenchForCausalLM.from_pretrained(
        pair_folder, qwench_target=best_target, qwench_kvcache_num_blocks=4, qwench_kvcache_block_size=32
    )
    ids = torch.randint(0, 300, (4, 32), generator=torch.Generator().manual_seed(2))
    cache = model(ids).past_key_values
    for attempt in (lambda: model(ids[:, :1]), lambda: model.generate(ids[:1, :3], max_new_tokens=2)):
        with pytest.raises(CapacityError, match="kvcache_num_blocks"):
            attempt()
    cache.crop(-1)
    cache = None
    assert model.generate(ids, max_new_tokens=40).shape == (4, 72)  # more than fits at once: the engine takes turns


def test_logits_that_are_not_finite_fail(pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = pair

    def broken(batch: Any, logits: Any = None, hidden: Any = None, maxima: Any = None) -> Any:
        logits = np.empty((len(batch.logit_rows), 300), np.float32) if logits is None else logits
        logits[:] = np.nan
        if maxima is not None:
            maxima[:] = np.nan
        return logits

    for holder in (model.engine, model._pages):
        monkeypatch.setattr(holder, "executor", type("Broken", (), {"step": staticmethod(broken)})())
    for attempt in (
        lambda: model(torch.tensor([[1, 2]])),
        lambda: model.generate(torch.tensor([[1, 2]]), max_new_tokens=2),
        lambda: model.generate(torch.tensor([[1, 2]]), max_new_tokens=2, do_sample=True),
    ):
        with pytest.raises(NumericalError):
            attempt()
