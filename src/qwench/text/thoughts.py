"""The thought before an answer, as text: which models have one, where a prompt leaves off, and the two kept apart.

`ThoughtSplitter` parts the streamed text of an answer. runtime/thoughts.py does the same with tokens, for the sampler.
Called by generation.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qwench.runtime.sampling.sampling_params import SamplingParams
from qwench.runtime.thoughts import CLOSE, GAP, OPEN, Place, Thoughts
from qwench.text.detokenizer import possible_start
from qwench.text.tokenizer import Tokenizer, special_ids

_BLANKS = " \t\r\n"


@dataclass(frozen=True)
class ThoughtText:
    """A further piece of the thought before an answer."""

    text: str


def has_thoughts(tokenizer: Tokenizer) -> bool:
    """Whether the model was made to think before it answers: its chat template knows the tags of a thought."""
    template = tokenizer.chat_template
    sources = template.values() if isinstance(template, dict) else (template or "",)
    return any(tag in source for source in sources for tag in (OPEN, CLOSE))


def tag_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """The tags, where they are tokens: they stay in the text even if they are special ones."""
    return frozenset(special_ids(tokenizer, (OPEN, CLOSE)))


def thoughts_after(tokenizer: Tokenizer, prompt_token_ids: Sequence[int], params: SamplingParams) -> Thoughts:
    """Of the answers to a prompt: their thought was opened by it, even closed, or they may open one."""
    opened, closed = (text.rfind(tag) for text in [_last_turn(tokenizer, prompt_token_ids)] for tag in (OPEN, CLOSE))
    place: Place = "inside" if opened > closed else "after" if closed >= 0 else "before"

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    return Thoughts(place, params.max_thinking_tokens, tokenizer.token_bytes, encode)


def _last_turn(tokenizer: Tokenizer, token_ids: Sequence[int]) -> str:
    """What follows the last token that marks a turn: what the template put before the answer, and what a caller had it
    begin with."""
    turns = set(tokenizer.added_ids()) - tag_ids(tokenizer)
    start = next((i + 1 for i in range(len(token_ids) - 1, -1, -1) if int(token_ids[i]) in turns), 0)
    return tokenizer.decode([int(token) for token in token_ids[start:]], skip_special_tokens=False)


class ThoughtSplitter:
    """Parts the text of one answer. What `push` and `flush` return is the same in sum, however the text was cut.

    The line breaks inside the tags and two behind them belong to neither.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self._held = ""  # may be the beginning of a tag, or line breaks before one
        self._is_blank = True  # nothing of the thought was shown
        self._gap = GAP if place != "after" else ""  # that is left to be swallowed

    def push(self, text: str) -> tuple[str, str]:
        """The thought and the answer that can be shown now."""
        thought = ""
        if self.place == "before":
            text = self._read_before(text)
        if self.place == "inside":
            thought, text = self._read_thought(text)
        return thought, self._read_answer(text) if self.place == "after" else ""

    def flush(self) -> tuple[str, str]:
        """What was held back, when the answer ends."""
        held, self._held = self._held, ""
        return (held, "") if self.place == "inside" else ("", held)

    def _read_before(self, text: str) -> str:
        text, self._held = self._held + text, ""
        tag = text.lstrip(_BLANKS)
        if tag.startswith(OPEN):
            self.place = "inside"
            return tag[len(OPEN) :]
        if OPEN.startswith(tag):
            self._held = text
            return ""
        self.place, self._gap = "after", ""
        return text

    def _read_thought(self, text: str) -> tuple[str, str]:
        """The thought, and what comes after it."""
        text, self._held = self._held + text, ""
        if self._is_blank:
            text = text.lstrip("\n")
        thought, tag, after = text.partition(CLOSE)
        if tag:
            self.place = "after"
            return thought.rstrip("\n"), after
        shown = thought[: len(thought) - possible_start(thought, (CLOSE,))].rstrip("\n")
        self._held = thought[len(shown) :]
        self._is_blank = self._is_blank and not shown
        return shown, ""

    def _read_answer(self, text: str) -> str:
        while text and self._gap and text[0] == self._gap[0]:
            text, self._gap = text[1:], self._gap[1:]
        if text:
            self._gap = ""
        return text
