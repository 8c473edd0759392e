"""Which draft tokens are worth a place in the next step, of prompt lookup and of a draft model.

A step computes a few more tokens in little more time, so tokens that are probably right are computed along with those
that are known; the engine takes them as far as they are what it samples. How many is decided anew in each step: as long
as the next guess raises the expected tokens per second, which depends on how often guesses were right, and on what the
draft's step and one more token in the model's step have cost so far. In a batch that is bound by arithmetic a further
token costs its full share, so there are no guesses.

Requests whose last tokens occurred before have the guesses of lookup, others those of the draft. Guesses get the
budget, the rows of logits and the blocks that the scheduler leaves over. Called by the engine.
"""

from __future__ import annotations

from qwench.runtime.request import Request
from qwench.runtime.scheduler import Scheduler
from qwench.runtime.spec_decode.acceptance import Acceptance
from qwench.runtime.spec_decode.draft_model import Ask, DraftModel, Guess
from qwench.runtime.spec_decode.following import Following
from qwench.runtime.spec_decode.step_costs import StepCosts

MOST_GUESSES = 8  # of a draft model, in one step of one request
# Cost of one more token in a step, as a share of a step of one token, for lookup, which costs nothing else. Measured on
# two cores: 0.05 to 0.08 (0.5B, all formats); set a little higher, so that draft tokens which hardly pay are left out.
_TOKEN_COST = 0.1
_LEAST_GAIN = 1.2  # of a first guess, in what it costs, before a draft that was given up is asked again
# Of the time, for guesses that aren't believed to pay, else nobody would notice when they do: because they are mostly
# wrong, soon after they were given up and then half as often after each trial; or because the steps cost too much even
# if they are all right.
_FIRST_TRIAL_SHARE, _TRIAL_SHARE, _HOPELESS_SHARE = 0.05, 0.02, 0.005
_TRIAL_STEPS = 4
_FREE_GUESSES = 2 * MOST_GUESSES  # in a step; more of them may no more than double what it computes without
_DRIFT = 0.01  # a step, of what a request without guesses is believed to accept, towards what others do
_READING_SHARE = 0.25  # of what an answer may still take, that reading its prompt with the draft may


class Speculation:
    """Adds draft tokens to the scheduler's plans, and learns from what became of them. draft: None for lookup alone."""

    def __init__(self, scheduler: Scheduler, draft: DraftModel | None = None) -> None:
        self.scheduler, self.draft, self.costs = scheduler, draft, StepCosts()
        self.acceptance = Acceptance()
        self._is_given_up = True
        self._credit_s, self._trial_share = 0.0, _FIRST_TRIAL_SHARE
        self._trial: tuple[Request, int] | None = None  # and how many more steps
        self._trial_end_s = 0.0  # of the draft's own seconds, when the trial will have taken what was saved for it

    def extend(self, plan: dict[Request, int]) -> None:
        """Adds draft tokens to requests that sample in this step, with blocks for them."""
        if self.draft is None and all(request.lookup is None for request in plan):
            return
        num_tokens = sum(plan.values())
        budget = min(self.scheduler.max_step_tokens - num_tokens, self.scheduler.rows_left)
        step = _Step(float(num_tokens), 1 + _TOKEN_COST * (num_tokens - 1))
        without: list[Request] = []
        for request, count in plan.items():
            if request.num_computed + count < request.num_tokens:
                continue
            num_drafts = self._look_up(request, step, budget)
            if num_drafts:
                plan[request] = count + num_drafts
                budget -= num_drafts
            elif self.draft is not None and count == 1 and request.num_generated:
                without.append(request)
        if without and self.draft is not None:
            self._draft(self.draft, plan, without, step.expected, min(budget, max(num_tokens, _FREE_GUESSES)))

    # --- prompt lookup ---------------------------------------------------------------------------------------------

    def _look_up(self, request: Request, step: _Step, budget: int) -> int:
        """Gives the request lookup's draft tokens, as long as each raises the expected tokens per second; returns how
        many."""
        lookup, end = request.lookup, request.num_tokens
        if lookup is None or not lookup.has_draft(end):
            return 0
        num_drafts = 0
        limit = self.scheduler.room_for_drafts(request, min(budget, request.params.prompt_lookup_num_tokens))
        for token, probability in lookup.propose(end, limit):
            if probability * step.cost <= _TOKEN_COST * step.expected or token in request.stop_tokens:
                break
            request.tokens[end + num_drafts] = token
            num_drafts += 1
            step.expected, step.cost = step.expected + probability, step.cost + _TOKEN_COST
        if num_drafts:
            self.scheduler.reserve_drafts(request, num_drafts)
            if request.following is not None:
                request.following.confidences = []  # those of a step that was interrupted
        return num_drafts

    # --- a draft model ---------------------------------------------------------------------------------------------

    def _draft(
        self, draft: DraftModel, plan: dict[Request, int], requests: list[Request], expected: float, budget: int
    ) -> None:
        if not self.costs.is_known or budget <= 0:
            return
        step = _Step(expected, self.costs.seconds(sum(plan.values())))
        wanted = self._worth_guessing(draft, requests, step, min(budget, draft.max_rows))
        asks, extra_s = {}, self._extra_s(draft, len(wanted))
        rate = self._best_rate(wanted, step, extra_s)
        for request in wanted:
            limit = self.scheduler.room_for_drafts(request, min(MOST_GUESSES, budget // len(wanted)))
            limit = min(limit, draft.max_seq_len - request.num_tokens)
            if limit > 0:
                # Reserved for the most there can be; a step that is interrupted leaves them for `withdraw_drafts`.
                self.scheduler.reserve_drafts(request, limit)
                asks[request] = self._ask(request, limit, rate, extra_s / len(wanted))
        if not asks:
            return
        least = 0.0 if self._trial is not None else self.costs.slope * rate
        for request, guesses in draft.guess(asks, self.scheduler.pool).items():
            tokens = self._worth_a_place(request, guesses, asks[request], least)
            request.tokens[request.num_tokens : request.num_tokens + len(tokens)] = tokens
            self.scheduler.keep_drafts(request, len(tokens))
            plan[request] += len(tokens)

    def _extra_s(self, draft: DraftModel, count: int) -> float:
        """Seconds of one more guess for each of so many requests: of the draft's step, and of the places in the
        model's."""
        return draft.costs.seconds(count) + count * self.costs.slope

    def _worth_guessing(self, draft: DraftModel, requests: list[Request], step: _Step, most: int) -> list[Request]:
        """Those of the requests for which a first guess pays; or one that is tried, if the time for that was saved."""
        candidates, one_s = [], self.costs.slope + draft.costs.slope
        for request in filter(draft.can_follow, requests):
            following = request.following = request.following or Following(self.acceptance.rate)
            if following.acceptance * step.cost <= one_s * step.expected:
                following.drift(self.acceptance.rate, _DRIFT)
            elif self._is_worth_reading(draft, request):
                candidates.append(request)
        candidates = candidates[:most]
        gain = sum(_acceptance(request) for request in candidates)
        least_gain = _LEAST_GAIN if self._is_given_up else 1.0
        extra_s = self._extra_s(draft, len(candidates))
        self._is_given_up = not candidates or gain * step.cost <= least_gain * extra_s * step.expected
        if self._is_given_up:
            return self._on_trial(draft, requests, step)
        self._trial, self._trial_share = None, _FIRST_TRIAL_SHARE
        return candidates

    def _is_worth_reading(self, draft: DraftModel, request: Request) -> bool:
        """Whether what the draft lacks of a request is little beside what may still come."""
        num_pending = draft.num_pending(request, self.scheduler.pool)
        left_s = (request.max_len - request.num_tokens) * self.costs.seconds(1)
        return num_pending <= MOST_GUESSES or draft.costs.seconds(num_pending) < _READING_SHARE * left_s

    def _best_rate(self, requests: list[Request], step: _Step, extra_s: float) -> float:
        """Tokens per second with so many guesses as are best, if all are as likely as those so far."""
        expected, cost = step.expected, step.cost
        acceptances = [_acceptance(request) for request in requests]
        gains = acceptances
        for _ in range(MOST_GUESSES):
            gain = sum(gains)
            if gain * cost <= extra_s * expected:
                break
            expected, cost = expected + gain, cost + extra_s
            gains = [gain * acceptance for gain, acceptance in zip(gains, acceptances)]
        return expected / cost

    def _ask(self, request: Request, limit: int, rate: float, extra_s: float) -> Ask:
        """Until the next guess isn't likely enough to bring as many tokens as its seconds do at `rate`."""
        place, guess = self.costs.slope * rate, extra_s * rate / max(_acceptance(request), 1e-3)
        return Ask(limit, self.acceptance.odds(request.params.temperature > 0), max(place, guess))

    def _worth_a_place(self, request: Request, guesses: list[Guess], ask: Ask, least: float) -> list[int]:
        """The first of the guesses, as far as all up to there are right with a probability of `least`."""
        following, is_sampled = request.following, request.params.temperature > 0
        assert following is not None
        following.confidences, tokens, odds = [], [], 1.0
        for token, confidence in guesses:
            odds *= ask.odds[confidence]
            if odds < least or token in request.stop_tokens:
                self.acceptance.pass_over(following, is_sampled, confidence)
                break
            following.confidences.append(confidence)
            tokens.append(token)
        return tokens

    # --- on trial --------------------------------------------------------------------------------------------------

    def _on_trial(self, draft: DraftModel, requests: list[Request], step: _Step) -> list[Request]:
        """At most one, the one that is tried soonest, for a few steps once all of them are paid for. A single step
        would say little: the first one finds nothing of the draft in the caches."""
        if self._trial is not None:
            request, num_left = self._trial
            if num_left and request in requests and draft.can_follow(request):
                self._trial = request, num_left - 1
                return [request]
            self._trial = None
            self._credit_s = min(0.0, self._trial_end_s - draft.seconds)  # what it took beyond that is owed
        is_hopeless = step.cost <= self._extra_s(draft, 1) * step.expected
        self._credit_s += (_HOPELESS_SHARE if is_hopeless else self._trial_share) * step.cost
        pending = {r: draft.num_pending(r, self.scheduler.pool) for r in requests if r.following is not None}
        nearest = min(pending, key=pending.__getitem__, default=None)
        if nearest is None or not draft.can_follow(nearest):
            return []
        drafting_s = draft.costs.seconds(pending[nearest]) + (_TRIAL_STEPS - 1) * draft.costs.seconds(1)
        if self._credit_s < drafting_s + _TRIAL_STEPS * self.costs.slope:
            return []
        self._credit_s, self._trial = 0.0, (nearest, _TRIAL_STEPS - 1)
        self._trial_end_s = draft.seconds + drafting_s
        self._trial_share = max(_TRIAL_SHARE, self._trial_share / 2)
        return [nearest]

    # --- what became of them ---------------------------------------------------------------------------------------

    def learn(self, request: Request, num_accepted: int, is_rejected: bool) -> bool:
        """`num_accepted` draft tokens of the step were what was sampled, and the next one was looked at and wasn't, or
        nobody looked. Returns whether they were the draft model's."""
        following = request.following
        if self.draft is None or following is None or not following.confidences:
            return False
        is_sampled = request.params.temperature > 0
        for place, confidence in enumerate(following.confidences[: num_accepted + is_rejected]):
            self.acceptance.learn(following, is_sampled, confidence, place < num_accepted)
        following.confidences = []
        if request.is_running:
            self.draft.settle(request, num_accepted, self.scheduler.pool)
        return True


class _Step:
    """What a step is expected to give, in tokens, and to cost, in seconds or in steps of one token."""

    __slots__ = ("cost", "expected")

    def __init__(self, expected: float, cost: float) -> None:
        self.expected, self.cost = expected, cost


def _acceptance(request: Request) -> float:
    assert request.following is not None
    return request.following.acceptance
