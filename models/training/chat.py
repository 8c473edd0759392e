"""Conversations: `chat_facts` and `chat_talk` make turns, `conversation` strings them together.

It knows ChatML roles only as message dictionaries; `corpus` renders them with the model's own chat template.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from chat_facts import animal, arithmetic, calendar, capital, colour, compare, explain, recipe, things
from chat_talk import about, closing, count, greeting, naming, reading, repeat, small_talk, story, unknown

Turn = tuple[str, str]
SKILLS: tuple[tuple[float, Callable[[random.Random, bool], list[Turn]]], ...] = (
    (2.0, greeting),
    (1.0, closing),
    (2.0, about),
    (2.0, story),
    (2.2, capital),
    (3.0, arithmetic),
    (1.3, colour),
    (1.6, naming),
    (2.4, animal),
    (0.5, compare),
    (2.2, explain),
    (2.0, things),
    (1.3, calendar),
    (1.0, recipe),
    (0.9, count),
    (3.0, repeat),
    (1.5, small_talk),
    (0.8, reading),
    (1.0, unknown),
)
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "You are qwench-tiny. Answer in short sentences.",
    "You tell stories to children.",
    "You are a helpful assistant. Be polite.",
    "Answer the questions of the user.",
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
)


def conversation(rng: random.Random, validation: bool) -> list[dict[str, str]]:
    """One to a few skills in a row, with a greeting before and thanks after them now and then."""
    weights, skills = [weight for weight, _ in SKILLS], [skill for _, skill in SKILLS]
    turns: list[Turn] = []
    for skill in rng.choices(skills, weights, k=rng.choice([1, 1, 1, 2, 2, 3])):
        turns += skill(rng, validation)
    if rng.random() < 0.12:
        turns = greeting(rng, validation) + turns
    if rng.random() < 0.12:
        turns += closing(rng, validation)
    messages = []
    if rng.random() < 0.12:
        messages.append({"role": "system", "content": rng.choice(SYSTEM_PROMPTS)})
    for user, assistant in turns:
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return messages
