"""Modules of a compiled model run alone: its own ops, weights, formats and kernels on inputs that someone else gives.

A Program is data, so a module is a Program too: a slice of the model's ops, between an `embed` that reads the rows
given in place of tokens and a `take_rows` that hands the result out as a hidden state. Both copy fp32 as it is. Knows
nothing of truths and metrics. Called by `verify.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from qwench.artifact.artifact import Artifact
from qwench.evaluate.batches import num_blocks, whole_sequences
from qwench.evaluate.compiled import cache_config
from qwench.formats import BF16, Format
from qwench.program.memory import plan_memory
from qwench.program.ops import Buffer, Op, Program, Weight, residual_of
from qwench.targets.target import Float32, Int32

ModuleKind = Literal["embedding", "norm", "attention", "mlp", "layer", "head"]
ONE, RESULT = "module.one", "module.result"
Tensors = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Module:
    """A part of the model. `source` and `result` name its input and output in the unfused Program.

    ops: of the compiled Program, in order. layer: None outside the layers. source: "" for token ids. keeps_residual:
    False: what the module adds to the residual stream, without the stream.
    """

    kind: ModuleKind
    layer: int | None
    ops: tuple[str, ...]
    source: str
    result: str
    keeps_residual: bool = True


def layer_modules(program: Program, layer: int) -> list[Module]:
    """The modules of one layer, from the smallest to the layer itself."""
    at = f"layers.{layer}"
    ops = tuple(op.name for op in program.ops if op.name.startswith(f"{at}.") and op.kind != "take_rows")
    before = f"layers.{layer - 1}.mlp_add" if layer else "embed"
    middle = ops.index(f"{at}.mlp_norm")
    return [
        Module("norm", layer, ops[:1], before, f"{at}.attn_norm"),
        Module("norm", layer, ops[middle : middle + 1], f"{at}.attn_add", f"{at}.mlp_norm"),
        Module("attention", layer, ops[:middle], before, f"{at}.o", keeps_residual=False),
        Module("mlp", layer, ops[middle:], f"{at}.attn_add", f"{at}.down", keeps_residual=False),
        Module("layer", layer, ops, before, f"{at}.mlp_add"),
    ]


def end_modules(program: Program) -> tuple[Module, Module]:
    """What is before and what is after the layers."""
    last = f"layers.{program.spec.num_layers - 1}.mlp_add"
    head = ("take_rows", "final_norm", "lm_head")
    return Module("embedding", None, (), "", "embed"), Module("head", None, head, last, "lm_head")


class ModuleRunner:
    """Runs modules of one artifact over sequences side by side."""

    def __init__(self, artifact: Artifact, num_threads: int) -> None:
        self.artifact, self.num_threads = artifact, num_threads
        self._target = artifact.get_target()
        self._packed: dict[Weight, Tensors] = {}

    def run(self, module: Module, inputs: Float32 | None, sequences: Sequence[Int32]) -> Float32:
        """The module's output [num_tokens, width] fp32, all sequences' tokens one after the other.

        inputs: [num_tokens, hidden_size] fp32, the rows of its input; None for the embedding, which reads token ids.
        """
        assert (inputs is None) == (module.kind == "embedding")
        program = module_program(self.artifact.program, module)
        lengths = [len(ids) for ids in sequences]
        count = sum(lengths)
        cache = cache_config(self.artifact, 0)
        cache = dataclasses.replace(cache, num_blocks=num_blocks(lengths, cache.block_size))
        every_row = np.arange(count, dtype=np.int32)
        batch = whole_sequences(sequences, cache.block_size)
        if inputs is not None:
            batch = dataclasses.replace(batch, token_ids=~every_row, embeddings=np.ascontiguousarray(inputs))
        tensors = self.artifact.tensors | self._identity(program)
        executor = self._target.load(program, plan_memory(program, count), tensors, cache, self.num_threads)
        try:
            if module.kind == "head":
                return executor.step(batch).copy()
            hidden = np.empty((1, count, program.spec.hidden_size), np.float32)
            nothing = np.empty(0, np.int32)
            executor.step(dataclasses.replace(batch, logit_rows=nothing, hidden_rows=every_row), hidden=hidden)
            result: Float32 = hidden[0]
            return result
        finally:
            executor.close()

    def _identity(self, program: Program) -> Tensors:
        """The matrix that a norm's result is multiplied with, packed once for each of its formats."""
        weight = program.weights.get(ONE)
        if weight is None:
            return {}
        if weight not in self._packed:
            out: Tensors = {p.name: np.empty(p.shape, p.dtype) for p in self._target.packed_tensors(weight)}
            self._target.pack(weight, [np.eye(weight.shape[0], dtype=np.float32)], out)
            self._packed[weight] = out
        return self._packed[weight]


def module_program(model: Program, module: Module) -> Program:
    """The module as the Program of a model with one layer."""
    by_name = {op.name: op for op in model.ops}
    ops = [by_name[name] for name in module.ops]
    embed = by_name["embed"]
    entry = ops[0].inputs[0] if ops else embed.output
    if not module.keeps_residual:
        ops = [_without_residual(op) if residual_of(op) == entry else op for op in ops]
    buffers = {op.output: model.buffers[op.output] for op in ops if op.output}
    buffers[entry] = dataclasses.replace(model.buffers[embed.output], name=entry)
    ops = [dataclasses.replace(embed, name=entry, output=entry), *map(_in_layer_0, ops)]
    weights = {name: model.weights[name] for op in ops for name in op.weights}
    if module.kind == "norm":
        # Seen as the product after it sees it: in the format that it has there, multiplied by one.
        buffer = model.buffers[ops[-1].output]
        fmt = Format("int8", buffer.format.group_size) if buffer.format.is_quantized else BF16
        weights[ONE] = Weight(ONE, (ONE,), (buffer.width, buffer.width), fmt)
        buffers[ONE] = Buffer(ONE, buffer.width)
        ops.append(Op("linear", ONE, (ops[-1].output,), ONE, (ONE,)))
    if module.kind != "head":  # whose result are logits
        last = ops[-1].output
        buffers[RESULT] = Buffer(RESULT, model.spec.hidden_size, "hidden")
        ops.append(Op("take_rows", RESULT, (last,), RESULT, (), {"rows": "hidden"}))
    window = model.spec.sliding_windows[module.layer or 0]
    spec = dataclasses.replace(model.spec, num_layers=1, sliding_windows=(window,))
    return Program(spec, buffers, weights, tuple(ops))


def _without_residual(op: Op) -> Op:
    """The same product, added to nothing."""
    if op.kind == "linear_add":
        return dataclasses.replace(op, kind="linear", inputs=op.inputs[:1])
    assert op.kind in ("shared_linear_add", "expert_linear_add"), "what else adds to the residual"
    return dataclasses.replace(op, inputs=op.inputs[:2])


def _in_layer_0(op: Op) -> Op:
    """The op, its keys and values in the only layer there is."""
    return dataclasses.replace(op, attrs={**op.attrs, "layer": 0}) if "layer" in op.attrs else op
