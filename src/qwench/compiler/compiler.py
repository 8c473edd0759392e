"""checkpoint -> Artifact: checks everything first, then packs tensor by tensor into a folder that appears when done.

Holds a few tensors in memory at a time. The Program says which format a weight gets, the target packs it. Called by
`qwench compile`, `compiler/compile_cache.py` and `QwenchForCausalLM`.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import qwench
from qwench.artifact.artifact import (
    MANIFEST,
    PROGRAM,
    WEIGHTS,
    Artifact,
    Conversion,
    FileRecord,
    Manifest,
    derive_program,
    file_crc32c,
    file_sha256,
    open_artifact,
    program_json,
    refuse_artifact,
)
from qwench.artifact.artifact_folder import check_destination, new_artifact_folder
from qwench.calibration.calibrator import Calibrator
from qwench.calibration.text import calibration_rows
from qwench.checkpoint.checkpoint import Checkpoint, as_floats
from qwench.checkpoint.hub import find_checkpoint
from qwench.checkpoint.open_checkpoint import open_checkpoint
from qwench.checkpoint.tokenizer_tables import write_tokenizer_tables
from qwench.compiler.kept_weights import Source, conversion, derive_kept_program, in_row_order, read_kept
from qwench.config import KEPT, QwenchConfig
from qwench.errors import CapacityError
from qwench.formats import BF16
from qwench.host import available_memory_bytes, format_bytes, num_cpus
from qwench.lora.merged_checkpoint import MergedCheckpoint
from qwench.lora.peft_folder import read_adapter
from qwench.program.memory import MemoryPlan, plan_memory
from qwench.program.models import adaptable_shapes, source_shapes
from qwench.program.ops import Program, Weight
from qwench.program.passes import ordered_matrix
from qwench.progress import ProgressCallback, Reporter
from qwench.safetensors_file import SafetensorsWriter
from qwench.targets.cpu._native import crc32c
from qwench.targets.registry import get_target
from qwench.targets.target import PackedTensor, Target

HEADER_ROOM_BYTES = 1 << 20
log = logging.getLogger("qwench")


@dataclass(frozen=True)
class _Plan:
    """Everything that is decided before the first byte is written."""

    checkpoint: Checkpoint
    config: QwenchConfig
    program: Program
    plan: MemoryPlan
    target: Target
    packed: dict[str, list[PackedTensor]]
    packed_bytes: int
    calibrator: Calibrator | None


def compile_checkpoint(
    source: str | Path,
    out: str | Path,
    config: QwenchConfig | None = None,
    *,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
    source_name: str | None = None,
) -> Artifact:
    """Compiles the checkpoint `source`, a folder or a hub id, into the folder `out` and opens the result.

    overwrite: replace an artifact in `out`, once the new one is complete. source_name: what the manifest calls the
    source, by default the folder's name or the id. Raises CheckpointError, HubError, ConfigError, CapacityError,
    TargetError, and ArtifactError if `out` can't be written; then nothing is left of the attempt.
    """
    out = Path(out)
    folder, name = find_checkpoint(source, progress)
    refuse_artifact(folder)
    check_destination(out, overwrite, folder)
    report = Reporter(progress)
    report("check", 0, 1)
    work = _prepare(folder, config or QwenchConfig())
    _check_memory(work)
    _check_disk(work, out)
    with new_artifact_folder(out, overwrite) as new, ThreadPoolExecutor(1) as beside:
        copied = beside.submit(_copy_companions, work.checkpoint, new)  # a second of Python while native code packs
        written = _write_weights(work, new / WEIGHTS, report)
        copied.result()
        report("finish", work.packed_bytes, work.packed_bytes)
        (new / PROGRAM).write_text(program_json(work.program, work.plan), encoding="utf-8")
        manifest = _manifest(work, new, source_name or name, written)
        (new / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        artifact = open_artifact(new)  # verified before it gets its name; mapped files stay mapped
    return dataclasses.replace(artifact, path=out, config=work.config)  # the options of a run, too


def _copy_companions(checkpoint: Checkpoint, folder: Path) -> None:
    for name, data in checkpoint.texts().items():
        (folder / name).write_bytes(data)
    write_tokenizer_tables(folder)


def _manifest(work: _Plan, folder: Path, source_name: str, written: _Written) -> Manifest:
    """The manifest of the files in `folder`."""
    files = {
        path.name: FileRecord(written.sha256, path.stat().st_size)
        if path.name == WEIGHTS
        else FileRecord(file_sha256(path), path.stat().st_size, file_crc32c(path))
        for path in sorted(folder.iterdir())
    }
    return Manifest(
        qwench_version=qwench.__version__,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        source_name=source_name,
        source_digest=work.checkpoint.content_digest(written.source_crcs),
        config=work.config.to_saved(),
        layout=work.target.layout,
        files=files,
        crc32c=written.packed_crcs,
        conversions=written.conversions,
    )


def _prepare(source: Path, config: QwenchConfig) -> _Plan:
    """Reads config and headers, derives the Program, and checks that the tensors are those it needs."""
    checkpoint: Checkpoint = open_checkpoint(source, num_cpus())
    spec = checkpoint.spec
    checkpoint.check(source_shapes(spec))
    if config.merged_lora is not None:
        checkpoint = MergedCheckpoint(checkpoint, read_adapter(config.merged_lora, adaptable_shapes(spec)))
    config = config.for_checkpoint(checkpoint.is_quantized)
    resolved = config.resolve(spec)
    _warn_of_own_code(checkpoint, resolved)
    assert resolved.target is not None and resolved.prefill_chunk_size is not None
    target = get_target(resolved.target)

    model, activations = resolved.model(spec), str(resolved.activations)
    if resolved.weights == KEPT:
        program = derive_kept_program(model, activations, checkpoint)
    else:
        program = derive_program(model, resolved.format_of, activations)
    plan = plan_memory(program, resolved.prefill_chunk_size)
    packed = {name: target.packed_tensors(weight) for name, weight in program.weights.items()}
    packed_bytes = sum(t.num_bytes for tensors in packed.values() for t in tensors)
    calibrator = None
    if config.calibrate is not None:
        rows = calibration_rows(Path(config.calibrate), source, resolved.max_seq_len or spec.max_position_embeddings)
        calibrator = Calibrator(program, lambda name: as_floats(checkpoint.read(name)), rows)
    return _Plan(checkpoint, resolved, program, plan, target, packed, packed_bytes, calibrator)


def _warn_of_own_code(checkpoint: Checkpoint, config: QwenchConfig) -> None:
    """Code beside a checkpoint may compute something else than its architecture's name says, as gte-Qwen2's does."""
    spec, text = checkpoint.spec, checkpoint.texts()["config.json"]
    named = json.loads(text).get("auto_map")
    classes = named if isinstance(named, dict) else {}
    own = next((value for name, value in classes.items() if name.startswith("AutoModel")), None)
    if own is not None and spec.is_causal and not config.bidirectional and not spec.head.is_deep:
        log.warning(
            "%s comes with code of its own (%s), which doesn't run here: it is compiled as a plain %s whose tokens see "
            "those before them; say --bidirectional (bidirectional=True) if that code has them see all",
            checkpoint.path, own, spec.model_type,
        )  # fmt: skip


@dataclass
class _Written:
    """The weights file: crc32c by source tensor and by packed tensor, what became of matrices, and `pieces_sha256`."""

    source_crcs: dict[str, int]
    packed_crcs: dict[str, int]
    conversions: dict[str, Conversion]
    sha256: str = ""


def _write_weights(work: _Plan, path: Path, report: Reporter) -> _Written:
    """Packs every weight."""
    checkpoint, threads = work.checkpoint, num_cpus()
    written, done = _Written({}, {}, {}), 0
    order = dict.fromkeys(name for op in work.program.ops for name in op.weights)  # the order that calibration needs
    header = [(t.name, "U8", t.shape) for name in order for t in work.packed[name]]
    with SafetensorsWriter(path, header, threads) as writer:
        for name in order:
            weight = work.program.weights[name]
            sources = _read(work, weight)
            stored = [source for source in weight.sources if ordered_matrix(source) is None]
            for source in stored:
                written.source_crcs |= checkpoint.crcs(source)
            if not weight.is_vector and (work.config.weights == KEPT or weight.format == BF16):
                written.conversions[name] = conversion(weight, checkpoint, sources)
            out = {t.name: np.empty(t.num_bytes, np.uint8) for t in work.packed[name]}
            work.target.pack(weight, in_row_order(weight, checkpoint, sources), out)
            for source in stored:
                checkpoint.release(source)
            for tensor, data in out.items():
                written.packed_crcs[tensor] = crc32c(data, threads)
                writer.write(tensor, data)
                done += data.nbytes
            report("pack", done, work.packed_bytes)
        written.sha256 = writer.finish()
    return written


def _read(work: _Plan, weight: Weight) -> Sequence[Source]:
    """The sources of a weight as `Target.pack` takes them."""
    if work.config.weights == KEPT:
        return read_kept(weight, work.checkpoint)
    if work.calibrator is not None and work.calibrator.wants(weight):
        return work.calibrator.quantize(weight)
    return [as_floats(work.checkpoint.read(source)) for source in weight.sources]


def _check_memory(work: _Plan) -> None:
    """Checks that the loaded model, with a cache for one sequence, fits the memory that it may use. There is no limit
    for a model that isn't to run here (create_runtimes=False) unless `memory` is given."""
    config = work.config
    if config.memory is None and not config.create_runtimes:
        return
    cache = config.cache(config.blocks_of_one_sequence(work.program.spec))
    cache_bytes = cache.num_blocks * cache.block_bytes(work.program)
    needed = work.packed_bytes + work.plan.num_bytes + cache_bytes
    allowed = config.memory if config.memory is not None else available_memory_bytes()
    if needed <= allowed:
        return
    whose = "memory allows" if config.memory is not None else "this machine has free"
    raise CapacityError(
        f"the compiled model needs {format_bytes(needed)} ({format_bytes(work.packed_bytes)} of weights, "
        f"{format_bytes(work.plan.num_bytes)} of activations, {format_bytes(cache_bytes)} of cache for one sequence of "
        f"{config.max_seq_len} tokens), but {whose} {format_bytes(allowed)}; lower {_largest(work, cache_bytes)}"
    )


def _largest(work: _Plan, cache_bytes: int) -> str:
    """The option that saves most."""
    if cache_bytes > work.packed_bytes:
        return f"max_seq_len (--max-seq-len), now {work.config.max_seq_len}"
    if work.config.weights != "int4":
        return f"weights (--weights int8 or int4), now {work.config.weights}"
    return f"max_seq_len (--max-seq-len), now {work.config.max_seq_len}, or take a smaller model"


def _check_disk(work: _Plan, out: Path) -> None:
    """Checks the free disk space. An artifact to be replaced is kept until the new one is complete."""
    parent = next(p for p in Path(out).absolute().parents if p.exists())
    needed = work.packed_bytes + HEADER_ROOM_BYTES + sum(map(len, work.checkpoint.texts().values()))
    if (free := shutil.disk_usage(parent).free) < needed:
        raise CapacityError(
            f"{out} needs {format_bytes(needed)} of disk, but {parent} has {format_bytes(free)} free; free some space "
            "or give an output folder on another disk"
        )
