"""Prompt files: JSON lists of {"prompt": ..., "context"?: ..., "max_length"?: ...}, as Tenstorrent's demos read them.

`context` names a text that goes before the prompt: a file beside the prompt file, or a URL. Prompt files aren't
trusted: they can't name files outside their own folder, and nothing is downloaded unless the caller allows it. Called
by `qwench demo`.
"""

from __future__ import annotations

import hashlib
import json
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwench.errors import RequestError
from qwench.host import cache_dir
from qwench.shared_files import replace_text

SAMPLES = Path(__file__).parents[1] / "prompts"  # 32 prompts each of about 128 tokens: instruct.json, general.json
KEYS = ("prompt", "context", "max_length")
MAX_CONTEXT_BYTES = 64 << 20  # a book has one or two megabytes
FETCH_TIMEOUT_S = 60


@dataclass(frozen=True)
class UserPrompt:
    """One user's prompt, and the context before it ("" for none), already cut to `max_length`."""

    prompt: str
    context: str = ""

    def as_instruction(self) -> str:
        """What the user says to an instruct model: the context between fences, then the question."""
        return f"```{self.context}```\n\n{self.prompt}" if self.context else self.prompt

    def as_text(self) -> str:
        """What a base model continues."""
        return f"{self.context}\n\n{self.prompt}" if self.context else self.prompt


def sample_file(style: str) -> Path:
    """The prompts that come with qwench: "instruct", questions, or "general", beginnings of texts."""
    return SAMPLES / f"{style}.json"


def read_prompts(path: Path, *, fetch: bool = False) -> list[UserPrompt]:
    """The prompts of a file, in its order.

    fetch: download contexts that are URLs, once; they are kept in the cache folder. Raises RequestError, which names
    the entry that is wrong.
    """
    entries = _read_list(path)
    return [_prompt(entry, f"{path}: entry {i}", path.parent, fetch) for i, entry in enumerate(entries)]


def _read_list(path: Path) -> list[Any]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"{path} can't be read as JSON: {_reason(error)}") from None
    if not isinstance(entries, list) or not entries:
        raise RequestError(f'{path} must hold a list of objects like {{"prompt": "Hello"}}, at least one')
    return entries


def _prompt(entry: Any, where: str, folder: Path, fetch: bool) -> UserPrompt:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("prompt"), str) or not entry["prompt"]:
        raise RequestError(f"{where} must be an object with a `prompt` that is not empty")
    if unknown := sorted(set(entry) - set(KEYS)):
        raise RequestError(f"{where} has unknown keys {', '.join(unknown)}; there are: {', '.join(KEYS)}")
    context, max_length = entry.get("context"), entry.get("max_length")
    if context is not None and (not isinstance(context, str) or not context):
        raise RequestError(f"{where}: context is {context!r}; it must be the path of a text file, or a URL")
    if max_length is not None and (type(max_length) is not int or max_length < 1 or context is None):
        raise RequestError(
            f"{where}: max_length is {max_length!r}; it is the number of characters to keep of a context, from 1"
        )
    if context is None:
        return UserPrompt(entry["prompt"])
    is_url = "://" in context
    text = _download(context, where, fetch) if is_url else _read_beside(folder, context, where)
    return UserPrompt(entry["prompt"], text[:max_length])


def _read_beside(folder: Path, name: str, where: str) -> str:
    """The text of a file in the prompt file's own folder, or below it."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise RequestError(f"{where}: the context {name} lies outside {folder}; put it beside the prompt file")
    try:
        if path.stat().st_size > MAX_CONTEXT_BYTES:
            raise RequestError(f"{where}: the context {name} has more than {MAX_CONTEXT_BYTES >> 20} MiB")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{where}: the context {name} can't be read: {_reason(error)}") from None


def _download(url: str, where: str, fetch: bool) -> str:
    """The text behind a URL: from the cache, else from the network if that is allowed."""
    if not url.startswith(("http://", "https://")):
        raise RequestError(f"{where}: the context {url} must be a path, or a URL with http or https")
    kept = cache_dir() / "contexts" / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.txt"
    if kept.is_file():
        return kept.read_text(encoding="utf-8")
    if not fetch:
        raise RequestError(
            f"{where}: the context {url} is not downloaded unless you say so; allow it with --fetch, or save the text "
            "beside the prompt file and give its name"
        )
    try:
        with urllib.request.urlopen(url, timeout=FETCH_TIMEOUT_S) as answer:
            data = answer.read(MAX_CONTEXT_BYTES + 1)
        text: str = data.decode("utf-8")
    except (OSError, ValueError) as error:  # URLError is an OSError, UnicodeDecodeError a ValueError
        raise RequestError(f"{where}: the context {url} can't be downloaded: {_reason(error)}") from None
    if len(data) > MAX_CONTEXT_BYTES:
        raise RequestError(f"{where}: the context {url} has more than {MAX_CONTEXT_BYTES >> 20} MiB")
    replace_text(kept, text)
    return text


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
