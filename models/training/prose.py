"""Plain prose of the corpus: animals, countries, sums, weeks, recipes, letters, weather and a few rhymes.

Each function takes a random generator and returns one document; `PROSE` lists them with their weights.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from grammar import listing, number_word, say, words
from knowledge import EXPLANATIONS, HOW_TO, REASONS
from lexicon import (
    ANIMALS,
    BOYS,
    CATEGORIES,
    COLOURS_OF,
    COUNTRIES,
    DAYS,
    GIRLS,
    GROUPS,
    JOBS,
    MADE_OF,
    MONTHS,
    OPPOSITES,
    RECIPES,
    SEASONS,
    USES,
    Animal,
)

HOBBIES = words(
    "plays football|reads a book|paints a picture|works in the garden|visits a friend|goes swimming|bakes a cake|"
    "learns a song|rides a bike|helps at home|writes a letter|walks in the forest|plays the piano|goes to the market",
    "|",
)
WEATHERS = {
    "sunny": "go to the beach",
    "rainy": "stay at home and read",
    "windy": "fly a kite",
    "snowy": "build a snowman",
    "cloudy": "take a long walk",
    "foggy": "drive slowly",
    "stormy": "close all the windows",
    "hot": "swim in the lake",
    "cold": "drink hot tea",
}


def animal_facts(rng: random.Random, animal: Animal, most: int = 5) -> str:
    """A paragraph of true sentences about one animal, in an order that changes."""
    values = {
        "a": animal.name,
        "s": animal.plural,
        "group": animal.group,
        "home": animal.home,
        "food": animal.food,
        "sound": animal.sound,
        "colour": animal.colour,
        "baby": animal.baby,
        "skill": animal.skill,
        "legs": number_word(animal.legs) if animal.legs else "no",
    }
    first = rng.choice(["a $a is a $group.", "$s are $group" + "s."]).replace("$groups", GROUPS[animal.group])
    rest = [
        "[it lives|a $a lives|you can find it] in $home.".replace("in $home", where(animal)),
        "it [eats|likes to eat] $food.",
        "it has $legs legs.",
        "a young $a is called a $baby.",
        "[many $s are $colour.|its colour is often $colour.]",
        "a $a can $skill.",
        "$s $sound.",
    ]
    rng.shuffle(rest)
    return say(rng, " ".join([first, *rest[: rng.randint(2, most)]]), **values)


def where(animal: Animal) -> str:
    """The home of an animal with its preposition."""
    preposition = "on" if animal.home.split()[-1] in {"farm", "shore", "savanna", "grassland"} else "in"
    return f"{preposition} {animal.home}"


def animals_prose(rng: random.Random) -> str:
    """One or two animals, and which one is larger."""
    one, two = rng.sample(ANIMALS, 2)
    text = animal_facts(rng, one)
    if rng.random() < 0.5:
        large, small = sorted((one, two), key=lambda animal: -animal.size)
        text += "\n" + animal_facts(rng, two, 3)
        text += " " + say(rng, "[a $l is bigger than a $s.|a $s is smaller than a $l.]", l=large.name, s=small.name)
    return text


def country_prose(rng: random.Random) -> str:
    """Capitals, continents and languages of one to three countries."""
    lines = []
    for country in rng.sample(list(COUNTRIES), rng.randint(1, 3)):
        capital, continent, language = COUNTRIES[country]
        lines.append(
            say(
                rng,
                "[$country is a country in $continent. its capital is $capital.|the capital of $country is "
                "$capital. $country "
                "is in $continent.|$capital is the capital of $country, a country in $continent.] "
                "[many people there speak $language.|people there speak $language.|]",
                country=country,
                capital=capital,
                continent=continent,
                language=language,
            )
        )
    return "\n".join(lines)


def sum_allowed(one: int, two: int, validation: bool) -> bool:
    """Keep one sum in twenty for validation; sums below six are always trained."""
    return (one + two > 5 and (3 * one + 7 * two) % 20 == 4) == validation


def sums(rng: random.Random, validation: bool, words: bool | None = None) -> tuple[str, str, str]:
    """One sum as (question, answer in a sentence, result): digits or words, plus, minus or times."""
    while True:
        one, two = rng.randint(0, 10), rng.randint(0, 10)
        kind = rng.choice(["plus", "plus", "minus", "times"])
        if kind == "minus":
            one, two = max(one, two), min(one, two)
        if sum_allowed(one, two, validation):
            break
    result = {"plus": one + two, "minus": one - two, "times": one * two}[kind]
    in_words = (rng.random() < 0.2 if words is None else words) and result < 100
    show: Callable[[int], str] = number_word if in_words else str
    symbol = {"plus": "+", "minus": "-", "times": "x"}[kind]
    operator = kind if in_words or rng.random() < 0.7 else symbol
    return f"{show(one)} {operator} {show(two)}", f"{show(one)} {kind} {show(two)} is {show(result)}", show(result)


def sums_prose(rng: random.Random, validation: bool) -> str:
    """Several sums in a row, or a small word problem."""
    if rng.random() < 0.5:
        return "\n".join(say(rng, sums(rng, validation)[1] + ".") for _ in range(rng.randint(2, 6)))
    return word_problem(rng)[2]


def word_problem(rng: random.Random) -> tuple[str, str, str]:
    """Somebody has things and gets or gives some: (question, answer, both as prose)."""
    name, other = rng.choice(GIRLS), rng.choice(BOYS)
    things = rng.choice(words("apples books coins eggs shells pears cookies stones flowers"))
    have, change = rng.randint(2, 10), rng.randint(1, 9)
    gives = change < have and rng.random() < 0.5
    total = have - change if gives else have + change
    story = f"{name} has {have} {things}. "
    story += f"She gives {change} to {other}." if gives else f"{other} gives her {change} more."
    answer = f"{name} has {total} {things if total != 1 else things[:-1]} now."
    if things == "cookies" and total == 1:
        answer = f"{name} has 1 cookie now."
    return (
        f"{story} How many {things} does she have now?",
        answer,
        f"{story} {answer.replace(f'{name} has', 'Now she has').replace(' now.', '.')}",
    )


def week_prose(rng: random.Random) -> str:
    """A week of somebody, day by day: a list with a repeating frame."""
    name = rng.choice(GIRLS + BOYS)
    lines = [f"{day}: {name} {rng.choice(HOBBIES)}." for day in DAYS[: rng.choice([5, 7, 7])]]
    return f"The week of {name}\n" + "\n".join(lines)


def calendar_prose(rng: random.Random) -> str:
    """What follows what in the calendar, and what the seasons are like."""
    lines = []
    for _ in range(rng.randint(2, 4)):
        names = rng.choice([DAYS, MONTHS])
        index = rng.randrange(len(names))
        lines.append(
            say(
                rng,
                "[after $a comes $b.|$a comes before $b.|$b comes after $a.|the $kind before $b is $a.]",
                a=names[index],
                b=names[(index + 1) % len(names)],
                kind="day" if names is DAYS else "month",
            )
        )
    if rng.random() < 0.6:
        season = rng.choice(list(SEASONS))
        lines.append(say(rng, f"in {season} {SEASONS[season][0]}. the months of {season} are {SEASONS[season][1]}."))
    return " ".join(lines)


def recipe_text(rng: random.Random, dish: str) -> str:
    """Ingredients, then numbered steps or one sentence per step."""
    ingredients, steps = RECIPES[dish]
    head = say(rng, f"[for|to make] {dish} you need {listing(ingredients)}.")
    if rng.random() < 0.5:
        return head + "\n" + "\n".join(f"{n}. {say(rng, step)}." for n, step in enumerate(steps, 1))
    words = ["first", "then", "next", "at the end"]
    return head + " " + " ".join(say(rng, f"{word} {step}.") for word, step in zip(words, steps, strict=True))


def recipe_prose(rng: random.Random) -> str:
    """A recipe with its title."""
    dish = rng.choice(list(RECIPES))
    return say(rng, f"how to make {dish}") + "\n" + recipe_text(rng, dish)


def weather_prose(rng: random.Random) -> str:
    """A weather report for two to five days."""
    start, lines = rng.randrange(7), []
    for offset in range(rng.randint(2, 5)):
        weather = rng.choice(list(WEATHERS))
        lines.append(
            say(
                rng,
                "[on $day it will be $weather.|$day will be $weather.] [it is a good day to $do.|people should $do.|"
                "you can $do.]",
                day=DAYS[(start + offset) % 7],
                weather=weather,
                do=WEATHERS[weather],
            )
        )
    return "The weather\n" + " ".join(lines)


def letter_prose(rng: random.Random) -> str:
    """A short letter between two children."""
    one, two = rng.sample(GIRLS + BOYS, 2)
    weather = rng.choice(list(WEATHERS))
    return "\n".join(
        [
            f"Dear {one},",
            say(
                rng,
                "[how are you? I am fine.|thank you for your letter.|I hope that you are well.] [it is very "
                "$weather here, so "
                "we $do.|yesterday I saw a $animal [in our garden|near the river|behind the house].|my sister "
                "and I are learning to "
                "cook. yesterday we made $dish.|on $day I will go to $place with my family.]",
                weather=weather,
                do=WEATHERS[weather],
                animal=rng.choice(ANIMALS).name,
                dish=rng.choice(list(RECIPES)),
                day=rng.choice(DAYS),
                place=rng.choice(list(COUNTRIES.values()))[0],
            ),
            say(
                rng, "[please write soon!|come and visit me soon!|what are you doing these days?|I miss you very much.]"
            ),
            say(rng, "[your friend|best wishes|yours],"),
            two,
        ]
    )


def diary_prose(rng: random.Random) -> str:
    """A day told in order, from breakfast to bed."""
    name = rng.choice(GIRLS + BOYS)
    she = "she" if name in GIRLS else "he"
    parts = [
        "[in the morning|after breakfast] $name [fed|saw|painted|looked for] the [$one|$two].",
        "at noon $she ate [soup|bread and cheese|pasta|an apple|a sandwich] [with|and talked to] $friend.",
        "[in the afternoon|later] $she $hobby_past.",
        "in the evening $she was [tired but happy|very hungry|glad to be at home] and [went to bed early|read a story|"
        "looked at the stars].",
    ]
    past = rng.choice(
        words(
            "played in the garden|went to the market|helped a neighbour|learned a new song|swam in the lake|"
            "drew a picture|cleaned the kitchen|climbed a tree|planted some flowers",
            "|",
        )
    )
    one, two = (animal.name for animal in rng.sample(ANIMALS, 2))
    friend = rng.choice([other for other in GIRLS + BOYS if other != name])
    return say(rng, " ".join(parts), name=name, she=she, one=one, two=two, friend=friend, hobby_past=past)


def explain_prose(rng: random.Random) -> str:
    """A few explanations, reasons or instructions one after another."""
    kind = rng.random()
    if kind < 0.5:
        return " ".join(rng.sample(list(EXPLANATIONS.values()), rng.randint(1, 3)))
    if kind < 0.8:
        return "\n".join(f"Why {question}? {answer}" for question, answer in rng.sample(list(REASONS.items()), 2))
    task, answer = rng.choice(list(HOW_TO.items()))
    return f"How to {task.replace('my', 'your')}\n{answer}"


def things_prose(rng: random.Random) -> str:
    """Colours, uses, materials, opposites and jobs as loose sentences."""
    makers: list[Callable[[], str]] = [
        lambda: say(rng, "$a is $b.", **dict(zip("ab", rng.choice(list(COLOURS_OF.items())), strict=True))),
        lambda: say(rng, "we use $a to $b.", **dict(zip("ab", rng.choice(list(USES.items())), strict=True))),
        lambda: say(rng, "$a is made of $b.", **dict(zip("ab", rng.choice(list(MADE_OF.items())), strict=True))),
        lambda: say(
            rng, "the opposite of $a is $b.", **dict(zip("ab", rng.choice(list(OPPOSITES.items())), strict=True))
        ),
        lambda: job_sentence(rng, rng.choice(list(JOBS))),
    ]
    return " ".join(rng.choice(makers)() for _ in range(rng.randint(2, 5)))


def job_sentence(rng: random.Random, job: str) -> str:
    """What somebody does at work and where."""
    what, where = JOBS[job]
    return say(rng, f"a {job} {what}. [a {job} often works {where}.|]")


def list_prose(rng: random.Random) -> str:
    """A titled list of things of one kind."""
    kind = rng.choice(list(CATEGORIES))
    items = rng.sample(CATEGORIES[kind], rng.randint(3, min(6, len(CATEGORIES[kind]))))
    mark = rng.choice(["- ", "number", ""])
    if not mark:
        return say(rng, f"some {kind} are {listing(items)}.")
    lines = [f"{n}. {item}" if mark == "number" else f"- {item}" for n, item in enumerate(items, 1)]
    return say(rng, f"[{kind}|a list of {kind}]") + ":\n" + "\n".join(lines)


def rhyme(rng: random.Random) -> str:
    """Four lines that rhyme."""
    pairs = rng.sample(
        [
            ("The sun is warm, the sky is blue,", "the birds all sing a song for you."),
            ("The little mouse runs up the stair,", "and finds a piece of cheese up there."),
            ("The moon is high, the night is deep,", "the little lambs are fast asleep."),
            ("A small green frog sat on a log,", "and talked all day to a friendly dog."),
            ("The rain falls down upon the tree,", "and all the leaves are glad to see."),
            ("The wind goes softly through the town,", "and brings the golden leaves all down."),
            ("A fox came walking down the lane,", "and danced with joy out in the rain."),
            ("The bee flies out to find a flower,", "and works and hums for half an hour."),
            ("A boat sails out across the sea,", "and brings a shell for you and me."),
            ("The snow is white, the fire is bright,", "we tell a story every night."),
        ],
        2,
    )
    return "\n".join(line for pair in pairs for line in pair)


PROSE: tuple[tuple[float, Callable[[random.Random], str]], ...] = (
    (3.0, animals_prose),
    (1.5, country_prose),
    (1.0, week_prose),
    (1.0, calendar_prose),
    (1.0, recipe_prose),
    (0.7, weather_prose),
    (0.8, letter_prose),
    (0.8, diary_prose),
    (2.5, explain_prose),
    (2.0, things_prose),
    (1.0, list_prose),
    (0.7, rhyme),
)
