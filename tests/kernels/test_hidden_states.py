"""Embeddings in, hidden states out: every variant and the reference, against an independent walk over the layers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from programs import VARIANTS, Tensors, batch, load, model_program, num_groups, random_spec, random_tensors

from qwench.checkpoint.spec import ModelSpec
from qwench.formats import BF16, Format
from qwench.targets.target import CacheConfig, StepBatch

TARGETS = ["reference", *VARIANTS]
CACHE = CacheConfig(12, 16, "fp32")


def _model(seed: int, **fixed: object) -> tuple[ModelSpec, Tensors]:
    rng = np.random.default_rng(seed)
    spec = random_spec(rng, **fixed)
    return spec, random_tensors(model_program(spec, BF16), rng, std=0.1)


def _states(executor: object, step: StepBatch, spec: ModelSpec, num_states: int | None = None) -> np.ndarray:
    assert step.hidden_rows is not None
    shape = (num_states or spec.num_layers + 1, len(step.hidden_rows), spec.hidden_size)
    out = np.full(shape, np.nan, np.float32)
    executor.step(step, hidden=out)  # type: ignore[attr-defined]
    return out


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("fmt", [BF16, Format("int8", 32)], ids=str)
def test_a_state_is_what_shallower_models_compute(target: str, fmt: Format) -> None:
    """State i enters layer i: the model cut off there has it as its last residual, whose norm is its last state."""
    layers = 3
    spec, tensors = _model(1, num_layers=layers, sliding_windows=(None, 5, None))

    def states_of(executor: object, of: ModelSpec) -> np.ndarray:
        step = batch([np.arange(9, dtype=np.int32)], [9], [[2]], num_groups(of))
        return _states(executor, dataclasses.replace(step, hidden_rows=np.array([0, 3, 8], np.int32)), of)

    states = states_of(load(target, model_program(spec, fmt), tensors, CACHE), spec)
    gain = tensors["model.norm.weight"].astype(np.float64)
    for depth in range(layers + 1):
        cut = dataclasses.replace(spec, num_layers=depth or 1, sliding_windows=spec.sliding_windows[: depth or 1])
        executor = load(target, model_program(cut, fmt), tensors, CACHE)
        if depth == 0:
            table = tensors["model.embed_tokens.weight"].astype(np.float32)[[0, 3, 8]]
            np.testing.assert_allclose(states[0], table, atol=2e-2 if fmt.is_quantized else 0)
            np.testing.assert_array_equal(states[0], executor.embed(np.array([0, 3, 8], np.int32)))
            continue
        last = states_of(executor, cut)[-1]
        if depth == layers:
            np.testing.assert_array_equal(states[depth], last)
            continue
        x = states[depth].astype(np.float64)
        normed = x / np.sqrt((x * x).mean(axis=1, keepdims=True) + spec.rms_norm_eps) * gain
        np.testing.assert_allclose(last, normed, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", TARGETS)
def test_logits_are_the_head_on_the_last_state(target: str) -> None:
    spec, tensors = _model(2, tie_word_embeddings=False)
    step = batch([np.arange(7, dtype=np.int32)], [7], [[0]])
    executor = load(target, model_program(spec, BF16), tensors, CACHE)
    plain = executor.step(step).copy()
    wanted = dataclasses.replace(step, hidden_rows=np.arange(7, dtype=np.int32))
    last = _states(executor, wanted, spec, num_states=1)[0]
    np.testing.assert_array_equal(executor.step(step), plain)
    head = tensors["lm_head.weight"].astype(np.float32)
    np.testing.assert_allclose(last @ head.T, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("target", TARGETS)
def test_embeddings_of_tokens_are_those_tokens(target: str) -> None:
    """Bit for bit, in any mixture with tokens, over a step of two sequences and the next one."""
    spec, tensors = _model(3)
    ids = np.random.default_rng(0).integers(0, spec.vocab_size, 30).astype(np.int32)
    executor = load(target, model_program(spec, BF16), tensors, CACHE)
    first, second = batch([ids[:11], ids[11:24]], [11, 13], [[0], [1]]), batch([ids[24:]], [17], [[0, 2]])
    expected = [executor.step(step).copy() for step in (first, second)]
    for picked in (np.arange(24) % 3 == 0, np.ones(24, bool)):
        order = np.random.default_rng(1).permutation(picked.sum())
        mixed = first.token_ids.copy()
        mixed[picked] = ~order.astype(np.int32)
        rows = np.empty((len(order), spec.hidden_size), np.float32)
        rows[order] = executor.embed(first.token_ids[picked])
        step = dataclasses.replace(first, token_ids=mixed, embeddings=rows)
        np.testing.assert_array_equal(executor.step(step), expected[0])
        np.testing.assert_array_equal(executor.step(second), expected[1])


@pytest.mark.parametrize("target", TARGETS)
def test_some_rows_of_some_states_into_part_of_an_array(target: str) -> None:
    spec, tensors = _model(4, num_layers=2, sliding_windows=(None, None))
    executor = load(target, model_program(spec, BF16), tensors, CACHE)
    step = batch([np.arange(8, dtype=np.int32), np.arange(3, 8, dtype=np.int32)], [8, 5], [[0], [1]])
    whole = _states(executor, dataclasses.replace(step, hidden_rows=np.arange(13, dtype=np.int32)), spec)
    rows = np.array([2, 7, 12], np.int32)
    some = dataclasses.replace(step, hidden_rows=rows, logit_rows=np.array([5], np.int32))
    for num_states in (1, 2, 3):
        out = np.full((num_states, 10, spec.hidden_size), 7, np.float32)
        executor.step(some, hidden=out[:, 4:8])
        np.testing.assert_array_equal(out[:, 4:7], whole[-num_states:, rows])
        assert (out[:, :4] == 7).all() and (out[:, 7:] == 7).all()


@pytest.mark.parametrize("target", TARGETS)
def test_states_do_not_depend_on_chunks(target: str) -> None:
    spec, tensors = _model(5)
    ids = np.random.default_rng(2).integers(0, spec.vocab_size, 21).astype(np.int32)
    executor = load(target, model_program(spec, BF16), tensors, CACHE)

    def run(chunks: list[int]) -> np.ndarray:
        parts, done = [], 0
        for size in chunks:
            done += size
            step = batch([ids[done - size : done]], [done], [[3, 4]])
            step = dataclasses.replace(step, hidden_rows=np.arange(size, dtype=np.int32))
            parts.append(_states(executor, step, spec))
        return np.concatenate(parts, axis=1)

    close = np.testing.assert_allclose if target == "reference" else np.testing.assert_array_equal
    options = {"rtol": 1e-4, "atol": 1e-4} if target == "reference" else {}
    for chunks in ([1] * 21, [16, 5], [20, 1]):
        close(run(chunks), run([21]), **options)


@pytest.mark.parametrize("variant", TARGETS[1:])
def test_what_does_not_fit_is_an_error(variant: str) -> None:
    spec, tensors = _model(6, num_layers=2, sliding_windows=(None, None))
    executor = load(variant, model_program(spec, BF16), tensors, CACHE)
    width, states = spec.hidden_size, spec.num_layers + 1
    good = batch([np.arange(5, dtype=np.int32)], [5], [[0]])
    hidden = dataclasses.replace(good, hidden_rows=np.array([0, 4], np.int32))
    zeros = np.zeros
    for step, out in [
        (hidden, None),
        (hidden, zeros((states + 1, 2, width), np.float32)),
        (hidden, zeros((states, 1, width), np.float32)),
        (hidden, zeros((states, 2, width + 1), np.float32)),
        (hidden, zeros((states, 2, width + 1), np.float32)[:, :, 1:]),
        (dataclasses.replace(good, hidden_rows=np.array([5], np.int32)), zeros((states, 1, width), np.float32)),
        (dataclasses.replace(good, hidden_rows=np.array([-1], np.int32)), zeros((states, 1, width), np.float32)),
        (dataclasses.replace(good, token_ids=~np.arange(5, dtype=np.int32)), None),
        (
            dataclasses.replace(
                good, token_ids=~np.arange(5, dtype=np.int32), embeddings=zeros((4, width), np.float32)
            ),
            None,
        ),
        (dataclasses.replace(good, embeddings=zeros((5, width + 1), np.float32)), None),
    ]:
        with pytest.raises(ValueError):
            executor.step(step, hidden=out)
    with pytest.raises(ValueError):
        executor.embed(np.array([spec.vocab_size], np.int32))
    with pytest.raises(TypeError):  # a converted copy would be filled and lost
        executor.step(hidden, hidden=zeros((states, 2, width), np.float64))
    assert executor.step(good).shape == (5, spec.vocab_size)
