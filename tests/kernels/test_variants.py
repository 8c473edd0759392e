"""Which kernels a target runs: the fastest by measurement, remembered, and forced by the environment."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from programs import model_program, random_spec

from qwench.errors import TargetError
from qwench.formats import BF16, Format
from qwench.program.ops import Program
from qwench.targets.cpu import _native, variants
from qwench.targets.cpu.variants import choose_variant, variants_of


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWENCH_CACHE", str(tmp_path))
    monkeypatch.delenv("QWENCH_KERNELS", raising=False)


def program(fmt: Format, activations: str | None = None) -> Program:
    return model_program(random_spec(np.random.default_rng(0)), fmt, activations)


def machine(monkeypatch: pytest.MonkeyPatch, gops: dict[str, float]) -> list[str]:
    """A processor that reaches these speeds; returns what it is asked to measure."""
    asked: list[str] = []

    class Processor:
        @staticmethod
        def supported_variants() -> list[str]:
            return [*gops, "generic"]

        @staticmethod
        def measure_product_gops(variant: str, weights: str, activations: str) -> float:
            asked.append(f"{variant}: {weights} x {activations}")
            return gops[variant]

    monkeypatch.setattr(variants, "_native", Processor)
    return asked


def test_the_faster_kernels_are_taken_not_the_newer_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is an Emerald Rapids, whose bf16 instruction reaches half of its fp32; the second a Zen 4."""
    rounded = program(BF16, "bf16")
    machine(monkeypatch, {"avx512bf16": 86, "avx512": 175, "avx2": 90})
    assert choose_variant("cpu", rounded).variant == "avx512"
    monkeypatch.setattr(variants, "cpu_name", lambda: "another")
    machine(monkeypatch, {"avx512bf16": 232, "avx512": 115, "avx2": 113})
    choice = choose_variant("cpu", rounded)
    assert choice.variant == "avx512bf16"
    assert choice.measured["avx512"] == {"bf16 x bf16": 115}
    assert choose_variant("cpu-avx512", rounded).variant == "avx512bf16"
    assert choose_variant("cpu-avx2", rounded).variant == "avx2"
    assert choose_variant("cpu", program(BF16)).variant == "avx512", "it multiplies no bf16 activations"


def test_a_hair_s_breadth_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, {"avx512": 100, "avx2": 104})
    assert choose_variant("cpu", program(Format("int8", 64))).variant == "avx512"


def test_what_was_measured_is_remembered_for_the_processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = machine(monkeypatch, {"avx512": 100, "avx2": 50})
    for _ in range(3):
        choose_variant("cpu", program(Format("int8", 64)))
    assert asked == ["avx512: int8 x int8", "avx2: int8 x int8"]
    monkeypatch.setattr(variants, "cpu_name", lambda: "another processor")
    choose_variant("cpu", program(Format("int8", 64)))
    assert len(asked) == 4
    assert len(json.loads((tmp_path / "kernels.json").read_text())) == 2


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"x": 3}', '{"x": {"avx512: int8 x int8": "fast"}}', "\udc80"])
def test_a_damaged_memory_is_made_anew(text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = machine(monkeypatch, {"avx512": 100, "avx2": 50})
    (tmp_path / "kernels.json").write_bytes(text.encode(errors="surrogateescape"))
    assert choose_variant("cpu", program(Format("int8", 64))).variant == "avx512"
    assert asked
    assert len(json.loads((tmp_path / "kernels.json").read_text())) == 1


def test_a_folder_that_can_t_be_written_costs_a_measurement_each_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = machine(monkeypatch, {"avx512": 100, "avx2": 50})
    (tmp_path / "file").touch()
    monkeypatch.setenv("QWENCH_CACHE", str(tmp_path / "file" / "cache"))
    for _ in range(2):
        choose_variant("cpu", program(Format("int8", 64)))
    assert len(asked) == 4


def test_the_environment_forces_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = machine(monkeypatch, {"avx512": 100, "avx2": 50})
    monkeypatch.setenv("QWENCH_KERNELS", "avx2")
    assert choose_variant("cpu", program(BF16)).variant == "avx2"
    assert choose_variant("cpu-avx512", program(BF16)).variant == "avx512", "that target has no such kernels"
    monkeypatch.setenv("QWENCH_KERNELS", "avx512bf16")
    with pytest.raises(TargetError, match="QWENCH_KERNELS is 'avx512bf16'; this processor has: avx512, avx2, generic"):
        choose_variant("cpu", program(BF16))
    assert not asked


def test_this_machine_s_choice_is_among_its_kernels() -> None:
    for fmt, activations in (
        (BF16, "fp32"),
        (BF16, "bf16"),
        (Format("int8", 128), "int8"),
        (Format("int4", 128), "int16"),
    ):
        choice = choose_variant("cpu", program(fmt, activations))
        assert choice.variant in variants_of("cpu")
        assert all(gops > 0.1 for products in choice.measured.values() for gops in products.values())


@pytest.mark.parametrize("product", [("bf16", "int8"), ("int4", "bf16")])
def test_products_that_there_are_not_can_t_be_measured(product: tuple[str, str]) -> None:
    with pytest.raises(ValueError):
        _native.measure_product_gops("generic", *product)
