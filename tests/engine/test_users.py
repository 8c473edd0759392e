"""Users who ask all at once: who asks what when, the figures that follow, and the determinism test, which must fail
when logits depend on the slot."""

from __future__ import annotations

import numpy as np
import pytest
from engine_models import HistoryExecutor, history_engine, largest_of_groups, load_model

from qwench.errors import ConfigError
from qwench.evaluate.determinism import check_determinism
from qwench.evaluate.user_figures import figures
from qwench.evaluate.users import Answer, Plan, Recording, Step, run_users
from qwench.runtime.sampling.sampling_params import SamplingParams
from qwench.targets.target import Float32, StepBatch

PROMPTS = [[(7 * i + j) % 50 for j in range(10 + 5 * i)] for i in range(5)]


def alone(prompt: list[int], num_tokens: int, stops: tuple[int, ...] = ()) -> list[int]:
    """The greedy answer when nobody else asks."""
    engine = history_engine(max_num_seqs=1)
    engine.add_request(prompt, SamplingParams(max_tokens=num_tokens, temperature=0, stop_token_ids=stops))
    tokens = []
    while engine.has_unfinished():
        tokens += [output.token_id for output in engine.step()]
    return tokens


@pytest.mark.parametrize("stops", [(), tuple(range(0, 50, 7))], ids=["to the end", "of differing length"])
def test_every_question_gets_its_own_answer(stops: tuple[int, ...]) -> None:
    plan = Plan(PROMPTS, num_users=4, num_batches=3, num_iterations=20, stop_token_ids=stops)
    recording = run_users(history_engine(enable_prefix_caching=False), plan)
    asked = [(answer.batch, answer.user, answer.prompt) for answer in recording.answers]
    assert asked == [(batch, user, (user + batch) % 5) for batch in range(3) for user in range(4)]
    for answer in recording.answers:
        assert answer.token_ids == alone(PROMPTS[answer.prompt], 21, stops)
        assert answer.finish_reason == ("stop" if answer.token_ids[-1] in stops else "length")
    last = {user: [a for a in recording.answers if a.user == user] for user in range(4)}
    for answers in last.values():  # the next question comes in the step after the last answer
        assert [a.asked_at for a in answers] == [0, answers[0].done_at + 1, answers[1].done_at + 1]
        assert all(a.asked_at <= a.first_at <= a.done_at for a in answers)
    assert sum(step.num_decoding for step in recording.steps) == sum(len(a.token_ids) - 1 for a in recording.answers)
    read = sum(len(PROMPTS[a.prompt]) for a in recording.answers)
    assert sum(step.num_prompt_tokens for step in recording.steps) == read


def test_users_join_while_others_go_on() -> None:
    """Continuous batching: prompts are read in steps in which other users get their next tokens."""
    plan = Plan(PROMPTS, 4, 3, 20, tuple(range(0, 50, 7)))
    steps = run_users(history_engine(enable_prefix_caching=False), plan).steps
    assert any(step.num_prompt_tokens and step.num_decoding for step in steps)


def test_figures_are_what_the_clock_says() -> None:
    plan = Plan([[1] * 30, [2] * 50], num_users=2, num_batches=2, num_iterations=2)
    steps = [Step(1.0, 64, 0), Step(2.0, 16, 1), Step(0.5, 0, 2), Step(0.25, 0, 1), Step(4.0, 50, 0), Step(0.5, 0, 1)]
    answers = [
        Answer(0, 0, 0, 0, "a", 0, 2, [1, 2, 3], "length"),
        Answer(1, 0, 1, 0, "b", 1, 3, [1, 2, 3], "length"),
        Answer(0, 1, 1, 3, "c", 4, 5, [1, 2], "stop"),
    ]
    found = figures(Recording(plan, steps, answers))
    assert (found.prefill_s, found.prefill_tokens) == (3.0, 80)
    assert found.prefill_tokens_per_s == pytest.approx(80 / 3)
    assert (found.ttft_min_s, found.ttft_max_s) == (1.0, 4.25)
    assert found.ttft_s == pytest.approx((1.0 + 3.0 + 4.25) / 3)
    assert (found.iteration_s, found.tokens_per_s_per_user) == (0.5, 2.0)  # only the third has all users and no prompt
    assert found.answer_tokens_per_s == pytest.approx((2 / 2.5 + 2 / 0.75 + 1 / 0.5) / 3)
    assert (found.total_s, found.num_tokens, found.num_answers, found.num_steps) == (8.25, 8, 3, 6)
    assert found.total_tokens_per_s == pytest.approx(8 / 8.25)


def test_figures_of_answers_without_a_second_token() -> None:
    found = figures(Recording(Plan([[1]], 1, 1, 5), [Step(1.0, 1, 0)], [Answer(0, 0, 0, 0, "a", 0, 0, [1], "stop")]))
    assert found.iteration_s is found.tokens_per_s_per_user is found.answer_tokens_per_s is None


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (Plan(PROMPTS, 9, 1, 5), "batch_size 8"),
        (Plan(PROMPTS, 0, 1, 5), "num_users"),
        (Plan(PROMPTS, 1, 0, 5), "num_batches"),
        (Plan(PROMPTS, 1, 1, 0), "num_iterations"),
        (Plan(PROMPTS, 1, 1, 250), "281 tokens, more than the 256"),
        (Plan(PROMPTS, 8, 1, 200), "120 cache blocks, and memory allows 64"),
    ],
)
def test_plans_that_do_not_fit_are_refused(plan: Plan, says: str) -> None:
    engine = history_engine()
    with pytest.raises(ConfigError, match=says):
        run_users(engine, plan)
    assert engine.metrics.steps == 0
    with pytest.raises(ConfigError, match="prefill_chunk_size"):
        run_users(history_engine(max_step_tokens=3), Plan(PROMPTS, 4, 1, 5))


def test_a_failed_step_ends_the_run_and_frees_the_engine() -> None:
    engine = history_engine()
    assert isinstance(engine.executor, HistoryExecutor)
    engine.executor.fail_with = ConfigError("broken")
    with pytest.raises(ConfigError, match="broken"):
        run_users(engine, Plan(PROMPTS, 4, 1, 5))
    assert not engine.has_unfinished() and engine.scheduler.pool.num_free == 64


def determinism_plan(users: int) -> Plan:
    prompts = [[(11 * u + 3 * j) % 300 for j in range(20 + 7 * (u % 9))] for u in range(users)]
    # What ends an answer early in some and late in others, so that the company changes.
    return Plan(prompts, users, num_batches=3, num_iterations=24, stop_token_ids=tuple(range(0, 300, 40)))


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
def test_32_users_and_three_rounds_are_deterministic(weights: str) -> None:
    """Tenstorrent's determinism test, on the native target: prompts rotated over slots, and logits compared too."""
    engine = load_model(
        target="cpu", num_threads=2, weights=weights, batch_size=32, max_seq_len=128, prefill_chunk_size=64,
        enable_prefix_caching=False,
    )  # fmt: skip
    executor = engine.executor
    try:
        found = check_determinism(engine, determinism_plan(32))
        assert engine.executor is executor
    finally:
        engine.close()
    assert found.num_compared == 64 and len(found.recording.answers) == 96
    assert found.differences == []
    assert len({len(answer.token_ids) for answer in found.recording.answers}) > 3


class SlotExecutor(HistoryExecutor):
    """Its logits depend a little on the sequence's place in the batch, by `amount`."""

    amount = 0.0

    def step(
        self, batch: StepBatch, logits: Float32 | None = None, hidden: Float32 | None = None,
        maxima: Float32 | None = None,
    ) -> Float32:  # fmt: skip
        result = super().step(batch, logits, hidden, maxima)
        result[:, 7] += np.arange(len(result), dtype=np.float32) * self.amount
        if maxima is not None:
            maxima[: len(result)] = [largest_of_groups(row) for row in result]
        return result


@pytest.mark.parametrize("amount", [0.0, 1e-4, 3.0])
def test_a_dependence_on_the_slot_is_found(amount: float) -> None:
    """However small: what doesn't change a token is seen in the logits."""
    engine = history_engine(enable_prefix_caching=False)
    slotted = SlotExecutor(engine.vocab_size, engine.cache, 32)
    slotted.amount, engine.executor = amount, slotted
    found = check_determinism(engine, Plan(PROMPTS, 5, 3, 20))
    assert bool(found.differences) == bool(amount)
    for difference in found.differences:
        assert difference.same_tokens == (amount < 1)
        one, other = (
            next(a for a in found.recording.answers if (a.user, a.batch) == who)
            for who in zip(difference.users, difference.rounds)
        )
        assert one.prompt == other.prompt == difference.prompt
        assert one.token_ids[: difference.token] == other.token_ids[: difference.token]
