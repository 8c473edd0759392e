"""MODEL -> Artifact: an artifact folder is opened, a checkpoint folder or a hub id compiled into a cache first.

Checks the given options against those that an artifact was compiled with. Called by `LLM`, `QwenchForCausalLM` and the
command line.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from qwench.artifact.artifact import Artifact, is_artifact, open_artifact
from qwench.calibration.text import text_identity
from qwench.config import LOAD_OPTIONS, RUNTIME_OPTIONS, QwenchConfig
from qwench.errors import ConfigError
from qwench.host import mpi_place
from qwench.lora.peft_folder import adapter_identity
from qwench.parallel.host_process import serve_as_host
from qwench.progress import ProgressCallback
from qwench.targets.registry import get_target

IDENTITIES = {"calibrate": text_identity, "merged_lora": adapter_identity}  # what an artifact keeps of a path


def resolve_model(
    model: str | Path, config: QwenchConfig | None = None, *, progress: ProgressCallback | None = None
) -> Artifact:
    """Opens `model`: an artifact folder, a checkpoint folder or a hub id; the latter two are compiled once and cached.

    The artifact's config has the options of loading and running of `config`. Raises ConfigError when `config`
    contradicts the artifact, CheckpointError or HubError when there's no such model, and what compiling and opening
    raise. A process that `mpiexec` started beside the first one doesn't return: it serves as one of its hosts.
    """
    if mpi_place()[0] > 0:
        serve_as_host()
    config = config or QwenchConfig()
    path = Path(model).expanduser()
    if path.is_dir() and is_artifact(path):
        artifact = open_artifact(path)
        _check_agreement(artifact, config)
        return with_options(artifact, config)
    from qwench.compiler.compile_cache import open_compiled  # slow to import, and not needed for an artifact

    options = dataclasses.replace(config, **dict.fromkeys(LOAD_OPTIONS))
    return with_options(open_compiled(model, options, progress), config)


def _check_agreement(artifact: Artifact, config: QwenchConfig) -> None:
    """Every option given is the one that the artifact was compiled with; another target may read the same layout."""
    for field in dataclasses.fields(config):
        asked, compiled = getattr(config, field.name), getattr(artifact.config, field.name)
        if asked is None or asked == compiled or field.name in (*LOAD_OPTIONS, *RUNTIME_OPTIONS):
            continue
        if field.name in IDENTITIES and IDENTITIES[field.name](asked) == compiled:
            continue
        if field.name == "target" and get_target(asked).layout == artifact.manifest.layout:
            continue
        raise ConfigError(
            f"{field.name} is {asked!r}, but {artifact.path} was compiled with {compiled!r}; leave the option out, or "
            "compile the checkpoint again with it"
        )


def with_options(artifact: Artifact, config: QwenchConfig) -> Artifact:
    """The artifact with the options of `config` that are decided where it is loaded."""
    # Resolving again checks the options against each other.
    merged = artifact.config.overridden_by(config.at_load()).resolve(artifact.program.spec)
    return dataclasses.replace(artifact, config=merged)
