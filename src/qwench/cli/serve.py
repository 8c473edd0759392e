"""`qwench serve`: a model behind OpenAI's HTTP API."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qwench.cli import options
from qwench.errors import ConfigError

if TYPE_CHECKING:
    from qwench.config import QwenchConfig


def add_arguments(parser: ArgumentParser) -> None:
    options.add_model(parser)
    options.add_draft(parser)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen at; default 127.0.0.1, so only this machine can connect")
    add("--port", type=int, default=8000, metavar="N", help="default 8000; 0: any free one")
    add("--name", action="append", metavar="NAME", help="what clients call the model; default: the end of MODEL")
    add("--api-key-file", type=Path, metavar="FILE", help="a key per line; without it whoever connects is served")
    add("--allowed-host", action="append", metavar="NAME", help="names that the Host header may have; default: any, "
        "but only this machine's where only it can connect")  # fmt: skip
    add("--cors-origin", action="append", metavar="URL", help="pages of this origin may use the server from a browser, "
        "such as https://chat.example.com; *: all pages; default: none but the server's own")  # fmt: skip
    add("--strict", action="store_true", help="refuse fields of requests that have no effect here, instead of naming "
        "them in the answer's head")  # fmt: skip
    add("--max-queued", type=int, default=128, metavar="N", help="answers that may wait beside those that run; further "
        "requests get status 429; default 128")  # fmt: skip
    add("--batch-size", type=int, metavar="N", help="answers that run at once, for a MODEL still to be compiled")
    add("--no-prefix-cache", action="store_true", help="compute each prompt anew")
    add("--prefix-dir", type=Path, metavar="DIR", help="prefixes, saved by `qwench prefix save`, to have in the cache")
    add("--lora", action="append", type=_named_folder, metavar="NAME=FOLDER", help="a LoRA adapter as PEFT saves it; "
        "clients ask for it as model NAME")  # fmt: skip
    add("--lora-dir", type=Path, metavar="DIR", help="where clients may load adapters from, by POST "
        "/v1/load_lora_adapter; default: nowhere")  # fmt: skip
    add("--max-body-bytes", type=int, metavar="N", help="default: 262144 and 32 per token of the context")
    add("--text-limit", type=float, default=5.0, metavar="S", help="seconds for the template and the tokens of one "
        "request; default 5")  # fmt: skip
    add("--whole-calls", action="store_true", help="stream a tool's call when it is complete, not as it is written")
    add("--strict-calls", action="store_true", help="take only what is written exactly as a call of a tool for one")
    add(
        "--drain",
        type=float,
        default=60.0,
        metavar="S",
        help="seconds that answers may go on after SIGTERM; default 60",
    )


def execute(args: Namespace) -> None:
    """Serve a model to OpenAI's clients.

    Ctrl-C and SIGTERM let the answers that are running end first.
    """
    from qwench.host import process_age_s
    from qwench.serve.processes.children import Children
    from qwench.serve.settings import ServeSettings

    folder, config = _compiled(args)
    settings = ServeSettings(
        model=folder, names=tuple(args.name or [_name(args.model)]), host=args.host, port=args.port,
        api_key_file=args.api_key_file, config=config, num_threads=args.threads,
        enable_prefix_caching=not args.no_prefix_cache, prefix_dir=args.prefix_dir, max_queued=args.max_queued,
        lora=_adapters(args.lora or ()), lora_dir=args.lora_dir, draft=args.draft,
        allowed_hosts=tuple(args.allowed_host or ()), max_body_bytes=args.max_body_bytes, drain_s=args.drain,
        text_limit_s=args.text_limit, strict_calls=args.strict_calls, whole_calls=args.whole_calls,
        is_strict=args.strict, cors_origins=tuple(args.cors_origin or ()),
    )  # fmt: skip

    def say(url: str) -> None:
        print(f"qwench: serving {settings.names[0]} at {url}, ready after {process_age_s():.1f} s", file=sys.stderr)

    children = Children.launch(settings)
    try:
        from qwench.serve.server import serve  # takes as long as a small model to load
    except ModuleNotFoundError as error:
        children.end()
        raise ConfigError(f'serving needs {error.name}, which isn\'t installed: pip install "qwench[serve]"') from None
    serve(settings, children, say)


def _named_folder(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise ArgumentTypeError(f"{text!r} is not NAME=FOLDER")
    return name, Path(folder).expanduser().absolute()


def _adapters(given: Sequence[tuple[str, Path]]) -> dict[str, Path]:
    """Raises ConfigError for a name that is given twice."""
    adapters = dict(given)
    if len(adapters) < len(given):
        raise ConfigError(f"--lora gives {', '.join(name for name, _ in given)}; names must differ")
    return adapters


def _name(model: str) -> str:
    return model.rstrip("/").rpartition("/")[2] or "model"


def _compiled(args: Namespace) -> tuple[Path, QwenchConfig]:
    """The folder of the artifact, compiled first if need be, and the options that are left for loading it."""
    from qwench.artifact import is_artifact
    from qwench.load import resolve_model

    config = options.config_of(args)
    path = Path(args.model).expanduser()
    if is_artifact(path):
        return path, config
    from qwench.cli.progress import ProgressDisplay

    with ProgressDisplay() as progress:
        artifact = resolve_model(args.model, config, progress=progress)
    return artifact.path, config.at_load()
