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

from collections.abc import Iterable

from qwench.runtime.draft_model import MARGINS, DraftModel, Guess
from qwench.runtime.following import Following
from qwench.runtime.request import Request
from qwench.runtime.scheduler import Scheduler
from qwench.runtime.step_costs import StepCosts

MOST_GUESSES = 8  # of a draft model, in one step of one request
# Cost of one more token in a step, as a share of a step of one token, for lookup, which costs nothing else. Measured on
# two cores: 0.05 to 0.08 (0.5B, all formats); set a little higher, so that draft tokens which hardly pay are left out.
_TOKEN_COST = 0.1
# Of a draft that hasn't guessed yet: how often it is right, by confidence.
_FIRST_ODDS = (0.3, 0.4, 0.45, 0.55, 0.6, 0.7, 0.8, 0.9, 0.95)
_FIRST_ACCEPTANCE = 0.7
_SLOWEST_RATE = 0.02
_LEAST_GAIN = 1.1  # of a first guess, in what it costs: what is known of costs is never exact
# Of the time, for guesses that aren't believed to pay, else nobody would notice when they do: because they are mostly
# wrong, or because the steps cost too much even if they are all right.
_TRIAL_SHARE, _HOPELESS_SHARE = 0.02, 0.005
_PASSED_OVER, _FORGOTTEN = 0.1, 0.002
_DRIFT = 0.01  # a step, of what a request without guesses is believed to accept, towards what others do
_READING_SHARE = 0.25  # of what an answer may still take, that reading its prompt with the draft may


class Speculation:
    """Adds draft tokens to the scheduler's plans, and learns from what became of them. draft: None for lookup alone."""

    def __init__(self, scheduler: Scheduler, draft: DraftModel | None = None) -> None:
        self.scheduler, self.draft, self.costs = scheduler, draft, StepCosts()
        self.acceptance = _FIRST_ACCEPTANCE
        self._num_learned = 0
        # [greedy, sampled][confidence]
        self._odds = [list(_FIRST_ODDS), list(_FIRST_ODDS)]
        assert len(_FIRST_ODDS) == len(MARGINS) + 1
        self._credit_s = 0.0

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
            self._draft(self.draft, plan, without, step.expected, budget)

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
        if not wanted:
            return
        limits = {}
        for request in wanted:
            limit = self.scheduler.room_for_drafts(request, min(MOST_GUESSES, budget // len(wanted)))
            limit = min(limit, draft.max_seq_len - request.num_tokens)
            if limit > 0:
                # Reserved for the most there can be; a step that is interrupted leaves them for `withdraw_drafts`.
                self.scheduler.reserve_drafts(request, limit)
                limits[request] = limit
        for request, tokens in self._guess(draft, limits, step).items():
            request.tokens[request.num_tokens : request.num_tokens + len(tokens)] = tokens
            self.scheduler.keep_drafts(request, len(tokens))
            plan[request] += len(tokens)

    def _worth_guessing(self, draft: DraftModel, requests: list[Request], step: _Step, most: int) -> list[Request]:
        """Those of the requests for which a first guess pays; or one that is tried, if the time for that was saved."""
        candidates, one_s = [], self.costs.slope + draft.costs.slope
        for request in filter(draft.can_follow, requests):
            following = request.following = request.following or Following(self.acceptance)
            if following.acceptance * step.cost <= one_s * step.expected:
                following.drift(self.acceptance, _DRIFT)
            elif self._is_worth_reading(draft, request):
                candidates.append(request)
        candidates = candidates[:most]
        gain = sum(request.following.acceptance for request in candidates if request.following)
        count = len(candidates)
        extra_s = draft.costs.seconds(count) + count * self.costs.slope
        if count and gain * step.cost > _LEAST_GAIN * extra_s * step.expected:
            return candidates
        return self._on_trial(draft, requests, step)

    def _is_worth_reading(self, draft: DraftModel, request: Request) -> bool:
        """Whether what the draft lacks of a request is little beside what may still come."""
        num_pending = draft.num_pending(request, self.scheduler.pool)
        left_s = (request.max_len - request.num_tokens) * self.costs.seconds(1)
        return num_pending <= MOST_GUESSES or draft.costs.seconds(num_pending) < _READING_SHARE * left_s

    def _on_trial(self, draft: DraftModel, requests: list[Request], step: _Step) -> list[Request]:
        """At most one, the one that is tried soonest."""
        is_hopeless = step.cost <= (draft.costs.seconds(1) + self.costs.slope) * step.expected
        self._credit_s += (_HOPELESS_SHARE if is_hopeless else _TRIAL_SHARE) * step.cost
        pending = {r: draft.num_pending(r, self.scheduler.pool) for r in requests if r.following is not None}
        nearest = min(pending, key=pending.__getitem__, default=None)
        if nearest is None or not draft.can_follow(nearest):
            return []
        price_s = draft.costs.seconds(pending[nearest]) + self.costs.slope
        if self._credit_s < price_s:
            return []
        self._credit_s, step.is_trial = 0.0, True
        return [nearest]

    def _guess(self, draft: DraftModel, limits: dict[Request, int], step: _Step) -> dict[Request, list[int]]:
        """Lets the draft guess, a token of each request at a time, for as long as that pays: at most `limits` of each.
        Requests that the draft doesn't know well enough yet get none."""
        guessed: dict[Request, list[int]] = {request: [] for request in limits}
        odds = dict.fromkeys(limits, 1.0)
        for request in limits:
            assert request.following is not None
            request.following.confidences, request.following.num_fed = [], 0
        step.cost += draft.costs.seconds(len(limits))
        found = draft.begin(list(limits), self.scheduler.pool) if limits else {}
        for ahead in range(1, MOST_GUESSES + 1):
            last = {}
            for request, guess in found.items():
                if self._takes(request, guess, odds, step):
                    guessed[request].append(guess.token)
                    if len(guessed[request]) < limits[request] and self._goes_on(draft, request, odds, step):
                        last[request] = guess.token
            extra_s = draft.costs.seconds(len(last)) + len(last) * self.costs.slope
            if not last or step.is_trial or self._gain(last, odds) * step.cost <= extra_s * step.expected:
                break
            step.cost += draft.costs.seconds(len(last))
            found = draft.go_on(last, ahead)
        return guessed

    def _takes(self, request: Request, guess: Guess, odds: dict[Request, float], step: _Step) -> bool:
        """Whether the guess is worth its place in the step."""
        following, is_sampled = request.following, request.params.temperature > 0
        assert following is not None
        known = self._odds[is_sampled]
        odds[request] *= known[guess.confidence]
        is_worth_it = odds[request] * step.cost > self.costs.slope * step.expected
        if not (is_worth_it or step.is_trial) or guess.token in request.stop_tokens:
            self._pass_over(following, known, guess.confidence)
            return False
        following.confidences.append(guess.confidence)
        step.expected, step.cost = step.expected + odds[request], step.cost + self.costs.slope
        return True

    def _pass_over(self, following: Following, odds: list[float], confidence: int) -> None:
        """A guess wasn't worth its place, so nobody will know whether it was right: what it was believed to be counts,
        and what is believed of such guesses tends to what it was at first, until one is looked at again."""
        following.drift(odds[confidence], _PASSED_OVER)
        self.acceptance += _SLOWEST_RATE * (odds[confidence] - self.acceptance)
        odds[confidence] += _FORGOTTEN * (_FIRST_ODDS[confidence] - odds[confidence])

    def _goes_on(self, draft: DraftModel, request: Request, odds: dict[Request, float], step: _Step) -> bool:
        return self._gain((request,), odds) * step.cost > (self.costs.slope + draft.costs.slope) * step.expected

    def _gain(self, requests: Iterable[Request], odds: dict[Request, float]) -> float:
        """Tokens to be expected of one more guess for each of them."""
        return sum(odds[request] * request.following.acceptance for request in requests if request.following)

    # --- what became of them ---------------------------------------------------------------------------------------

    def learn(self, request: Request, num_accepted: int, is_rejected: bool) -> bool:
        """`num_accepted` draft tokens of the step were what was sampled, and the next one was looked at and wasn't, or
        nobody looked. Returns whether they were the draft model's."""
        following = request.following
        if self.draft is None or following is None or not following.confidences:
            return False
        odds = self._odds[request.params.temperature > 0]
        for place, confidence in enumerate(following.confidences[: num_accepted + is_rejected]):
            is_right = place < num_accepted
            rate = max(_SLOWEST_RATE, 1 / (self._num_learned + 5))
            self._num_learned += 1
            odds[confidence] += max(rate, 0.05) * (is_right - odds[confidence])
            self.acceptance += rate * (is_right - self.acceptance)
            following.learn(is_right)
        following.confidences = []
        if request.is_running:
            self.draft.settle(request, num_accepted, self.scheduler.pool)
        return True


class _Step:
    """What a step is expected to give, in tokens, and to cost, in seconds or in steps of one token. is_trial: a draft
    guesses though that isn't believed to pay."""

    __slots__ = ("cost", "expected", "is_trial")

    def __init__(self, expected: float, cost: float) -> None:
        self.expected, self.cost, self.is_trial = expected, cost, False
