"""`qwench prefix`: keys and values of a prompt's beginning, kept in a file for `qwench serve --prefix-dir`."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from qwench.cli.options.loading import add_model, load_llm
from qwench.errors import ConfigError


def add_arguments(parser: ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    saver = actions.add_parser("save", help="compute a prefix and write it to FILE", allow_abbrev=False)
    saver.set_defaults(action=_save)
    add_model(saver)
    add = saver.add_argument
    add("file", type=Path, metavar="FILE", help="where to, such as prefixes/support.prefix; replaced if it's there")
    add("-p", "--prompt", metavar="TEXT", help="the text that prompts begin with")
    add("-f", "--prompt-file", type=Path, metavar="TEXT_FILE", help="the same from a file")
    add("--system", action="store_true", help="it is the system message of chats, not the plain beginning of a prompt")
    lister = actions.add_parser("list", help="what the prefixes in DIR are of", allow_abbrev=False)
    lister.set_defaults(action=_list)
    lister.add_argument("folder", type=Path, metavar="DIR")


def execute(args: Namespace) -> None:
    """Keep the beginning of prompts on disk, ready for a server to start with.

    A prefix is a file, whose name is up to you; remove the file and it's gone.
    """
    args.action(args)


def _save(args: Namespace) -> None:
    from qwench.runtime.prefix_file import SUFFIX

    if args.file.suffix != SUFFIX:
        raise ConfigError(f"FILE is {args.file}; its name must end in {SUFFIX}, as serve --prefix-dir looks for it")
    text = _text(args)
    with load_llm(args) as llm:
        if args.system:
            from qwench.text.chat import render_chat

            if llm.tokenizer is None:
                raise ConfigError("--system needs a chat template, and this model has no tokenizer files")
            message = {"role": "system", "content": text}
            rendered = render_chat(llm.tokenizer, [message], add_generation_prompt=False)
            ids = llm.tokenizer.encode(rendered, add_special_tokens=False)
        else:
            ids = llm.text_engine.encode(text)
        kept = llm.save_prefix(ids, args.file)
    print(f"kept {kept} of {len(ids)} tokens, in {args.file}; only whole blocks of the cache can be", file=sys.stderr)


def _text(args: Namespace) -> str:
    """Raises ConfigError unless there is exactly one text that can be read."""
    if (args.prompt is None) == (args.prompt_file is None):
        raise ConfigError("give the text as either --prompt or --prompt-file")
    if args.prompt is not None:
        return str(args.prompt)
    try:
        return str(args.prompt_file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{args.prompt_file} can't be read as text: {error}") from None


def _list(args: Namespace) -> None:
    from qwench.cli.terminal.table import print_table
    from qwench.host import format_bytes
    from qwench.runtime.prefix_file import SUFFIX, SavedPrefix

    if not args.folder.is_dir():
        raise ConfigError(f"{args.folder} is not a folder")
    rows = []
    for path in sorted(args.folder.glob(f"*{SUFFIX}")):
        saved = SavedPrefix.read(path)
        rows.append((path.stem, str(len(saved.token_ids)), format_bytes(path.stat().st_size), saved.model[:12]))
    print_table(("name", "tokens", "size", "model"), rows, right=("tokens", "size"))
