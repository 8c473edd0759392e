"""The default model with Qwen2.5's chat template, where tags of calls are tokens of their own if wanted; and tools."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from qwench import QwenchConfig, compile_checkpoint

TESTS = Path(__file__).parents[1]
TEMPLATE = (TESTS / "unit" / "qwen2_5_chat_template.jinja").read_text()
MESSAGES = [{"role": "user", "content": "What is the weather in Paris?"}]
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "London"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
NOW: dict[str, Any] = {"type": "function", "function": {"name": "now"}}
TAGS = ("<tool_call>", "</tool_call>")


def tool_model(folder: Path, *, has_tag_tokens: bool, are_special: bool = False) -> Path:
    """Compiled. Qwen2's own tokenizer has no tokens for the tags, Qwen2.5's has, and they aren't special there."""
    checkpoint = write_tool_checkpoint(folder / "checkpoint", has_tag_tokens, are_special)
    compile_checkpoint(checkpoint, folder / "tiny", QwenchConfig(weights="int8", batch_size=8))
    return folder / "tiny"


def write_tool_checkpoint(folder: Path, has_tag_tokens: bool, are_special: bool) -> Path:
    shutil.copytree(TESTS.parent / "models" / "qwench-tiny", folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": TEMPLATE}))
    if has_tag_tokens:
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        _add_tags(tokenizer, are_special)
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def _add_tags(tokenizer: dict[str, Any], are_special: bool) -> None:
    """In place of the two tokens that were merged last."""
    vocab, merges = tokenizer["model"]["vocab"], tokenizer["model"]["merges"]
    last = sorted(vocab, key=vocab.__getitem__)[-2:]
    tokenizer["model"]["merges"] = [merge for merge in merges if _merged(merge) not in last]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer["added_tokens"] += [
        {"id": vocab.pop(token), "content": tag, "special": are_special, **flags}
        for token, tag in zip(last, TAGS, strict=True)
    ]
    tokenizer["added_tokens"].sort(key=lambda token: token["id"])


def _merged(merge: str | list[str]) -> str:
    return "".join(merge.split(" ") if isinstance(merge, str) else merge)
