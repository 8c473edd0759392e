"""The thought before an answer, token by token: where it ends, and how it is ended when its tokens are used up.

A model that reasons writes <think>...</think> and then its answer; some chat templates open the thought themselves. The
answer's grammar begins behind it. A thought ends by its own closing tag; where it must end now, the tag's tokens are
put in place of those that the model would have chosen, one a step, so that they are computed like any others.

Made for each sample by the engine, asked by the sampler. Tags are found in bytes: they may be tokens or plain text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

OPEN, CLOSE = "<think>", "</think>"
GAP = "\n\n"  # models write it between a thought and the answer
Place = Literal["before", "inside", "after"]  # a thought may come, is open, or is over


@dataclass(frozen=True)
class Thoughts:
    """place: where an answer begins. max_tokens: of its thought; None: any number. The functions: the tokenizer's."""

    place: Place
    max_tokens: int | None
    token_bytes: Callable[[int], bytes]
    encode: Callable[[str], list[int]]


class Thought:
    """Follows one answer. before_grammar: a grammar waits for the thought's end, so that it must end, and leave nothing
    of the answer in the token that ends it."""

    def __init__(self, rules: Thoughts, *, before_grammar: bool) -> None:
        self._rules, self._before_grammar = rules, before_grammar
        self._place: Place = rules.place
        self._forced: deque[int] = deque()
        self._num_tokens = 0
        self._tail = b""  # of what was written: may be the beginning of a tag
        self._end_if_used_up()

    @property
    def is_over(self) -> bool:
        """Whether the answer itself goes on here: nothing is forced, and the grammar decides."""
        return self._place == "after" and not self._forced

    @property
    def may_begin(self) -> bool:
        """Whether the answer hasn't decided yet."""
        return self._place == "before"

    def forced(self) -> int | None:
        """The token that must come next, if any; it is to be pushed like the others."""
        return self._forced[0] if self._forced else None

    def begins_with(self, token: int) -> bool:
        """Whether this first token begins a thought, before a grammar: then it must be the whole tag."""
        return self._rules.token_bytes(token).strip() == OPEN.encode()

    def begin_answer(self) -> None:
        """There is no thought."""
        self._place = "after"

    def push(self, token: int, *, is_end: bool) -> int:
        """Takes the chosen token. Returns it, or the one that comes in its place. is_end: it would end the answer."""
        if self._forced:
            self._forced.popleft()
        elif self._place == "before":
            self._push_before(token)
        elif self._place == "inside":
            token = self._push_inside(token, is_end)
        return token

    def _push_before(self, token: int) -> None:
        self._tail += self._rules.token_bytes(token)
        tag = self._tail.lstrip()
        if tag.startswith(OPEN.encode()):
            self._place, self._tail = "inside", b""
            self._end_if_used_up()
        elif not OPEN.encode().startswith(tag):
            self._place = "after"

    def _push_inside(self, token: int, is_end: bool) -> int:
        if is_end and self._before_grammar:
            return self._end()
        close = CLOSE.encode()
        text = self._tail + self._rules.token_bytes(token)
        before, tag, after = text.partition(close)
        if not tag:
            self._tail = text[-len(close) :]
            self._num_tokens += 1
            self._end_if_used_up()
            return token
        self._place = "after"
        if self._before_grammar:
            gap = GAP.encode()
            if not gap.startswith(after):
                return self._write(CLOSE[max(0, len(self._tail) - len(before)) :] + GAP)
            self._forced += self._rules.encode(GAP[len(after) :])
        return token

    def _end_if_used_up(self) -> None:
        if self._place == "inside" and self._num_tokens == self._rules.max_tokens:
            self._end(is_next=False)

    def _end(self, *, is_next: bool = True) -> int:
        """The thought ends here, with a line of its own for the tag unless that is begun. Returns the first token."""
        self._place = "after"
        begun = next(size for size in range(len(CLOSE) - 1, -1, -1) if self._tail.endswith(CLOSE[:size].encode()))
        is_line_start = self._num_tokens > 0 and self._tail.endswith(b"\n")
        text = ("" if begun or is_line_start else "\n") + CLOSE[begun:] + GAP
        if is_next:
            return self._write(text)
        self._forced += self._rules.encode(text)
        return self._forced[0]

    def _write(self, text: str) -> int:
        """In place of the chosen token. Returns the first token of the text."""
        self._forced += self._rules.encode(text)
        return self._forced.popleft()
