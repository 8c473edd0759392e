"""The table of fields that clients send: every row is of use, and what it says is done."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("fastapi", reason='the server needs pip install "qwench[serve]"')

from qwench.serve.anthropic import routes as anthropic  # noqa: F401  for all the classes of bodies
from qwench.serve.failures import ApiError
from qwench.serve.ollama import routes as ollama  # noqa: F401
from qwench.serve.openai import routes  # noqa: F401
from qwench.serve.protocol.validation.body import Body
from qwench.serve.protocol.validation.field_table import EMPTY, OFF, ON, TABLE, Neutral, Renamed
from qwench.serve.protocol.validation.reading import ignore, reading, with_known_fields

IN_NO_CLASS = {"part"}  # contents are read by hand
RULES: dict[str, Any] = {
    "old": Renamed("new"), "inner": Renamed("outer.inner"), "off": OFF, "one": Neutral((1,)), "empty": EMPTY, "on": ON,
}  # fmt: skip


def classes(base: type[Body] = Body) -> list[type[Body]]:
    return [base, *(each for below in base.__subclasses__() for each in classes(below))]


def test_every_row_is_of_use() -> None:
    """Some class has the place and not the field, and the field that a row renames to is there."""
    for row in TABLE:
        here = [body for body in classes() if row.place in body.places]
        assert here or row.place in IN_NO_CLASS, row
        for name in row.names.split():
            in_force = [body for body in here if name not in body._names and body._rules[name] is row.rule]
            assert not here or in_force, name
            if isinstance(row.rule, Renamed):
                outer = row.rule.to.partition(".")[0]
                assert all(outer in body._names for body in in_force if "/" not in row.place), (row, name)


def test_no_field_stands_twice_in_a_place() -> None:
    seen = [(row.place, name) for row in TABLE for name in row.names.split()]
    assert len(seen) == len(set(seen))


@pytest.mark.parametrize(
    ("data", "kept", "ignored"),
    [
        ({"known": 1}, {"known": 1}, []), ({"x": 1, "y": None}, {}, ["here.x"]), ({"old": 1}, {"new": 1}, []),
        ({"old": 1, "new": 2}, {"new": 2}, ["here.old"]), ({"old": 1, "new": 1}, {"new": 1}, []),
        ({"old": 1, "new": None}, {"new": 1}, []), ({"inner": 1}, {"outer": {"inner": 1}}, []),
        ({"inner": 1, "outer": {"x": 2}}, {"outer": {"x": 2, "inner": 1}}, []),
        ({"inner": 1, "outer": 5}, {"outer": 5}, []),
        ({"off": False}, {}, []), ({"off": 0}, {}, ["here.off"]), ({"off": True}, {}, ["here.off"]),
        ({"one": 1.0}, {}, []), ({"one": True}, {}, ["here.one"]), ({"empty": []}, {}, []), ({"empty": ""}, {}, []),
        ({"empty": 0}, {}, ["here.empty"]), ({"on": True}, {}, []),
    ],
)  # fmt: skip
def test_what_a_rule_does(data: dict[str, Any], kept: dict[str, Any], ignored: list[str]) -> None:
    before = {name: dict(value) if isinstance(value, dict) else value for name, value in data.items()}
    with reading(is_strict=False) as what_is_read:
        assert with_known_fields(data, {"known", "new", "outer"}, RULES, "here.") == kept
    assert what_is_read.ignored == ignored and data == before
    with reading(is_strict=True):
        if ignored:
            with pytest.raises(ApiError, match="unknown field here"):
                with_known_fields(data, {"known", "new", "outer"}, RULES, "here.")
        else:
            assert with_known_fields(data, {"known", "new", "outer"}, RULES, "here.") == kept


def test_a_request_remembers_few_and_short_names() -> None:
    with reading(is_strict=False) as what_is_read:
        for i in range(1000):
            ignore(f"{i}{'x' * 1000}")
    assert len(what_is_read.ignored) == 64 and max(map(len, what_is_read.ignored)) == 64
    with pytest.raises(ApiError):  # outside of requests nothing is left aside
        ignore("x")
