"""Reads what follows a call's opening, one JSON object or several, as long as it may hold calls of the offered tools.

By the strict rule a call is one object with a tool's name and an object of arguments, and the closing tag. The loose
one also takes what can only be meant as a call; docs/serving.md lists it. Called by tool_calls.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from qwench.text.json_object import BLANKS, Member, NotJsonError, ObjectScanner


@dataclass(frozen=True)
class CallStart:
    """A call of this tool begins."""

    name: str


@dataclass(frozen=True)
class CallArguments:
    """A further piece of the call's arguments, which are a JSON object."""

    text: str


@dataclass(frozen=True)
class CallEnd:
    """The call is over. is_whole: all arguments are there; else it broke off."""

    is_whole: bool = True


CallPart: TypeAlias = "CallStart | CallArguments | CallEnd"

_ARGUMENTS = ("arguments", "parameters")
_KEYS = frozenset(("name", "type", "id", "function", *_ARGUMENTS))  # of a call without a tag


class NotACallError(ValueError):
    """What follows the opening is no call."""


@dataclass(frozen=True)
class CallRules:
    """names: of the tools; None: any name is one. is_strict: by the strict rule. is_whole: a call is given when it is
    complete; else as soon as its name and the first brace of its arguments are there."""

    names: frozenset[str] | None
    is_strict: bool = False
    is_whole: bool = False

    def tool(self, name: str) -> str:
        """The tool that a call names. Loose: without what models put before it, as in "functions.weather"."""
        for candidate in (name,) if self.is_strict else (name, name.rpartition(".")[2]):
            if self.names is None or candidate in self.names:
                return candidate
        raise NotACallError


class CallReader:
    """closing: what ends the calls. has_tag: it's a tag; else it is doubtful unless there is nothing but calls.

    parts: those that are certain; the caller takes them out. text: all that was read.
    """

    def __init__(self, rules: CallRules, closing: str, *, has_tag: bool = True) -> None:
        self.parts: list[CallPart] = []
        self._rules, self._closing, self._has_tag = rules, closing, has_tag
        self._is_all_or_none = rules.is_strict and rules.is_whole  # the closing tag decides
        self._pieces: list[str] = []
        self._object: _CallObject | None = None
        self._num_calls, self._is_over = 0, False
        self._held: list[CallPart] = []  # of a call whose closing tag is to come
        self._gap: list[str] = []  # behind the last object
        self._partial = ""  # behind the gap: may be the beginning of the closing

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def push(self, text: str) -> str | None:
        """What comes behind the calls; None: they go on. Raises NotACallError."""
        self._pieces.append(text)
        while text and not self._is_over:
            text = self._read_gap(text) if self._object is None else self._read_object(self._object, text)
        return text if self._is_over else None

    def end(self) -> str:
        """The answer ends here. Returns what belongs to no call. Raises NotACallError."""
        last = self._object
        if last is not None:
            try:
                last.end()
            except NotACallError:
                return self._give_back(last)
            self._take(last)
            return ""
        if self._is_all_or_none or not self._num_calls:
            raise NotACallError
        return "" if self._closing.startswith(self._partial) else self._take_gap()

    def _read_gap(self, text: str) -> str:
        """Reads up to the next object. Returns what comes there."""
        text, self._partial = self._partial + text, ""
        is_strict, has_calls = self._rules.is_strict, self._num_calls > 0
        found = text.lstrip(BLANKS if is_strict else BLANKS + ("[,]}" if has_calls else "["))
        self._gap.append(text[: len(text) - len(found)])
        if found.startswith("{") and not (is_strict and has_calls):
            self._object = _CallObject(self._rules, self._has_tag)
            return found
        if has_calls and found and self._closing.startswith(found[: len(self._closing)]):
            self._is_over = len(found) >= len(self._closing)
            if not self._is_over:
                self._partial = found
                return ""
            self.parts += self._held
            return found[len(self._closing) :]
        if found:
            if self._is_all_or_none or not has_calls:
                raise NotACallError
            self._is_over = True
            return self._take_gap() + found
        return ""

    def _take_gap(self) -> str:
        """Without a brace too many."""
        gap = "".join(self._gap)
        if (brace := gap.lstrip(BLANKS)).startswith("}"):
            gap = brace.lstrip("}")
        gap += self._partial
        self._gap, self._partial = [], ""
        return gap

    def _read_object(self, current: _CallObject, text: str) -> str:
        try:
            rest = current.push(text)
        except NotACallError:
            self._is_over = True
            return self._give_back(current)
        self._take(current)
        if rest is None:
            return ""
        self._object, self._gap = None, []
        self._num_calls += 1
        self._is_over = current.is_broken
        return rest

    def _give_back(self, current: _CallObject) -> str:
        """The text from the last call on, where there was one in a tag. Raises NotACallError."""
        if not (self._num_calls and self._has_tag):
            raise NotACallError
        return self._take_gap() + current.text

    def _take(self, current: _CallObject) -> None:
        parts, current.parts = current.parts, []
        if self._is_all_or_none:
            self._held += parts
        else:
            self.parts += parts


class _CallObject:
    """An object that may be a call. parts: those that are certain. is_broken: it is a call that wasn't finished."""

    def __init__(self, rules: CallRules, has_tag: bool) -> None:
        self.parts: list[CallPart] = []
        self.is_broken = False
        self._rules, self._has_tag = rules, has_tag
        self._pieces: list[str] = []
        self._scanner = ObjectScanner(is_loose=not rules.is_strict)
        self._num_keys = 0  # that were looked at
        self._name: str | None = None
        self._arguments: Member | None = None  # those that are given out as they come
        self._num_given = 0  # of their pieces

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def push(self, text: str) -> str | None:
        """What comes behind the object; None: it goes on. Raises NotACallError."""
        self._pieces.append(text)
        try:
            end = self._scanner.push(text)
        except NotJsonError as error:
            self._look()
            self.end()
            return self._scanner.unwritten + text[error.at :]
        self._look()
        if end is None:
            return None
        if self._arguments is None:
            self._give_whole(self._call())
        return text[end:]

    def end(self) -> None:
        """The object ends here, without its brace. Raises NotACallError unless its arguments are whole, or were begun
        to be given out."""
        if self._arguments is not None:
            if not self._arguments.is_over:
                self.is_broken = True
                self.parts.append(CallEnd(is_whole=False))
            return
        members = self._scanner.members
        if self._rules.is_strict or not (members and members[-1].is_over):
            raise NotACallError
        self._give_whole(_loose_call(members, self._rules, needs_arguments=True))

    def _look(self) -> None:
        """At what is new. Raises NotACallError when it can't be a call any more."""
        members, rules = self._scanner.members, self._rules
        if rules.is_strict and rules.is_whole:
            return
        if not self._has_tag and any(member.key not in _KEYS for member in members[self._num_keys :]):
            raise NotACallError
        for member in members[self._num_keys :]:
            if not member.is_over:
                break
            self._num_keys += 1
            if member.key == "name" and self._name is None:
                self._name = rules.tool(_string(member.text))
        if rules.is_whole or not self._has_tag:
            return
        if self._arguments is None and self._name is not None:
            last = members[-1]
            if last.key == "arguments" and last.pieces[:1] == ["{"]:
                self._arguments = last
                self.parts.append(CallStart(self._name))
        self._give_new()

    def _give_new(self) -> None:
        if self._arguments is None or self._num_given == len(self._arguments.pieces):
            return
        self.parts.append(CallArguments("".join(self._arguments.pieces[self._num_given :])))
        self._num_given = len(self._arguments.pieces)
        if self._arguments.is_over:
            self.parts.append(CallEnd())

    def _give_whole(self, call: tuple[str, str]) -> None:
        name, arguments = call
        self.parts += [CallStart(name), CallArguments(arguments), CallEnd()]

    def _call(self) -> tuple[str, str]:
        members, rules = self._scanner.members, self._rules
        if not rules.is_strict:
            return _loose_call(members, rules, needs_arguments=not self._has_tag)
        last = {member.key: member.text for member in members}
        if not last.get("arguments", "").startswith("{"):
            raise NotACallError
        return rules.tool(_string(last.get("name", ""))), last["arguments"]


def _loose_call(
    members: Sequence[Member], rules: CallRules, *, needs_arguments: bool, is_inner: bool = False
) -> tuple[str, str]:
    """Name and arguments. Raises NotACallError."""
    first = {member.key: member.text for member in reversed(members)}
    if not is_inner and "name" not in first and "function" in first:
        return _loose_call(_members(first["function"]), rules, needs_arguments=needs_arguments, is_inner=True)
    name = rules.tool(_string(first.get("name", "")))
    key = next((key for key in _ARGUMENTS if key in first), None)
    if key is None:
        if needs_arguments or not _KEYS.issuperset(first):
            raise NotACallError
        return name, "{}"
    arguments = first[key]
    if arguments == "null":
        return name, "{}"
    if arguments.startswith('"'):
        arguments = _object_in(_string(arguments))
    if not arguments.startswith("{") or "description" in first or (key == "parameters" and _is_schema(arguments)):
        raise NotACallError  # a description is a tool's, not a call's
    return name, arguments


def _string(text: str) -> str:
    """The value of a JSON string."""
    if not text.startswith('"'):
        raise NotACallError
    return str(json.loads(text))


def _members(text: str) -> list[Member]:
    """Of the object that is written in `text`."""
    scanner = ObjectScanner(is_loose=True)
    try:
        is_whole = scanner.push(text) == len(text)
    except NotJsonError:
        is_whole = False
    if not is_whole:
        raise NotACallError
    return scanner.members


def _object_in(text: str) -> str:
    """As JSON, the object that a string holds; an empty one where it holds nothing."""
    text = text.strip(BLANKS) or "{}"
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise NotACallError
    members = _members(f'{{"": {text}}}')
    if len(members) != 1:
        raise NotACallError
    return members[0].text


def _is_schema(text: str) -> bool:
    """Whether it describes arguments: a model that repeats the tools it has calls none of them."""
    members = {member.key: member.text for member in _members(text)}
    return "properties" in members or members.get("type") == '"object"'
