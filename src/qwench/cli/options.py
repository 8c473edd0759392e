"""Options that several commands share: their types for typer, and what becomes of them.

`load` and `sampling_params` are where strings from a shell turn into an LLM and SamplingParams.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from typer import Argument, Option

if TYPE_CHECKING:
    from qwench.config import QwenchConfig
    from qwench.llm import LLM
    from qwench.runtime.request import SamplingParams

DEFAULT_MAX_NEW_TOKENS = 512

Model: TypeAlias = Annotated[str, Argument(metavar="MODEL", help="Artifact, checkpoint folder or hub id.")]
MaxNewTokens: TypeAlias = Annotated[
    int | None, Option(help=f"Tokens of the answer; default {DEFAULT_MAX_NEW_TOKENS}, or what the context leaves.")
]
Temperature: TypeAlias = Annotated[
    float | None, Option(help="0 always takes the likeliest token. Default, as for the next two: the model's own.")
]
TopK: TypeAlias = Annotated[int | None, Option(help="Sample among the k likeliest tokens; 0 for all.")]
TopP: TypeAlias = Annotated[float | None, Option(help="Sample among the likeliest that together reach p; 1 for all.")]
Seed: TypeAlias = Annotated[int | None, Option(help="Same seed, same answer.")]
Threads: TypeAlias = Annotated[int | None, Option(help="Default: the processors this process may use.")]
Weights: TypeAlias = Annotated[
    str | None, Option(help="bf16, int8 or int4, for a MODEL that is still to be compiled; default bf16.")
]
Target: TypeAlias = Annotated[str | None, Option(help="Run with other kernels, e.g. cpu-generic.")]
Memory: TypeAlias = Annotated[str | None, Option(metavar="SIZE", help="What the model may use at most, e.g. 8GiB.")]


def load_config(weights: str | None, target: str | None, memory: str | None) -> QwenchConfig:
    """The options that matter when a model is loaded. Raises ConfigError."""
    from qwench.cli.sizes import parse_size
    from qwench.config import QwenchConfig

    size = None if memory is None else parse_size(memory, "--memory")
    return QwenchConfig(weights=weights, target=target, memory=size)


def load(model: str, config: QwenchConfig, threads: int | None) -> LLM:
    """The model, compiled first if need be, with progress on stderr."""
    from qwench.cli.progress import ProgressDisplay
    from qwench.llm import LLM

    with ProgressDisplay() as progress:
        return LLM(model, config=config, num_threads=threads, on_progress=progress)


def sampling_params(
    llm: LLM, *, temperature: float | None, top_k: int | None, top_p: float | None, seed: int | None
) -> SamplingParams:
    """What the model's generation_config.json says, and over it what was asked for. Raises RequestError."""
    asked: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    return dataclasses.replace(llm.defaults.params, **{k: v for k, v in asked.items() if v is not None})
