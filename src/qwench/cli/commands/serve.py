"""`qwench serve`: a model, or several, behind OpenAI's HTTP API."""

from __future__ import annotations

import contextlib
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from qwench.cli.options.loading import WEIGHTS_HELP, add_draft, add_loading
from qwench.errors import ConfigError

if TYPE_CHECKING:
    from qwench.serve.settings import ServeSettings

SERVER_MODULES = ("fastapi", "httptools", "prometheus_client", "pydantic", "uvicorn")  # of the extra `serve`


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="artifact, checkpoint folder, .gguf file or hub id; "
        "NAME=MODEL says what clients call it. Of several, those that fit into memory together are loaded at once, "
        "others when they are asked for")  # fmt: skip
    add("--weights", metavar="KIND", help=WEIGHTS_HELP)
    add_loading(parser)
    add_draft(parser)
    add("--keep-alive", type=_duration, metavar="TIME", help="how long a model stays loaded that nobody uses, "
        "such as 5m, unless requests say otherwise; default: until another needs its memory")  # fmt: skip
    add("--load-timeout", type=float, default=300.0, metavar="S", help="seconds that a request waits for its model "
        "to be loaded; default 300")  # fmt: skip
    _add_serving(parser)


def _add_serving(parser: ArgumentParser) -> None:
    """Whom to serve, and with what."""
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen at; default 127.0.0.1, so only this machine can connect")
    add("--port", type=int, default=8000, metavar="N", help="default 8000; 0: any free one")
    add("--name", action="append", metavar="NAME", help="what clients call a single model; default: the end of MODEL")
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
    add("--lora", action="append", type=_named_folder, metavar="[MODEL/]NAME=FOLDER", help="a LoRA adapter as PEFT "
        "saves it; clients ask for it as model NAME. Of several models it is the named one's, or the only one's "
        "that it fits")  # fmt: skip
    add("--lora-dir", type=Path, metavar="DIR", help="where clients may load adapters from, by POST "
        "/v1/load_lora_adapter; default: nowhere")  # fmt: skip
    add("--max-body-bytes", type=int, metavar="N", help="default: 262144 and 32 per token of the context")
    add("--text-limit", type=float, default=5.0, metavar="S", help="seconds for the template and the tokens of one "
        "request; default 5")  # fmt: skip
    add("--whole-calls", action="store_true", help="stream a tool's call when it is complete, not as it is written")
    add("--strict-calls", action="store_true", help="take only what is written exactly as a call of a tool for one")
    add("--drain", type=float, default=60.0, metavar="S", help="seconds that answers may go on after SIGTERM; "
        "default 60")  # fmt: skip


def execute(args: Namespace) -> None:
    """Serve a model, or several, to OpenAI's clients.

    Ctrl-C and SIGTERM let the answers that are running end first.
    """
    from qwench.host import process_age_s
    from qwench.serve.processes.children import Children

    _check_installed()
    settings = settings_of(args)

    def say(url: str) -> None:
        names = ", ".join(model.names[0] for model in settings.models)
        with contextlib.suppress(OSError):  # a full disk under the log is no reason not to serve
            print(f"qwench: serving {names} at {url}, ready after {process_age_s():.1f} s", file=sys.stderr)

    children = Children.launch(settings)
    from qwench.serve.server import serve  # takes as long as a small model to load

    serve(settings, children, say)


def _check_installed() -> None:
    """Before a model is compiled for minutes. Raises ConfigError."""
    missing = [name for name in SERVER_MODULES if find_spec(name) is None]
    if missing:
        raise ConfigError(f'serving needs {", ".join(missing)}; to install what it needs: pip install "qwench[serve]"')


def settings_of(args: Namespace) -> ServeSettings:
    """The options as the server takes them, with models that are compiled first if need be. Raises QwenchError."""
    from qwench.cli.options.served_models import models_of
    from qwench.serve.settings import ServeSettings

    models, memory = models_of(args)
    return ServeSettings(
        models=models, host=args.host, port=args.port, api_key_file=args.api_key_file, num_threads=args.threads,
        enable_prefix_caching=not args.no_prefix_cache, max_queued=args.max_queued, lora_dir=args.lora_dir,
        memory=memory, keep_alive_s=args.keep_alive, load_timeout_s=args.load_timeout,
        allowed_hosts=tuple(args.allowed_host or ()), max_body_bytes=args.max_body_bytes, drain_s=args.drain,
        text_limit_s=args.text_limit, strict_calls=args.strict_calls, whole_calls=args.whole_calls,
        is_strict=args.strict, cors_origins=tuple(args.cors_origin or ()),
    )  # fmt: skip


def _duration(text: str) -> float:
    from qwench.serve.models.keep_alive import keep_alive_s

    try:
        return keep_alive_s(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def _named_folder(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise ArgumentTypeError(f"{text!r} is not NAME=FOLDER")
    return name, Path(folder).expanduser().absolute()
