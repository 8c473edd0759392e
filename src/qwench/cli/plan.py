"""`qwench plan`: the memory that a model will take once compiled, from its config.json or its file's header."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwench.cli.compile import add_options
from qwench.cli.options import config_of

if TYPE_CHECKING:
    from qwench.config import QwenchConfig
    from qwench.formats import Format
    from qwench.program.ops import Weight


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "source", type=Path, metavar="SRC", help="folder with a config.json, or a .gguf file; weights aren't read"
    )
    add_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def execute(args: Namespace) -> None:
    """Show the memory that a model will take, and how many sequences fit, before it is compiled or fetched."""
    report = describe(args.source, config_of(args))
    if args.json:
        print(json.dumps(report))
    else:
        _print(report)


def describe(source: Path, options: QwenchConfig) -> dict[str, Any]:
    """Bytes of each part; num_sequences: of max_seq_len that fit `memory`, None without it."""
    from qwench.artifact import derive_program
    from qwench.checkpoint.open_checkpoint import open_checkpoint
    from qwench.checkpoint.spec import ModelSpec
    from qwench.config import KEPT
    from qwench.kept_weights import kept_format
    from qwench.program.memory import plan_memory
    from qwench.program.models import source_shapes
    from qwench.runtime.loading import working_bytes
    from qwench.targets.registry import get_target

    # What is quantised already decides the formats; of other folders the config is enough, without any weights.
    opened = open_checkpoint(source) if source.is_file() or _is_quantized(source) else None
    checkpoint = ModelSpec.from_folder(source) if opened is None else opened.spec
    config = (options if opened is None else options.for_checkpoint(opened.is_quantized)).resolve(checkpoint)
    if opened is not None:
        opened.check(source_shapes(checkpoint))
    assert config.prefill_chunk_size and config.target and config.max_seq_len and config.kvcache_block_size

    def format_of(weight: Weight) -> Format:
        if opened is not None and config.weights == KEPT:
            return kept_format(weight, opened)
        return config.format_of(weight)

    program = derive_program(config.model(checkpoint), format_of, str(config.activations))
    plan, target = plan_memory(program, config.prefill_chunk_size), get_target(config.target)
    weights = sum(t.num_bytes for weight in program.weights.values() for t in target.packed_tensors(weight))
    working = working_bytes(program, plan, config)
    sequence = config.blocks_of_one_sequence(program.spec) * config.cache(1).block_bytes(program)
    left = None if config.memory is None else config.memory - weights - working
    return {
        "source": str(source),
        "config": config.to_dict(),
        "weights_bytes": weights,
        "working_bytes": working,
        "cache_bytes_per_sequence": sequence,
        "total_bytes": weights + working + sequence,
        "num_sequences": None if left is None else max(0, left // sequence),
    }


def _is_quantized(folder: Path) -> bool:
    """Whether the folder has a quantised model, and its weights: they say what they are."""
    if any(folder.glob("*.gguf")):
        return True
    config = folder / "config.json"
    has_both = config.is_file() and any(folder.glob("*.safetensors"))
    return has_both and '"quantization_config"' in config.read_text(encoding="utf-8", errors="replace")


def _print(report: dict[str, Any]) -> None:
    from qwench.cli.sizes import format_size
    from qwench.cli.table import print_table

    config = report["config"]
    length = f"one sequence of {config['max_seq_len']} tokens, {config['kv_cache']}"
    rows = [
        ("weights", format_size(report["weights_bytes"]), f"{config['weights']}, head {config['head_weights']}"),
        ("working", format_size(report["working_bytes"]), "activations of a step, logits, RoPE"),
        ("KV cache", format_size(report["cache_bytes_per_sequence"]), length),
        ("together", format_size(report["total_bytes"]), ""),
    ]
    print_table(("memory", "size", "of"), rows, right=("size",))
    if report["num_sequences"] is not None:
        print(f"\n{format_size(config['memory'])} hold {report['num_sequences']} such sequences at once")
