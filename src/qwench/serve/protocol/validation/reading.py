"""How the objects of a body are read that have other fields than their class: by the table in field_table.py.

What is left aside is remembered for the request, and answers name it in a header; a strict server refuses it. Called by
the base class of all bodies, and by routes that find out later that something has no place here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from pydantic_core import PydanticCustomError

from qwench.serve.failures import ApiError
from qwench.serve.protocol.validation.field_table import EMPTY, NOTHING, Neutral, Refused, Renamed, Rule, Unpacked

MAX_FIELDS = 256  # of one object
MAX_STRANGE = 8192  # of one request, which take 0.7 us each to read
MAX_NAMES, MAX_NAME_LENGTH = 64, 64


class Reading:
    """What of one request has no effect. ignored: paths as in messages[].admin, each once, in their order."""

    def __init__(self, *, is_strict: bool) -> None:
        self.is_strict = is_strict
        self.num_strange = 0  # fields that the class of their object doesn't have
        self._ignored: dict[str, None] = {}

    def ignore(self, path: str) -> None:
        """Raises ApiError on a strict server."""
        path = path[:MAX_NAME_LENGTH]
        if self.is_strict:
            raise ApiError.bad_request(f"unknown field {path}", param=path.rpartition(".")[2])
        if len(self._ignored) < MAX_NAMES:
            self._ignored[path] = None

    @property
    def ignored(self) -> list[str]:
        return list(self._ignored)


_STRICTLY = Reading(is_strict=True)  # of bodies that no request brought
_current: ContextVar[Reading] = ContextVar("reading", default=_STRICTLY)


@contextlib.contextmanager
def reading(*, is_strict: bool) -> Iterator[Reading]:
    """What is read within belongs to one request."""
    token = _current.set(Reading(is_strict=is_strict))
    try:
        yield _current.get()
    finally:
        _current.reset(token)


def ignore(path: str) -> None:
    """Says of the request at hand that this field of it has no effect. Raises ApiError on a strict server."""
    _current.get().ignore(path)


def with_known_fields(
    data: dict[str, Any], known: Collection[str], rules: Mapping[str, Rule], place: str
) -> dict[str, Any]:
    """An object with fields of its class only. place: where such objects stand in a request, as in "messages[].".

    null says the same as leaving a field out. Raises PydanticCustomError and ApiError.
    """
    if len(data) > MAX_FIELDS:
        raise PydanticCustomError(
            "too_many_fields", "it has {count} fields; no more than {most} are read",
            {"count": len(data), "most": MAX_FIELDS},
        )  # fmt: skip
    kept, strange = {}, []
    for name, value in data.items():
        if name in known:
            kept[name] = value
        elif value is not None and (rule := rules.get(name)) is not NOTHING:
            strange.append((name, value, rule))
    _count(len(data) - len(kept))
    packed = [name for name, value, rule in strange if isinstance(rule, Unpacked) and isinstance(value, dict)]
    if packed:
        return with_known_fields(_unpacked(data, packed), known, rules, place)
    for name, value, rule in strange:
        _read(kept, name, value, rule, place)
    return kept


def _count(num_strange: int) -> None:
    """Raises PydanticCustomError when the request has too many fields that no class knows."""
    current = _current.get()
    current.num_strange += num_strange
    if current.num_strange > MAX_STRANGE and current is not _STRICTLY:
        raise PydanticCustomError(
            "too_many_fields", "the request has more than {most} other fields in all", {"most": MAX_STRANGE}
        )  # fmt: skip


def _unpacked(data: dict[str, Any], packed: Collection[str]) -> dict[str, Any]:
    own = {name: value for name, value in data.items() if name not in packed}
    return {name: value for outer in packed for name, value in data[outer].items() if name not in packed} | own


def _read(kept: dict[str, Any], name: str, value: Any, rule: Rule | None, place: str) -> None:
    if rule is None:
        ignore(place + name)
    elif isinstance(rule, Renamed):
        _put(kept, rule, value, place + name)
    elif isinstance(rule, Unpacked):
        if not EMPTY.holds(value):
            raise PydanticCustomError("not_unpacked", "{name} must be an object of fields", {"name": name})
    elif isinstance(rule, Neutral) and not rule.holds(value):
        ignore(place + name)
    elif isinstance(rule, Refused) and not rule.but.holds(value):
        raise PydanticCustomError("refused", "{name}: {why}", {"name": name, "why": rule.why})


def _put(kept: dict[str, Any], rule: Renamed, value: Any, path: str) -> None:
    """Under its other name, unless that has a value of its own."""
    value = rule.convert(value)
    if value is None:
        return
    outer, _, inner = rule.to.rpartition(".")
    target = kept
    if outer:
        given = kept.get(outer) or {}
        if not isinstance(given, dict):
            return  # refused for what it is
        target = kept[outer] = dict(given)
    if target.get(inner) is None:
        target[inner] = value
    elif target[inner] != value:
        ignore(path)
