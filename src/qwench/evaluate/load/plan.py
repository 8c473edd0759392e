"""Which requests are sent, of which lengths and when: all of it drawn from a seed before the clock starts.

Knows no HTTP.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qwench.errors import ConfigError

Draw = Callable[[np.random.Generator], int]  # a length in tokens

LENGTHS = "N tokens, LOW-HIGH uniform between, or exp:MEAN exponential"


@dataclass(frozen=True)
class Request:
    """num_prompt, num_answer: tokens. at_s: when it is due, from the start; None: as soon as a user is free."""

    num_prompt: int
    num_answer: int
    at_s: float | None = None


@dataclass(frozen=True)
class LoadPlan:
    """users: clients that each send their next request when the last is answered; None: requests come when they are
    due, whatever is still open, `rate` a second on average."""

    requests: tuple[Request, ...]
    users: int | None
    rate: float | None


def parse_length(text: str) -> Draw:
    """LENGTHS -> a function that draws a length of at least 1. Raises ConfigError."""
    if re.fullmatch(r"[1-9]\d{0,6}", text):
        value = int(text)
        return lambda random: value
    if match := re.fullmatch(r"([1-9]\d{0,6})-([1-9]\d{0,6})", text):
        low, high = int(match[1]), int(match[2])
        if low <= high:
            return lambda random: int(random.integers(low, high + 1))
    if match := re.fullmatch(r"exp:([1-9]\d{0,6})", text):
        mean = int(match[1])
        return lambda random: max(1, round(random.exponential(mean)))
    raise ConfigError(f"a length is {text!r}; it must be {LENGTHS}")


def read_lengths(path: Path) -> list[tuple[int, int]]:
    """Lengths of real traffic: a JSON object {"prompt": tokens, "answer": tokens} per line. Raises ConfigError."""
    pairs = []
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip():
                continue
            entry = json.loads(line)
            pair = (entry["prompt"], entry["answer"])
            if not all(type(value) is int and value > 0 for value in pair):
                raise ConfigError(f"{path}, line {number}: prompt and answer must be numbers of tokens above 0")
            pairs.append(pair)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the lengths in {path} can't be read: {error}") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f'{path}, line {number}: it must be {{"prompt": TOKENS, "answer": TOKENS}}') from None
    if not pairs:
        raise ConfigError(f"{path} holds no lengths")
    return pairs


def make_plan(
    num_requests: int, lengths: Callable[[np.random.Generator], tuple[int, int]], *, users: int | None,
    rate: float | None, seed: int,
) -> LoadPlan:  # fmt: skip
    """Requests of drawn lengths. rate: their arrivals are a Poisson process, with exponential gaps of mean 1 / rate;
    math.inf: all at once. Raises ConfigError unless exactly one of users and rate is given."""
    if (users is None) == (rate is None):
        raise ConfigError("say who asks: --users N, each of whom waits for an answer, or --rate R requests a second")
    if num_requests < 1 or (users is not None and users < 1) or (rate is not None and not rate > 0):
        raise ConfigError("the numbers of requests and users must be positive, and so must the rate")
    random = np.random.default_rng(seed)
    pairs = [lengths(random) for _ in range(num_requests)]
    if rate is None:
        return LoadPlan(tuple(Request(*pair) for pair in pairs), users, None)
    gaps = np.zeros(num_requests) if math.isinf(rate) else random.exponential(1 / rate, num_requests)
    due = np.cumsum(gaps) - gaps[0]
    return LoadPlan(tuple(Request(*pair, at_s=float(at)) for pair, at in zip(pairs, due)), None, rate)
