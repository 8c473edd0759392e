"""The models that `qwench serve` is given, as ModelSettings: their names, compiled folders, adapters and memory.

Called by serve.py. What several models need beyond one is imported only for them.
"""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qwench.cli.options.loading import config_of
from qwench.errors import ConfigError, QwenchError
from qwench.host import mpi_place

if TYPE_CHECKING:
    from qwench.config import QwenchConfig
    from qwench.serve.models.model_settings import ModelSettings

Adapter = tuple[str, Path]


def models_of(args: Namespace) -> tuple[tuple[ModelSettings, ...], int | None]:
    """What is to be served, compiled first if need be, and the bytes that several models share; None for a single one.

    Raises ConfigError for names that can't be told apart, and what opening and compiling raise.
    """
    from qwench.serve.models.model_settings import ModelSettings, check_names

    config, given = config_of(args), [_named(text) for text in args.models]
    if len(given) == 1:
        [(name, model)] = given
        names = tuple(dict.fromkeys([*([name] if name else []), *(args.name or [])])) or (_last_part(model),)
        folder, left = _compiled(model, config)
        return (ModelSettings(folder, names, left, _by_name(args.lora), args.prefix_dir, args.draft),), None
    if args.name:
        raise ConfigError("--name is for a single model; name one of several by NAME=MODEL")
    if args.draft:
        raise ConfigError("--draft is for a single model; serve it alone")
    if mpi_place()[1] > 1:
        raise ConfigError("several hosts serve a single model; start a server for each")
    memory, config = config.memory, dataclasses.replace(config, memory=None)
    check_names(ModelSettings(Path(model), (name or _last_part(model),)) for name, model in given)  # before compiling
    models = [ModelSettings(*_named_and_compiled(name, model, config)) for name, model in given]
    adapters = _adapters_of(models, args.lora)
    models = [
        dataclasses.replace(model, lora=_by_name(adapters[i]), prefix_dir=_prefixes_of(model, args.prefix_dir))
        for i, model in enumerate(models)
    ]
    from qwench.serve.models.memory_shares import with_shares

    return with_shares(models, memory)


def _named(text: str) -> tuple[str | None, str]:
    """NAME=MODEL, or a MODEL alone, which may have a = in its path. Raises ConfigError."""
    name, equals, model = text.partition("=")
    if not equals or Path(text).expanduser().exists():
        return None, text
    if not name.strip() or not model or not name.isprintable():
        raise ConfigError(f"{text!r} is not NAME=MODEL")
    return name.strip(), model


def _last_part(model: str) -> str:
    return model.rstrip("/").rpartition("/")[2] or "model"


def _named_and_compiled(
    name: str | None, model: str, config: QwenchConfig
) -> tuple[Path, tuple[str, ...], QwenchConfig]:  # fmt: skip
    folder, left = _compiled(model, config)
    return folder, (name or _last_part(model),), left


def _compiled(model: str, config: QwenchConfig) -> tuple[Path, QwenchConfig]:
    """The folder of the artifact, compiled first if need be, and the options that are left for loading it."""
    from qwench.artifact.artifact import is_artifact
    from qwench.load import resolve_model

    path = Path(model).expanduser()
    if is_artifact(path):
        return path, config
    from qwench.cli.terminal.progress import ProgressDisplay

    with ProgressDisplay() as progress:
        artifact = resolve_model(model, config, progress=progress)
    return artifact.path, config.at_load()


def _by_name(given: Sequence[Adapter] | None) -> dict[str, Path]:
    """Raises ConfigError for a name that is given twice."""
    adapters = dict(given or ())
    if len(adapters) < len(given or ()):
        raise ConfigError(f"--lora gives {', '.join(name for name, _ in given or ())}; names must differ")
    return adapters


def _adapters_of(models: Sequence[ModelSettings], given: Sequence[Adapter] | None) -> list[list[Adapter]]:
    """Each model's: those given as MODEL/NAME, and others where they fit this model alone. Raises ConfigError."""
    found: list[list[Adapter]] = [[] for _ in models]
    for name, folder in given or ():
        prefixes = [i for i, model in enumerate(models) if name.startswith(f"{model.names[0]}/")]
        if prefixes:
            owner = max(prefixes, key=lambda i: len(models[i].names[0]))
            name = name.removeprefix(f"{models[owner].names[0]}/")
        else:
            owner = _only_one_fitting(models, name, folder)
        found[owner].append((name, folder))
    return found


def _only_one_fitting(models: Sequence[ModelSettings], name: str, folder: Path) -> int:
    from qwench.artifact.artifact import read_plan
    from qwench.lora.peft_folder import read_adapter
    from qwench.program.models import adaptable_shapes

    fitting, reasons = [], []
    for i, model in enumerate(models):
        try:
            read_adapter(folder, adaptable_shapes(read_plan(model.folder)[1].spec))
            fitting.append(i)
        except QwenchError as error:
            reasons.append(str(error))
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise ConfigError(f"the adapter {name} fits none of the models: {reasons[0]}")
    names = " and ".join(models[i].names[0] for i in fitting)
    raise ConfigError(
        f"the adapter {name} fits {names}; say whose it is: --lora {models[fitting[0]].names[0]}/{name}=..."
    )


def _prefixes_of(model: ModelSettings, folder: Path | None) -> Path | None:
    """Each of several models has a folder of its own in it, by its name. Raises ConfigError."""
    if folder is None:
        return None
    from qwench.runtime.prefix_file import SUFFIX

    if not folder.is_dir():
        raise ConfigError(f"--prefix-dir {folder} is not a folder")
    if stray := sorted(folder.glob(f"*{SUFFIX}")):
        raise ConfigError(
            f"{stray[0]} is nobody's: with several models each has its prefixes in a folder, such as "
            f"{folder / model.names[0]}"
        )
    own = folder / model.names[0]
    return own if own.is_dir() else None
