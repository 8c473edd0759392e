"""What of a JSON schema a grammar can't hold although the library doesn't know it, and a walk over a schema's parts.

Called by matcher.py for schemas, and by text/tool_grammar.py for those of tools' arguments.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

_BY_NAME = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependentRequired"}
_VALUES = {"enum", "const", "default", "examples"}  # they hold no schemas
_LOOK_AROUND = re.compile(r"\(\?<?[=!]|\\[1-9]")  # and references back: what no automaton follows


def changed(schema: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """A schema with `change` made to each of its parts that is a schema, itself the last. Names of properties are no
    keywords, whatever they are."""
    if isinstance(schema, list):
        return [changed(part, change) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    parts: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword in _BY_NAME and isinstance(value, Mapping):
            parts[keyword] = {name: changed(part, change) for name, part in value.items()}
        else:
            parts[keyword] = value if keyword in _VALUES else changed(value, change)
    return change(parts)


def holdable(schema: Any) -> tuple[Any, list[str]]:
    """The schema without what would make a grammar of it impossible or wrong, and the names of these keywords."""
    left_aside: list[str] = []

    def change(part: dict[str, Any]) -> dict[str, Any]:
        pattern = part.get("pattern")
        if isinstance(pattern, str) and _LOOK_AROUND.search(pattern):
            left_aside.append("pattern")
            part = {name: value for name, value in part.items() if name != "pattern"}
        if (sure := countable(part)) is not None:
            left_aside.append("minProperties")
            part["minProperties"] = sure
        return part

    return changed(schema, change), left_aside


def countable(part: Mapping[str, Any]) -> int | None:
    """The highest minProperties that can be counted, where a schema has a higher one: the library counts a property
    that an object has twice, under a name that the schema leaves to the model, as two."""
    least, required = part.get("minProperties"), part.get("required", ())
    leaves_names = part.get("additionalProperties") is not False or "patternProperties" in part
    sure = len(required) + 1 if isinstance(required, list | tuple) else 1
    return sure if isinstance(least, int) and leaves_names and least > sure else None
