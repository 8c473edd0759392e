"""The training text: an endless, deterministic stream of documents made by the project itself.

`documents(seed, validation)` yields stories, prose and ChatML conversations. The validation stream uses another seed
and, where things combine (hero and plot, the two numbers of a sum), only combinations that training never shows.
Run it as a script to read a sample.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator

from chat import conversation
from lexicon import ANIMALS, BOYS, CATEGORIES, COUNTRIES, DAYS, GIRLS, MONTHS, OPPOSITES, PETS
from prose import PROSE, sums_prose
from scenes import make_scene
from stories import PEOPLE, TRAITS, make_story, summary

COPY_SHARE = 0.05
WORDS = [*(a.name for a in ANIMALS), *GIRLS, *BOYS, *PETS, *OPPOSITES, *CATEGORIES["fruits"], *TRAITS, *PEOPLE]
COUNTRY_WORDS = [*COUNTRIES, *(capital for capital, _, _ in COUNTRIES.values()), *DAYS, *MONTHS]
DIGITS = list("0123456789")
DEFAULT_SYSTEM = "You are qwench-tiny, a small and friendly assistant."
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{%- if loop.first and message.role != 'system' %}"
    "{{- '<|im_start|>system\\n" + DEFAULT_SYSTEM + "<|im_end|>\\n' }}"
    "{%- endif %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def chatml(messages: list[dict[str, str]], default_system: bool) -> str:
    """Render messages as CHAT_TEMPLATE does; without the default system turn if so wished."""
    if default_system and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": DEFAULT_SYSTEM}, *messages]
    return "".join(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in messages)


def story_document(rng: random.Random, validation: bool) -> str:
    """A story, often with its title, sometimes with a summary that repeats its facts."""
    story = make_story(rng, validation, short=rng.random() < 0.3)
    text = story.text if rng.random() < 0.5 else f"{story.title}\n\n{story.text}"
    return text + (f"\n\nSummary: {summary(rng, story)}" if rng.random() < 0.3 else "")


def repeated_words(rng: random.Random) -> str:
    """A few random words or digits, said several times in the same order: nothing helps here but to copy."""
    pool = rng.choice([WORDS, WORDS, COUNTRY_WORDS, DIGITS])
    phrase = " ".join(rng.choice(pool) for _ in range(rng.randint(3, 16)))
    return rng.choice([" ", " ", ", ", ". "]).join([phrase] * rng.randint(2, 6))


def document(rng: random.Random, validation: bool) -> str:
    """One document of a kind drawn by weight: conversations 82 %, stories 4 %, scenes 2 %, other prose 12 %."""
    if rng.random() < COPY_SHARE:
        return repeated_words(rng)
    roll = rng.random()
    if roll < 0.82:
        return chatml(conversation(rng, validation), default_system=rng.random() < 0.45)
    if roll < 0.86:
        return story_document(rng, validation)
    if roll < 0.88:
        return make_scene(rng, length=rng.randint(4, 10)).text
    if roll < 0.91:
        return sums_prose(rng, validation)
    text = rng.choices([maker for _, maker in PROSE], [weight for weight, _ in PROSE])[0](rng)
    if rng.random() < 0.25:
        text += "\n\n" + rng.choices([maker for _, maker in PROSE], [weight for weight, _ in PROSE])[0](rng)
    return text


def documents(seed: int, validation: bool = False) -> Iterator[str]:
    """Yield documents for ever; the same seed and split give the same stream."""
    rng = random.Random(f"{'validation' if validation else 'train'}-{seed}")
    while True:
        yield document(rng, validation)


def main() -> None:
    """Print a few documents."""
    parser = argparse.ArgumentParser(description="Print documents of the training text.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--validation", action="store_true")
    parser.add_argument("--separator", default="\n" + "-" * 60 + "\n", help="what follows each document")
    arguments = parser.parse_args()
    stream = documents(arguments.seed, arguments.validation)
    for _ in range(arguments.count):
        print(next(stream), end=arguments.separator)


if __name__ == "__main__":
    main()
