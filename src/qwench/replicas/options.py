"""What `serve run deploy.ray_serve:app key=value ...` can be told: how many replicas, and options of `qwench serve`.

Called by application.py, on the machine from which the application is deployed: it looks for files, but not into them.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any, NoReturn

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from qwench.cli.commands import serve
from qwench.cli.options.loading import default_model
from qwench.errors import ConfigError

OF_RAY = {
    "host": "Ray listens: `serve start --http-host`, or http_options in the config file",
    "port": "Ray listens: `serve start --http-port`, or http_options in the config file",
    "lora_dir": "an adapter must be in all replicas, those that are started later as well: give it with `lora`",
}


class ReplicaOptions(BaseModel):
    """model: of which each replica has one; default: the model that comes with a clone. replicas: how many; with
    max_replicas as many as are needed, from min_replicas on. target_ongoing_requests: how many requests a replica has,
    running and waiting, before Ray starts another. num_cpus: processors of each, which its threads use unless `threads`
    says otherwise. ingress_replicas: processes that read requests and pass them on.

    All other fields are options of `qwench serve`, with underscores: max_seq_len=4096, api_key_file=keys.txt,
    tensor_parallel_size=2, strict=true. One that may be given several times is a list in a config file.
    """

    model_config = ConfigDict(extra="allow")

    model: str | list[str] = Field(default_factory=default_model)
    replicas: int = Field(1, ge=1, validation_alias=AliasChoices("replicas", "num_replicas"))
    min_replicas: int = Field(1, ge=0)
    max_replicas: int | None = Field(None, ge=1)
    target_ongoing_requests: float = Field(32.0, gt=0)
    num_cpus: float = Field(1.0, gt=0)
    ingress_replicas: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _check(self) -> ReplicaOptions:
        if self.max_replicas is not None and self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas is {self.max_replicas}, below min_replicas, {self.min_replicas}")
        return self

    def serve_options(self) -> Namespace:
        """As `qwench serve` reads them, with paths that hold in any folder. Raises ConfigError."""
        given: dict[str, Any] = {"threads": max(int(self.num_cpus), 1), **(self.model_extra or {})}
        for name in OF_RAY.keys() & given:
            raise ConfigError(f"{name} can't be given: {OF_RAY[name]}")
        parser = _Parser(prog="deploy.ray_serve:app", add_help=False, allow_abbrev=False)
        serve.add_arguments(parser)
        models = [self.model] if isinstance(self.model, str) else self.model
        options = parser.parse_args([*_arguments(given), "--", *map(_absolute, models)])
        for name, value in vars(options).items():
            if isinstance(value, Path):
                setattr(options, name, value.expanduser().absolute())
        options.draft = options.draft and _absolute(options.draft)
        return options


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def _absolute(model: str) -> str:
    """MODEL or NAME=MODEL; what is no path here is a hub's id, or a path of other machines."""
    if (path := Path(model).expanduser()).exists():
        return str(path.absolute())
    name, equals, model = model.partition("=")
    return f"{name}={_absolute(model)}" if equals else name


def _arguments(given: dict[str, Any]) -> list[str]:
    """Of a command line. "true" and "false" are what key=value has for options without a value."""
    arguments = []
    for name, value in given.items():
        option = f"--{name.replace('_', '-')}"
        for one in value if isinstance(value, list) else [value]:
            if str(one).lower() == "true":
                arguments.append(option)
            elif str(one).lower() != "false":
                arguments.append(f"{option}={one}")
    return arguments
