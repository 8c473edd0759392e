"""What a verification found, and whether that is enough: plain data, the limits for each weights format, the verdict.

Knows nothing of models. Filled by `verify.py`; printed by `qwench verify`, drawn by `fidelity_plot.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from qwench.evaluate.metrics import (
    Bool,
    Float64,
    Rows,
    kl_divergence,
    pearson,
    relative_error,
    token_nll,
    top1_agrees,
    top5_agrees,
)


@dataclass(frozen=True)
class Limits:
    """What must hold; None: nothing. min_pcc: of the worst token's logits. min_top1: share of tokens, 0 to 1."""

    min_pcc: float | None = None
    min_top1: float | None = None


LIMITS: Mapping[str, Limits] = {
    "bf16": Limits(min_pcc=0.999),
    "int8": Limits(min_pcc=0.999, min_top1=0.98),
    "int4": Limits(min_top1=0.95),
}
# The mean PCC that a sound module alone stays above, for pointing at one that isn't. Measured on trained and random
# weights: bf16 1 - 2e-6 or better (bf16 activations), int8 0.999, int4 0.98.
MODULE_FLOORS: Mapping[str, float] = {"bf16": 0.9995, "int8": 0.995, "int4": 0.95}
NORM_FLOOR = 0.995  # a norm has no matrix; its output is int8 at worst


@dataclass(frozen=True)
class Scores:
    """Per token how close some rows are to the truth's: PCC and relative error."""

    pcc: Float64
    error: Float64

    @classmethod
    def of(cls, ours: Rows, truth: Rows) -> Scores:
        return cls(pearson(ours, truth), relative_error(ours, truth))

    @classmethod
    def join(cls, parts: Sequence[Scores]) -> Scores:
        return cls(np.concatenate([p.pcc for p in parts]), np.concatenate([p.error for p in parts]))

    @property
    def worst_pcc(self) -> float:
        return float(self.pcc.min())

    @property
    def mean_pcc(self) -> float:
        return float(self.pcc.mean())

    @property
    def mean_error(self) -> float:
        return float(self.error.mean())

    def summary(self) -> dict[str, float]:
        return {"worst_pcc": self.worst_pcc, "mean_pcc": self.mean_pcc, "mean_error": self.mean_error}


@dataclass(frozen=True)
class LogitScores:
    """Logits of some model beside the truth's, per token: KL(truth || it) in nats, agreement, and -log p of the token
    that comes next in the prompt, which the last token of each prompt lacks."""

    scores: Scores
    kl: Float64
    top1: Bool
    top5: Bool
    nll: Float64
    truth_nll: Float64

    @classmethod
    def of(cls, ours: Rows, truth: Rows, token_ids: Rows, block: int = 64) -> LogitScores:
        """Of one prompt: logits [num_tokens, vocab_size] and its ids; `block` rows at a time, to save memory."""
        parts = []
        for begin in range(0, len(truth), block):
            rows = slice(begin, begin + block)
            a, b, next_ids = ours[rows], truth[rows], token_ids[begin + 1 : begin + block + 1]
            count = len(next_ids)
            nll, truth_nll = token_nll(a[:count], next_ids), token_nll(b[:count], next_ids)
            parts.append(
                cls(Scores.of(a, b), kl_divergence(a, b), top1_agrees(a, b), top5_agrees(a, b), nll, truth_nll)
            )
        return cls.join(parts)

    @classmethod
    def join(cls, parts: Sequence[LogitScores]) -> LogitScores:
        def joined(name: str) -> Rows:
            return np.concatenate([getattr(p, name) for p in parts])

        names = ("kl", "top1", "top5", "nll", "truth_nll")
        return cls(Scores.join([p.scores for p in parts]), *(joined(name) for name in names))

    def summary(self) -> dict[str, float]:
        return self.scores.summary() | {
            "mean_kl": float(self.kl.mean()),
            "max_kl": float(self.kl.max()),
            "top1": float(self.top1.mean()),
            "top5": float(self.top5.mean()),
            "perplexity": _exp_mean(self.nll),
            "truth_perplexity": _exp_mean(self.truth_nll),
        }


def _exp_mean(nll: Float64) -> float:
    return float(np.exp(nll.mean())) if len(nll) else math.nan


@dataclass(frozen=True)
class ModuleScores:
    """One module alone, on the truth's own inputs. name: of its output, as in the Program."""

    kind: str
    layer: int | None
    name: str
    scores: Scores


@dataclass(frozen=True)
class Greedy:
    """Greedy answers of `num_new` tokens: where each first differs from the truth's (None: nowhere), and by how much
    the truth prefers its own token there, in logits: next to nothing is a tie."""

    num_new: int
    divergences: tuple[int | None, ...]
    gaps: tuple[float | None, ...]

    @property
    def num_same(self) -> int:
        return sum(at is None for at in self.divergences)

    @property
    def first(self) -> int | None:
        """The earliest divergence of all prompts."""
        return min((at for at in self.divergences if at is not None), default=None)


@dataclass(frozen=True)
class Check:
    """One thing that must hold: `value` is at least `limit`. A NaN holds nothing."""

    name: str
    value: float
    limit: float

    @property
    def ok(self) -> bool:
        return self.value >= self.limit


@dataclass(frozen=True)
class Fidelity:
    """All that a verification found.

    logits: of the compiled model as it runs. states: after each layer of it, its errors so far included, the last one
    after the final norm. modules: each alone. others: further models on the same tokens, by name. prompts: name and
    length of each.
    """

    truth: str
    weights: str
    prompts: tuple[tuple[str, int], ...]
    logits: LogitScores
    states: tuple[Scores, ...]
    modules: tuple[ModuleScores, ...]
    greedy: Greedy | None
    limits: Limits
    others: Mapping[str, LogitScores] = field(default_factory=dict)

    @property
    def checks(self) -> list[Check]:
        """What must hold, the other models included: our worst and mean PCC are to be no lower than theirs."""
        checks = []
        if self.limits.min_pcc is not None:
            checks.append(Check("worst-token PCC of the logits", self.logits.scores.worst_pcc, self.limits.min_pcc))
        if self.limits.min_top1 is not None:
            checks.append(Check("top-1 agreement", float(self.logits.top1.mean()), self.limits.min_top1))
        for name, other in self.others.items():
            theirs = other.scores
            checks.append(Check(f"worst-token PCC, against {name}", self.logits.scores.worst_pcc, theirs.worst_pcc))
            checks.append(Check(f"mean PCC, against {name}", self.logits.scores.mean_pcc, theirs.mean_pcc))
        return checks

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    @property
    def suspects(self) -> list[ModuleScores]:
        """Modules that are off by themselves, small ones first; layers, made of others, only if no part is."""
        floor = MODULE_FLOORS.get(self.weights, min(MODULE_FLOORS.values()))
        order = {"embedding": 0, "norm": 1, "attention": 2, "mlp": 3, "head": 4}
        floors = {"norm": max(floor, NORM_FLOOR)}
        off = [m for m in self.modules if not m.scores.mean_pcc >= floors.get(m.kind, floor)]
        parts = sorted((m for m in off if m.kind in order), key=lambda m: order[m.kind])
        return parts or off

    def worst_token(self) -> tuple[str, int]:
        """The prompt and the position whose logits are worst."""
        pcc = self.logits.scores.pcc
        at = int(np.nanargmin(pcc)) if not np.isnan(pcc).any() else int(np.isnan(pcc).argmax())
        for name, length in self.prompts:
            if at < length:
                return name, at
            at -= length
        raise AssertionError("a token is of no prompt")
