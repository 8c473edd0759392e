"""Stop strings: the result depends on the text, not on how it was cut into pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwench.text.detokenizer import StopChecker


def run(pieces: list[str], stops: list[str], include: bool = False) -> tuple[list[str], str | None]:
    checker, shown = StopChecker(stops, include=include), []
    for piece in pieces:
        shown.append(checker.push(piece))
        if checker.matched is not None:
            return shown, checker.matched
    return [*shown, checker.flush()], None


def test_over_the_border_of_pieces() -> None:
    assert run(["ab", "cS", "TO", "Px"], ["STOP"]) == (["ab", "c", "", ""], "STOP")
    assert run(["ab", "cS", "TO", "Px"], ["STOP"], include=True) == (["ab", "c", "", "STOP"], "STOP")


def test_false_start_is_shown() -> None:
    assert run(["a", "ST", "ST", "OX"], ["STOP"]) == (["a", "", "ST", "STOX", ""], None)


def test_held_back_text_comes_at_the_end() -> None:
    assert run(["abc\n"], ["\n\n"]) == (["abc", "\n"], None)


def test_no_stops_hold_nothing() -> None:
    assert run(["a", "b"], []) == (["a", "b", ""], None)


@pytest.mark.parametrize("pieces", [["abcd"], ["a", "b", "c", "d"], ["ab", "cd"]])
def test_the_first_complete_match_wins(pieces: list[str]) -> None:
    assert run(pieces, ["abcd", "bc"])[1] == "bc"
    assert run(pieces, ["bc", "abc"])[1] == "abc"


def reference(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """By definition: the shortest beginning that ends with a stop string, the longest such."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


@given(
    pieces=st.lists(st.text("abc", max_size=4), max_size=12),  # c begins no stop string
    stops=st.lists(st.text("ab", min_size=1, max_size=5), max_size=3),
    include=st.booleans(),
)
def test_any_cut(pieces: list[str], stops: list[str], include: bool) -> None:
    shown, matched = run(pieces, stops, include)
    assert ("".join(shown), matched) == reference("".join(pieces), stops, include)
