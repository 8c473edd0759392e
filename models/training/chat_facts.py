"""Skills that answer from memory: countries, sums, colours, animals, explanations, the calendar, recipes.

Each makes one or more (user, assistant) turns for `chat`.
"""

from __future__ import annotations

import random

from grammar import ask, listing, number_word, say
from knowledge import EXPLANATIONS, HOW_TO, REASONS
from lexicon import (
    ANIMALS,
    CATEGORIES,
    COLOURS_OF,
    COUNTRIES,
    DAYS,
    GROUPS,
    JOBS,
    MADE_OF,
    MONTHS,
    OPPOSITES,
    RECIPES,
    USES,
)
from prose import animal_facts, job_sentence, recipe_text, sums, where, word_problem

Turn = tuple[str, str]


def capital(rng: random.Random, validation: bool) -> list[Turn]:
    """Capitals, continents and languages."""
    country = rng.choice(list(COUNTRIES))
    city, continent, language = COUNTRIES[country]
    roll = rng.random()
    if roll < 0.6:
        question = (
            "[what is the capital of $c?|what's the capital of $c?|which city is the capital of $c?|capital of "
            "$c?|tell me the capital of $c.|"
            "do you know the capital of $c?|name the capital of $c.]"
        )
        answer = "[the capital of $c is $k.|the capital of $c is $k.|$k is the capital of $c.]"
    elif roll < 0.75:
        question, answer = "[where is $c?|on which continent is $c?|which continent is $c in?]", "$c is in $o."
    elif roll < 0.88:
        question = "[what language do people speak in $c?|which language is spoken in $c?|what do people speak in $c?]"
        answer = "[people in $c speak $l.|in $c people speak $l.]"
    else:
        question, answer = (
            "[which country is $k the capital of?|$k is the capital of which country?|where is $k?]",
            "$k is the capital of $c.",
        )
    return [(ask(rng, question, c=country, k=city), say(rng, answer, c=country, k=city, o=continent, l=language))]


def arithmetic(rng: random.Random, validation: bool) -> list[Turn]:
    """A sum in digits or words, or a small word problem."""
    if rng.random() < 0.2:
        question, answer, _ = word_problem(rng)
        return [(question, answer)]
    term, sentence, _ = sums(rng, validation)
    return [
        (
            ask(rng, "[what is $t?|what's $t?|$t?|$t|calculate $t.|how much is $t?|what does $t make?]", t=term),
            say(rng, "$s.", s=sentence),
        )
    ]


def colour(rng: random.Random, validation: bool) -> list[Turn]:
    """Colours of things, with British and American spelling, and yes or no."""
    thing, shade = rng.choice(list(COLOURS_OF.items()))
    if rng.random() < 0.25:
        other = rng.choice([shade, *CATEGORIES["colours"]])
        answer = "yes, $t is $c." if other == shade else "no, $t is $c."
        return [(ask(rng, "is $t $o?", t=thing, o=other), say(rng, answer, t=thing, c=shade))]
    question = (
        "[what colour is $t?|what color is $t?|what is the colour of $t?|which colour does $t have?|"
        "what is the color of $t?]"
    )
    return [(ask(rng, question, t=thing), say(rng, "$t is $c.", t=thing, c=shade))]


def animal(rng: random.Random, validation: bool) -> list[Turn]:
    """Questions about an animal, one after another."""
    beast = rng.choice(ANIMALS)
    legs = number_word(beast.legs) if beast.legs else "no"
    place = where(beast)
    values = {"a": beast.name, "s": beast.plural}
    pool: list[tuple[str, str]] = [
        (
            "[tell me about a $a.|tell me something about $s.|what do you know about $s?|what is a $a?|describe a $a.]",
            animal_facts(rng, beast, 4),
        ),
        ("[where does a $a live?|where do $s live?|where can I find a $a?]", f"[a $a lives {place}.|$s live {place}.]"),
        (
            "[what does a $a eat?|what do $s eat?|what is the food of a $a?]",
            f"[a $a eats {beast.food}.|$s eat {beast.food}.]",
        ),
        ("[how many legs does a $a have?|how many legs do $s have?]", f"a $a has {legs} legs."),
        ("[what is a baby $a called?|what do you call a young $a?]", f"a young $a is called a {beast.baby}."),
        ("[what can a $a do?|what are $s good at?]", f"a $a can {beast.skill}."),
        ("[what sound does a $a make?|what do $s do when they make a sound?]", f"$s {beast.sound}."),
        (f"is a $a a {rng.choice(list(GROUPS))}?", ""),
    ]
    turns = []
    for question, answer in rng.sample(pool, rng.choice([1, 1, 2])):
        line = ask(rng, question, **values)
        if not answer:
            asked = next(group for group in GROUPS if group in line.lower().split(" a ", 1)[-1].replace("an ", ""))
            answer = ("yes, " if asked == beast.group else "no, ") + f"a $a is a {beast.group}."
        turns.append((line, say(rng, answer, **values)))
    return turns


def compare(rng: random.Random, validation: bool) -> list[Turn]:
    """Which of two animals is bigger."""
    one, two = rng.sample(ANIMALS, 2)
    large, small = sorted((one, two), key=lambda beast: -beast.size)
    if rng.random() < 0.7:
        return [
            (
                ask(rng, "[which is bigger|which one is bigger|what is bigger], a $a or a $b?", a=one.name, b=two.name),
                say(rng, "a $l is bigger than a $s.", l=large.name, s=small.name),
            )
        ]
    return [
        (
            ask(rng, "which is smaller, a $a or a $b?", a=one.name, b=two.name),
            say(rng, "a $s is smaller than a $l.", l=large.name, s=small.name),
        )
    ]


def explain(rng: random.Random, validation: bool) -> list[Turn]:
    """What is, why and how to."""
    roll = rng.random()
    if roll < 0.5:
        thing, text = rng.choice(list(EXPLANATIONS.items()))
        return [
            (
                ask(
                    rng,
                    (
                        "[what is $t?|what's $t?|explain to me what $t is.|can you explain what $t is?|tell me "
                        "what $t is.|do you know what $t is?]"
                    ),
                    t=thing,
                ),
                text,
            )
        ]
    if roll < 0.8:
        question, text = rng.choice(list(REASONS.items()))
        return [(ask(rng, f"why {question}?"), text)]
    task, text = rng.choice(list(HOW_TO.items()))
    return [
        (
            ask(
                rng,
                (
                    f"[how do I {task}?|how can I {task}?|tell me how to {task}.|how to {task}?|I want to {task}. "
                    f"what should I do?]"
                ),
            ),
            text,
        )
    ]


def things(rng: random.Random, validation: bool) -> list[Turn]:
    """Opposites, uses, materials and jobs."""
    roll = rng.random()
    if roll < 0.3:
        one, two = rng.choice(list(OPPOSITES.items()))
        if rng.random() < 0.5:
            one, two = two, one
        return [
            (
                ask(rng, "[what is the opposite of $a?|the opposite of $a?|what's the opposite of $a?]", a=one),
                say(rng, "the opposite of $a is $b.", a=one, b=two),
            )
        ]
    if roll < 0.5:
        one, two = rng.choice(list(USES.items()))
        return [
            (
                ask(
                    rng,
                    "[what do we use $a for?|what can I do with $a?|what is $a for?|what do you use $a for?]",
                    a=one,
                ),
                say(rng, "we use $a to $b.", a=one, b=two),
            )
        ]
    if roll < 0.7:
        one, two = rng.choice(list(MADE_OF.items()))
        return [
            (
                ask(rng, "[what is $a made of?|what do you need to make $a?]", a=one),
                say(rng, "$a is made of $b.", a=one, b=two),
            )
        ]
    job = rng.choice(list(JOBS))
    return [(ask(rng, f"[what does a {job} do?|what is the job of a {job}?|what is a {job}?]"), job_sentence(rng, job))]


def calendar(rng: random.Random, validation: bool) -> list[Turn]:
    """Next and previous days and months, how many there are, and seasons."""
    names, kind = rng.choice([(DAYS, "day"), (MONTHS, "month")])
    index = rng.randrange(len(names))
    before, after = names[index], names[(index + 1) % len(names)]
    question, answer = rng.choice(
        [
            (
                "[what comes after $a?|which $k comes after $a?|what $k is after $a?|today is $a. what is tomorrow?]",
                "[after $a comes $b.|$b comes after $a.]",
            ),
            (
                "[what comes before $b?|which $k comes before $b?|what $k is before $b?]",
                "[before $b comes $a.|$a comes before $b.]",
            ),
            ("[how many days are in a week?|how many days does a week have?]", "a week has seven days."),
            ("[how many months are in a year?|how many months does a year have?]", "a year has twelve months."),
            (
                "[what are the seasons?|name the four seasons.|how many seasons are there?]",
                "there are four seasons: spring, summer, autumn and winter.",
            ),
            (
                "[what are the days of the week?|name the days of the week.]",
                f"the days of the week are {listing(DAYS)}.",
            ),
            (
                "[what are the months of the year?|name all months.|list the months.]",
                f"the months are {listing(MONTHS)}.",
            ),
        ]
    )
    if kind == "month":
        question = question.replace("|today is $a. what is tomorrow?", "")
    return [(ask(rng, question, a=before, b=after, k=kind), say(rng, answer, a=before, b=after))]


def recipe(rng: random.Random, validation: bool) -> list[Turn]:
    """How to cook a dish."""
    dish = rng.choice(list(RECIPES))
    line = ask(
        rng,
        (
            "[how do I make $d?|how can I make $d?|give me a recipe for $d.|how do you make $d?|I want to make $d.|"
            "recipe for $d?]"
        ),
        d=dish,
    )
    return [(line, recipe_text(rng, dish))]
