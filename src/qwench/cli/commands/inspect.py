"""`qwench inspect`: what is in an artifact, and which kernel serves each op on this machine."""

from __future__ import annotations

import json
import re
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from qwench.artifact.artifact import Artifact
    from qwench.program.ops import Op


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("artifact", type=Path, metavar="ARTIFACT", help="folder that `qwench compile` wrote")
    add("--json", action="store_true", help="print one JSON object with every op, buffer and option")
    add("--verify", action="store_true", help="compare the sha256 of every file, the weights too")


def execute(args: Namespace) -> None:
    """Show ops, formats, sizes, memory plan, and the kernel that serves each op on this machine."""
    from qwench.artifact.artifact import open_artifact

    verify: Literal["fast", "full"] = "full" if args.verify else "fast"
    report = describe(open_artifact(args.artifact, verify)) | {"verified": verify}
    if args.json:
        print(json.dumps(report))
    else:
        _print(report)


def describe(artifact: Artifact) -> dict[str, Any]:
    """Everything that inspect knows, as plain data."""
    manifest, program, plan = artifact.manifest, artifact.program, artifact.plan
    kernels = _kernels(artifact)
    return {
        "artifact": str(artifact.path),
        "qwench_version": manifest.qwench_version,
        "created": manifest.created,
        "source": {"name": manifest.source_name, "digest": manifest.source_digest},
        "config": artifact.config.to_saved(),
        "spec": program.spec.to_dict(),
        "layout": manifest.layout,
        "kernels": artifact.get_target().kernel_choice(program),
        "files": {name: record.num_bytes for name, record in manifest.files.items()},
        "ops": [_describe_op(artifact, op, kernels[op.name]) for op in program.ops],
        "memory_plan": {
            "weights_bytes": artifact.weights_bytes,
            "arena_bytes": plan.arena_bytes,
            "work_bytes": plan.work_bytes,
            "max_step_tokens": plan.max_step_tokens,
            "kvcache_block_bytes": _one_block(artifact).block_bytes(program),
            "offsets": plan.offsets,
        },
    }


def _describe_op(artifact: Artifact, op: Op, kernel: str) -> dict[str, Any]:
    program = artifact.program
    weights = [program.weights[name] for name in op.weights]
    packed = [t.name for weight in weights for t in artifact.get_target().packed_tensors(weight)]
    return {
        "name": op.name,
        "kind": op.kind,
        "inputs": list(op.inputs),
        "output": op.output,
        "weights": [
            {"name": w.name, "shape": list(w.shape), "format": str(w.format)} | _told(artifact, w.name) for w in weights
        ],
        "weight_bytes": sum(artifact.tensors[name].nbytes for name in packed),
        "kernel": kernel,
    }


def _told(artifact: Artifact, weight: str) -> dict[str, Any]:
    """How a matrix lay in its checkpoint, where nobody asked for it to be quantised."""
    found = artifact.manifest.conversions.get(weight)
    return {} if found is None else {"stored": found.stored, "relative_error": found.relative_error}


def _one_block(artifact: Artifact) -> Any:
    from qwench.targets.target import CacheConfig

    config = artifact.config
    assert config.kvcache_block_size is not None and config.kv_cache is not None, "an artifact's config is resolved"
    return CacheConfig(1, config.kvcache_block_size, config.kv_cache)


def _kernels(artifact: Artifact) -> dict[str, str]:
    """Op -> kernel, as an executor with the smallest cache tells it."""
    cache = _one_block(artifact)
    executor = artifact.get_target().load(artifact.program, artifact.plan, artifact.tensors, cache, num_threads=1)
    try:
        return executor.kernels()
    finally:
        executor.close()


def _print(report: dict[str, Any]) -> None:
    from qwench.cli.terminal.table import print_table
    from qwench.host import format_bytes

    spec, memory = report["spec"], report["memory_plan"]
    print(f"{report['artifact']}: {report['source']['name']}, compiled {report['created']}")
    print(
        f"model    {spec['num_layers']} layers, hidden {spec['hidden_size']}, {spec['num_heads']} heads "
        f"({spec['num_kv_heads']} for keys and values) of {spec['head_dim']}, vocabulary {spec['vocab_size']}, "
        f"{spec['model_type']} with head {spec['head']['kind']}{'' if spec['is_causal'] else ', in both directions'}"
    )
    print("options  " + ", ".join(f"{key} {value}" for key, value in report["config"].items() if value is not None))
    activations = format_bytes(memory["arena_bytes"] + memory["work_bytes"])
    print(
        f"memory   weights {format_bytes(memory['weights_bytes'])}, activations {activations} "
        f"for steps of {memory['max_step_tokens']} tokens, KV cache {format_bytes(memory['kvcache_block_bytes'])} "
        f"a block of {report['config']['kvcache_block_size']} positions"
    )
    print(f"kernels  {report['kernels']}")
    print()
    header: tuple[str, ...] = ("op", "kind", "weights", "in the checkpoint", "size", "kernel")
    rows = _rows(report["ops"])
    if not any(row[3] for row in rows):  # all of them were quantised because the user said so
        header, rows = (*header[:3], *header[4:]), [(*row[:3], *row[4:]) for row in rows]
    print_table(header, rows, right=("size",))


def _rows(ops: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """One row per op; layers that don't differ share theirs."""
    from qwench.host import format_bytes

    numbers: dict[tuple[str, ...], list[int]] = {}
    for op in ops:
        layer = re.match(r"layers\.(\d+)\.", op["name"])
        shapes = [f"{w['format']} {'x'.join(map(str, w['shape']))}" for w in op["weights"]]
        stored = next((_faithfulness(w) for w in op["weights"] if "stored" in w), "")
        size = format_bytes(op["weight_bytes"]) if op["weight_bytes"] else ""
        row = (
            re.sub(r"^layers\.\d+\.", "layers.*.", op["name"]),
            op["kind"],
            ", ".join(shapes),
            stored,
            size,
            op["kernel"],
        )
        numbers.setdefault(row, []).append(int(layer[1]) if layer else 0)
    return [(row[0].replace("*", _ranges(layers)), *row[1:]) for row, layers in numbers.items()]


def _faithfulness(weight: dict[str, Any]) -> str:
    """As "Q4_K, exact" or "Q6_K, relative error 5e-03": one digit, or no two layers would share a row."""
    error = weight["relative_error"]
    return f"{weight['stored']}, {f'relative error {error:.0e}' if error else 'exact'}"


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> "0-2,5"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)
