"""The table of fields in docs/serving.md, as it follows from field_table.py: `python tests/serve/field_document.py`."""

from __future__ import annotations

import json

from qwench.serve.protocol.validation.field_table import TABLE, Neutral, Refused, Renamed, Row, Unpacked

PLACES = {
    "request": "all bodies", "answers": "chats, completions, responses", "conversation": "chats, responses, /tokenize",
    "chat": "chats", "tokens": "/tokenize", "message": "messages", "part": "parts of a content",
    "call": "calls of a message", "tool": "tools", "function": "functions of tools", "item": "items of responses",
    "messages": "/v1/messages", "turn": "turns of /v1/messages", "messages tool": "tools of /v1/messages",
    "ollama": "/api/chat, /api/generate", "ollama model": "/api/show, /api/pull", "ollama embed": "/api/embed",
    "format": "forms of an answer", "verbosity": "`text` of responses", "reasoning": "`reasoning`",
    "stream_options": "`stream_options`",
}  # fmt: skip


def table() -> str:
    rows = [f"| {PLACES.get(row.place, row.place)} | {_names(row)} | {_becomes(row)} |" for row in TABLE]
    return "\n".join(["| in | fields | what becomes of them |", "|---|---|---|", *rows])


def _names(row: Row) -> str:
    return ", ".join(f"`{name}`" for name in row.names.split())


def _becomes(row: Row) -> str:
    rule = row.rule
    if isinstance(rule, Renamed):
        how = (rule.convert.__doc__ or "").split("\n\n")[0]
        return f"`{rule.to}`" + (f": {' '.join(how.split()).rstrip('.')}" if how else "")
    if isinstance(rule, Neutral):
        return f"nothing at {_values(rule)}; else ignored"
    if isinstance(rule, Refused):
        return f"refused{f' but for {_values(rule.but)}' if rule.but.values else ''}: {rule.why}"
    return "its fields count as the request's own" if isinstance(rule, Unpacked) else "nothing"


def _values(neutral: Neutral) -> str:
    return " or ".join(f"`{json.dumps(value)}`" for value in neutral.values)


if __name__ == "__main__":
    print(table())
