"""What steps cost, learned from steps of a machine that is known."""

from __future__ import annotations

import random

import pytest

from qwench.runtime.spec_decode.step_costs import StepCosts


def test_nothing_is_known_before_a_few_steps() -> None:
    costs = StepCosts()
    for _ in range(3):
        assert not costs.is_known
        costs.observe(1, 2.0)
    assert costs.is_known
    assert costs.seconds(1) == pytest.approx(2.0)
    assert costs.slope == pytest.approx(0.24)  # as is believed, until there are steps of several tokens


def test_of_the_first_steps_the_fastest_counts() -> None:
    costs = StepCosts()
    for seconds in (20.0, 1.0, 5.0):
        costs.observe(1, seconds)
    assert costs.seconds(1) == pytest.approx(1.0)
    costs.observe(1, 30.0)
    assert costs.seconds(1) < 1.06


@pytest.mark.parametrize("share", [0.03, 0.2, 1.0])
def test_a_line_through_the_steps(share: float) -> None:
    costs, rng = StepCosts(), random.Random(0)
    for _ in range(200):
        tokens = rng.choice((1, 1, 3, 5, 9))
        costs.observe(tokens, (1 + share * (tokens - 1)) * rng.uniform(0.95, 1.05))
    for tokens in (1, 4, 9):
        assert costs.seconds(tokens) == pytest.approx(1 + share * (tokens - 1), rel=0.1)
    assert costs.slope == pytest.approx(share, rel=0.25, abs=0.015)


@pytest.mark.parametrize("seed", range(4))
def test_disturbed_steps(seed: int) -> None:
    """In a tenth of the steps another process has the processor, for several times as long as a step takes."""
    costs, rng = StepCosts(), random.Random(seed)
    for number in range(400):
        tokens = rng.choice((1, 2, 3, 5, 5, 9))
        interruption = (rng.random() < 0.1) * rng.uniform(3, 12)
        costs.observe(tokens, (0.9 + 0.1 * tokens) * rng.lognormvariate(0, 0.1) + interruption)
        if number > 40:
            assert costs.seconds(1) == pytest.approx(1.0, rel=0.25)
            assert costs.slope == pytest.approx(0.1, abs=0.05)


def test_old_steps_are_forgotten() -> None:
    costs = StepCosts()
    for _ in range(100):
        costs.observe(1, 1.0)
    costs.observe(1, 1000.0)
    assert costs.seconds(1) < 1.01
    for _ in range(200):
        costs.observe(1, 0.25)
    assert costs.seconds(1) == pytest.approx(0.25, rel=0.02)


def test_a_machine_that_became_slower() -> None:
    costs = StepCosts()
    for seconds in (1.0, 5.0):
        for _ in range(100):
            costs.observe(1, seconds)
    assert costs.seconds(1) == pytest.approx(5.0, rel=0.1)


def test_what_a_further_token_costs_is_remembered() -> None:
    """Also once all steps have one token, as when a draft was given up."""
    costs = StepCosts()
    for number in range(60):
        costs.observe(1 + number % 5, 1 + 0.5 * (number % 5))
    for _ in range(300):
        costs.observe(1, 1.0)
    assert costs.slope == pytest.approx(0.5, rel=0.1)


def test_prompts_do_not_count() -> None:
    costs = StepCosts()
    costs.observe(512, 100.0)
    for _ in range(3):
        costs.observe(1, 1.0)
    assert costs.seconds(1) == pytest.approx(1.0)


def test_more_tokens_never_cost_less_than_nothing() -> None:
    costs = StepCosts()
    for _ in range(50):
        costs.observe(1, 1.2)
        costs.observe(9, 1.0)
    assert 0 <= costs.slope < 0.02 and costs.seconds(20) > 0
