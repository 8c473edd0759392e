"""Calibration: rounding that loses less on inputs it has not seen, the same whenever it is done, and clear errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoint import write_checkpoint

from qwench.artifact.artifact import open_artifact
from qwench.calibration.gptq import quantize_for_inputs
from qwench.calibration.text import MIN_TOKENS, calibration_rows
from qwench.compiler.compiler import compile_checkpoint
from qwench.config import QwenchConfig
from qwench.errors import ConfigError
from qwench.formats import Format, dequantize_weight, quantize_weight
from qwench.load import resolve_model

ROOT = Path(__file__).parents[2]
DEFAULT_MODEL = ROOT / "models" / "qwench-tiny"


def correlated(num: int, width: int, seed: int) -> np.ndarray:
    """Inputs like a model's: few directions matter, some columns are a hundred times the others, one is always zero."""
    mix = np.random.default_rng(0).standard_normal((width // 4, width)).astype(np.float32)
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((num, width // 4)).astype(np.float32) @ mix + 0.3 * rng.standard_normal((num, width))
    x[:, 5] *= 100
    x[:, 7] = 0
    return x.astype(np.float32)


@pytest.mark.parametrize("fmt", ["int4/g32", "int4/g128", "int8/g128"])
@pytest.mark.parametrize("width", [256, 200])
def test_it_loses_less_on_inputs_it_has_not_seen(fmt: str, width: int) -> None:
    weight = np.random.default_rng(1).standard_normal((96, width)).astype(np.float32)
    seen, unseen = correlated(1500, width, 2), correlated(500, width, 3)
    kind = Format.parse(fmt)

    def loss(codes: np.ndarray, scales: np.ndarray) -> float:
        return float(((unseen @ (weight - dequantize_weight(codes, scales, width)).T) ** 2).sum())

    calibrated = quantize_for_inputs(weight, seen.T @ seen, kind)
    plain = quantize_weight(weight, kind)
    assert loss(*calibrated) < 0.5 * loss(*plain)
    for ours, theirs in zip(calibrated, plain, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    assert calibrated[0].min() >= kind.code_range[0] and calibrated[0].max() <= kind.code_range[1]
    assert not calibrated[0][:, width:].any()


def test_each_column_makes_up_for_those_before_it() -> None:
    """The definition, column by column, in float64."""
    rng = np.random.default_rng(5)
    weight, x = rng.standard_normal((4, 160)).astype(np.float32), correlated(900, 160, 6)
    kind, moments = Format("int8", 32), x.T @ x
    codes, scales = quantize_for_inputs(weight, moments, kind)
    order = np.argsort(-moments.diagonal(), kind="stable")
    h = moments.astype(np.float64) + 0.01 * moments.diagonal()[moments.diagonal() > 0].mean() * np.eye(160)
    errors = np.zeros((4, 160))
    wrong = 0
    for i, k in enumerate(order):
        before = order[:i]
        # What is best to add at k, given the errors before it and freedom for all columns from k on.
        later = order[i:]
        push = errors[:, before] @ h[np.ix_(before, later)] @ np.linalg.inv(h[np.ix_(later, later)])
        step = scales[:, k // 32]
        code = np.rint((weight[:, k] + push[:, 0]) / step)
        wrong += int((codes[:, k] != np.clip(code, -127, 127)).sum())
        errors[:, k] = weight[:, k] - codes[:, k] * step
    assert wrong <= 2  # a value halfway between two codes may fall to either side in fp32


def test_inputs_that_are_all_zero_or_all_alike() -> None:
    weight = np.random.default_rng(7).standard_normal((8, 64)).astype(np.float32)
    for moments in (np.zeros((64, 64), np.float32), np.ones((64, 64), np.float32)):
        codes, scales = quantize_for_inputs(weight, moments, Format("int4", 32))
        assert np.isfinite(scales).all() and np.abs(dequantize_weight(codes, scales, 64) - weight).max() < 2


# -- from a text to an artifact ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "calibration.txt"
    path.write_text("\n\n".join((ROOT / name).read_text() for name in ("README.md", "docs/architecture.md")))
    return path


def options(**given: Any) -> QwenchConfig:
    return QwenchConfig(target="reference", weights="int4", max_seq_len=64, **given)


def test_an_artifact_says_what_it_was_calibrated_with(text: Path, tmp_path: Path) -> None:
    config = options(calibrate=str(text))
    first = compile_checkpoint(DEFAULT_MODEL, tmp_path / "a", config)
    second = compile_checkpoint(DEFAULT_MODEL, tmp_path / "b", config)
    plain = compile_checkpoint(DEFAULT_MODEL, tmp_path / "c", options())
    assert first.manifest.crc32c == second.manifest.crc32c != plain.manifest.crc32c
    assert first.program == plain.program
    assert str(first.config.calibrate).startswith("calibration.txt sha256:")
    assert resolve_model(tmp_path / "a", QwenchConfig(calibrate=str(text))).config.calibrate == first.config.calibrate
    with pytest.raises(ConfigError, match=r"calibrate is .* but .* was compiled with None"):
        resolve_model(tmp_path / "c", QwenchConfig(calibrate=str(text)))
    open_artifact(tmp_path / "a", verify="full")


def test_texts_that_can_not_be_used(tmp_path: Path, text: Path) -> None:
    with pytest.raises(ConfigError, match=r"calibration text .*absent\.txt can't be read: No such file"):
        compile_checkpoint(DEFAULT_MODEL, tmp_path / "out", options(calibrate=str(tmp_path / "absent.txt")))
    short, binary = tmp_path / "short.txt", tmp_path / "binary.txt"
    short.write_text("hello")
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=f"calibration needs at least {MIN_TOKENS}"):
        compile_checkpoint(DEFAULT_MODEL, tmp_path / "out", options(calibrate=str(short)))
    with pytest.raises(ConfigError, match="isn't UTF-8"):
        compile_checkpoint(DEFAULT_MODEL, tmp_path / "out", options(calibrate=str(binary)))
    with pytest.raises(ConfigError, match=r"tokenizer\.json can't be used"):
        compile_checkpoint(write_checkpoint(tmp_path / "bare"), tmp_path / "out", options(calibrate=str(text)))
    with pytest.raises(ConfigError, match="bf16 weights are not rounded"):
        QwenchConfig(calibrate=str(text)).resolve(open_spec())
    assert not (tmp_path / "out").exists()


def open_spec() -> Any:
    from qwench.checkpoint.spec import ModelSpec

    return ModelSpec.from_folder(DEFAULT_MODEL)


def test_rows_are_spread_over_the_text(text: Path) -> None:
    rows = calibration_rows(text, DEFAULT_MODEL, 64)
    assert rows.shape == (32, 64) and rows.dtype == np.int32
    np.testing.assert_array_equal(rows, calibration_rows(text, DEFAULT_MODEL, 64))
    assert len({row.tobytes() for row in rows}) == 32
