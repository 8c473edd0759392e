"""What is expected of an answer's length."""

from qwench.runtime.spec_decode.answer_lengths import AnswerLengths


def test_the_shortest_that_came_as_far_counts() -> None:
    lengths = AnswerLengths()
    assert lengths.likely_left(1) == 63  # nothing is known
    assert lengths.likely_left(100) == 100
    for length in (160, 10, 40):
        lengths.observe(length)
    assert [lengths.likely_left(n) for n in (1, 9, 10, 39, 40, 159)] == [9, 1, 30, 1, 120, 1]
    assert lengths.likely_left(160) == 160


def test_answers_of_long_ago_are_forgotten() -> None:
    lengths = AnswerLengths()
    lengths.observe(10)
    for _ in range(8):
        lengths.observe(160)
    assert lengths.likely_left(1) == 159
