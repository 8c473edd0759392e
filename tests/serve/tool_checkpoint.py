"""The default model with Qwen2.5's chat template, where tags of calls are tokens of their own if wanted; and tools.

The same as a model that thinks, whose template opens the thought as QwQ's does.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
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
THOUGHT_TAGS = ("<think>", "</think>")
PROMPT = "<|im_start|>assistant\\n' }}\n{%- endif %}"
OPENS_THOUGHT = TEMPLATE.replace(PROMPT, PROMPT.replace("assistant\\n", "assistant\\n<think>\\n"))
assert OPENS_THOUGHT != TEMPLATE


def tool_model(folder: Path, *, has_tag_tokens: bool, are_special: bool = False) -> Path:
    """Compiled. Qwen2's own tokenizer has no tokens for the tags, Qwen2.5's has, and they aren't special there."""
    return _compiled(folder, TEMPLATE, TAGS if has_tag_tokens else (), are_special)


def thinking_model(folder: Path) -> Path:
    """Compiled. All tags are tokens."""
    return _compiled(folder, OPENS_THOUGHT, (*TAGS, *THOUGHT_TAGS))


def _compiled(folder: Path, template: str, tags: Sequence[str], are_special: bool = False) -> Path:
    checkpoint = _write_checkpoint(folder / "checkpoint", template, tags, are_special)
    compile_checkpoint(checkpoint, folder / "tiny", QwenchConfig(weights="int8", batch_size=8))
    return folder / "tiny"


def _write_checkpoint(folder: Path, template: str, tags: Sequence[str], are_special: bool) -> Path:
    shutil.copytree(TESTS.parent / "models" / "qwench-tiny", folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    if tags:
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        _add_tags(tokenizer, tags, are_special)
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def _add_tags(tokenizer: dict[str, Any], tags: Sequence[str], are_special: bool) -> None:
    """In place of the tokens that were merged last."""
    vocab, merges = tokenizer["model"]["vocab"], tokenizer["model"]["merges"]
    last = sorted(vocab, key=vocab.__getitem__)[-len(tags) :]
    tokenizer["model"]["merges"] = [merge for merge in merges if _merged(merge) not in last]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer["added_tokens"] += [
        {"id": vocab.pop(token), "content": tag, "special": are_special, **flags}
        for token, tag in zip(last, tags, strict=True)
    ]
    tokenizer["added_tokens"].sort(key=lambda token: token["id"])


def _merged(merge: str | list[str]) -> str:
    return "".join(merge.split(" ") if isinstance(merge, str) else merge)
