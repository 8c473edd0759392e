"""How a model is compiled: options of compile and plan."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

from qwench.cli.options.loading import ROPE_SCALING_HELP


def add_compiling(parser: ArgumentParser) -> None:
    """How to compile a model, with the names that QwenchConfig has for it."""
    add = parser.add_argument
    add("--weights", metavar="KIND", help="bf16 (default), int8 or int4; of a quantised checkpoint: as it has them")
    add("--requantize", metavar="KIND", help="round a quantised checkpoint a second time: int8, int4 or bf16")
    add("--head-weights", metavar="KIND", help="of embedding and output head; default: int8 beside int4, else the same")
    add("--group-size", type=int, metavar="N", help="weights that share a scale: 32, 64, 128 (default) or 256")
    add(
        "--activations",
        metavar="KIND",
        help="of bf16 weights: fp32 (default), or bf16: faster where the processor multiplies bf16; of integers: "
        "int8 (default), int16: finer, slower prompts, or fp32: exact, slow",
    )
    add("--recipe", metavar="NAME", help="accuracy, balanced or speed: formats for each kind of layer")
    add("--overrides", type=Path, metavar="FILE", help='JSON: {"pattern of weight names": "format", ...}')
    add("--calibrate", metavar="FILE", help="text like the model's own; rounds weights so that it is harmed least")
    add("--lora", dest="merged_lora", metavar="FOLDER", help="merge this LoRA adapter, before rounding")
    add("--kv-cache", metavar="KIND", help="int16, bf16, fp32 or int8; default: int16; beside bf16 weights fp32")
    add("--max-seq-len", type=int, metavar="N", help="tokens of prompt and answer; default: the model's")
    add("--rope-scaling", metavar="S", help=ROPE_SCALING_HELP)
    add("--bidirectional", action="store_true", default=None, help="each token sees all of its text: embedding models")
    add("--batch-size", type=int, metavar="N", help="sequences that generate at once; default 32")
    add("--prefill-chunk-size", type=int, metavar="N", help="tokens in one step; default 512")
    add("--attn-impl", metavar="KIND", help="flash_attn (default): in partitions; eager: each sequence as one")
    add("--kvcache-partition-len", type=int, metavar="N", help="positions in a partition, default 512")
    add("--kvcache-block-size", type=int, metavar="N", help="positions in a cache block, default 64 of codes, else 32")
    add("--kvcache-num-blocks", type=int, metavar="N", help="cache blocks; default: what memory allows when loaded")
    add("--memory", metavar="SIZE", help="what the loaded model may use, such as 8GiB or 800MB; default: what is free")
    add(
        "--target",
        metavar="T",
        help="cpu, cpu-avx512, cpu-avx2, cpu-generic, cuda or reference; default: cuda where there is a GPU, else cpu",
    )
