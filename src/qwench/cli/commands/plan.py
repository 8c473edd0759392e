"""`qwench plan`: the memory that a model will take once compiled, from its config.json or its file's header."""

from __future__ import annotations

import dataclasses
import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwench.cli.options.compiling import add_compiling
from qwench.cli.options.loading import config_of
from qwench.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qwench.config import QwenchConfig
    from qwench.program.ops import Program


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "source", type=Path, metavar="SRC", help="folder with a config.json, or a .gguf file; weights aren't read"
    )
    add_compiling(parser)
    add = parser.add_argument
    add("--tensor-parallel-size", type=int, metavar="N", help="also show what each of N ranks takes")
    add("--shares", metavar="A,B,...", help="how much each rank takes, as 2,1,1; default: alike")
    add("--link", metavar="RATE,LATENCY", help="each rank is a machine, and they are joined so, as 10Gbit,50us: "
        "also predict the time of a token")  # fmt: skip
    add("--read-speed", type=float, metavar="GB/S", help="of each machine's memory, for --link; default: this one's, "
        "measured")  # fmt: skip
    add("--draft", type=Path, metavar="SRC", help="also count a draft model, compiled to the same weights")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def execute(args: Namespace) -> None:
    """Show the memory that a model will take, and how many sequences fit, before it is compiled or fetched."""
    if args.link and not args.tensor_parallel_size:
        raise ConfigError("--link joins ranks; give their number, --tensor-parallel-size")
    if args.draft and args.tensor_parallel_size:
        raise ConfigError("a draft model runs in one process; leave out --tensor-parallel-size or --draft")
    report = describe(args.source, config_of(args), args.link, args.read_speed, args.draft)
    if args.json:
        print(json.dumps(report))
    else:
        _print(report)


def describe(
    source: Path, options: QwenchConfig, link: str | None = None, read_gbps: float | None = None,
    draft: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Bytes of each part; num_sequences: of max_seq_len that fit `memory`, None without it. "ranks" and "forecast" only
    where options ask for ranks, and for their link, "draft" only where there is one: its part of the bytes."""
    config, program, weight_bytes, working = _derive(source, options)
    assert config.kvcache_block_size
    weights, num_blocks = sum(weight_bytes.values()), config.blocks_of_one_sequence(program.spec)
    sequence = num_blocks * config.cache(1).block_bytes(program)
    more: dict[str, Any] = {}
    if config.tensor_parallel_size:
        more = _describe_ranks(program, weight_bytes, config, link, read_gbps)
    if draft is not None:
        more["draft"] = part = _describe_draft(draft, config, num_blocks)
        weights, working = weights + part["weights_bytes"], working + part["working_bytes"]
        sequence += part["cache_bytes_per_sequence"]
    left = None if config.memory is None else config.memory - weights - working
    return {
        "source": str(source),
        "config": config.to_dict(),
        "weights_bytes": weights,
        "working_bytes": working,
        "cache_bytes_per_sequence": sequence,
        "total_bytes": weights + working + sequence,
        "num_sequences": None if left is None else max(0, left // sequence),
        **more,
    }


def _describe_draft(source: Path, model: QwenchConfig, num_blocks: int) -> dict[str, Any]:
    """num_blocks: of the model's cache, that a sequence takes."""
    from qwench.config import QwenchConfig
    from qwench.formats import WEIGHT_KINDS
    from qwench.runtime.loading import draft_block_bytes

    assert model.kvcache_block_size
    kind = None if _is_quantized(source) else model.weights if model.weights in WEIGHT_KINDS else "int8"
    config, program, weight_bytes, working = _derive(source, QwenchConfig(weights=kind, target=model.target))
    return {
        "source": str(source),
        "weights_bytes": sum(weight_bytes.values()),
        "working_bytes": working,
        "cache_bytes_per_sequence": num_blocks * draft_block_bytes(program, config, model.kvcache_block_size),
    }


def _derive(source: Path, options: QwenchConfig) -> tuple[QwenchConfig, Program, dict[str, int], int]:
    """The resolved config, the Program, the bytes of each weight, and those of activations and logits."""
    from qwench.artifact.artifact import derive_program, refuse_artifact
    from qwench.checkpoint.open_checkpoint import open_checkpoint
    from qwench.checkpoint.spec import ModelSpec
    from qwench.compiler.kept_weights import derive_kept_program
    from qwench.config import KEPT
    from qwench.program.memory import plan_memory
    from qwench.program.models import source_shapes
    from qwench.runtime.loading import working_bytes
    from qwench.targets.registry import get_target

    refuse_artifact(source)
    # What is quantised already decides the formats; of other folders the config is enough, without any weights.
    opened = open_checkpoint(source) if source.is_file() or _is_quantized(source) else None
    checkpoint = ModelSpec.from_folder(source) if opened is None else opened.spec
    config = (options if opened is None else options.for_checkpoint(opened.is_quantized)).resolve(checkpoint)
    if opened is not None:
        opened.check(source_shapes(checkpoint))
    assert config.prefill_chunk_size and config.target and config.max_seq_len and config.kvcache_block_size

    model, activations = config.model(checkpoint), str(config.activations)
    if opened is not None and config.weights == KEPT:
        program = derive_kept_program(model, activations, opened)
    else:
        program = derive_program(model, config.format_of, activations)
    plan, target = plan_memory(program, config.prefill_chunk_size), get_target(config.target)
    weight_bytes = {w.name: sum(t.num_bytes for t in target.packed_tensors(w)) for w in program.weights.values()}
    return config, program, weight_bytes, working_bytes(program, plan, config)


def _describe_ranks(
    program: Program, weight_bytes: Mapping[str, int], config: QwenchConfig, link: str | None, read_gbps: float | None
) -> dict[str, Any]:
    """ranks: of each, bytes of weights and its part of the cache. forecast: see parallel/forecast.py."""
    from qwench.parallel.forecast import Network, forecast
    from qwench.parallel.memory import share_of_ranks
    from qwench.program.shard import Shares

    assert config.tensor_parallel_size and config.target
    size = config.tensor_parallel_size
    shares = Shares.parse(size, config.shares, program.spec, 1 if link is None else size)
    each = [share_of_ranks(program, weight_bytes, shares, [rank]) for rank in range(size)]
    report: dict[str, Any] = {"ranks": [dataclasses.asdict(share) for share in each]}
    if link is not None:
        speed = _measure_gbps(config.target) if read_gbps is None else read_gbps
        if speed <= 0:
            raise ConfigError(f"--read-speed is {read_gbps}; give the GB/s of a machine's memory, such as 40")
        found = forecast(program, weight_bytes, shares, Network.parse(link), speed * 1e9)
        report["forecast"] = {**dataclasses.asdict(found), "link": link, "read_gbps": speed}
    return report


def _measure_gbps(target: str) -> float:
    from qwench.evaluate.machine import this_machine
    from qwench.host import num_cpus

    return this_machine(target, num_cpus()).read_gbps(512)


def _rank_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    from qwench.host import format_bytes

    rows: list[tuple[str, ...]] = []
    for rank, share in enumerate(report["ranks"]):
        cache = share["cache_part"] * report["cache_bytes_per_sequence"]
        together = share["weight_bytes"] + cache + report["working_bytes"]
        rows.append((str(rank), format_bytes(share["weight_bytes"]), format_bytes(cache), format_bytes(together)))
    return rows


def _print_forecast(found: Mapping[str, Any]) -> None:
    compute_s, link_s = found["compute_s"], found["link_s"]
    seconds = compute_s + link_s
    print(
        f"\na token of one user, predicted: {1e3 * seconds:.2f} ms, {1 / seconds:.1f} tokens/s"
        f"\n  {1e3 * compute_s:.2f} ms to read the weights at {found['read_gbps']:.1f} GB/s a machine"
        f"\n  {1e3 * link_s:.2f} ms for {found['num_exchanges']} exchanges over {found['link']}, "
        f"{found['sent_bytes'] / 1e3:.1f} kB sent by the busiest"
    )


def _is_quantized(folder: Path) -> bool:
    """Whether the folder has a quantised model, and its weights: they say what they are."""
    if any(folder.glob("*.gguf")):
        return True
    config = folder / "config.json"
    has_both = config.is_file() and any(folder.glob("*.safetensors"))
    return has_both and '"quantization_config"' in config.read_text(encoding="utf-8", errors="replace")


def _print(report: dict[str, Any]) -> None:
    from qwench.cli.terminal.table import print_table
    from qwench.host import format_bytes

    config = report["config"]
    length = f"one sequence of {config['max_seq_len']} tokens, {config['kv_cache']}"
    rows = [
        ("weights", format_bytes(report["weights_bytes"]), f"{config['weights']}, head {config['head_weights']}"),
        ("working", format_bytes(report["working_bytes"]), "activations of a step, logits, RoPE"),
        ("KV cache", format_bytes(report["cache_bytes_per_sequence"]), length),
        ("together", format_bytes(report["total_bytes"]), ""),
    ]
    if "draft" in report:
        draft = sum(size for name, size in report["draft"].items() if name.endswith(("_bytes", "_sequence")))
        rows.append(("of it", format_bytes(draft), f"the draft {report['draft']['source']}"))
    print_table(("memory", "size", "of"), rows, right=("size",))
    if "ranks" in report:
        print()
        print_table(("rank", "weights", "KV cache of a sequence", "together with working"), _rank_rows(report))
    if "forecast" in report:
        _print_forecast(report["forecast"])
    if report["num_sequences"] is not None:
        print(f"\n{format_bytes(config['memory'])} hold {report['num_sequences']} such sequences at once")
