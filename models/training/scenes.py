"""Scenes: freely combined sentences about people who move, take, give and feel, with the state kept straight.

The other texts follow plots; these do not. They make the model read: where somebody is and who holds what follows
only from the sentences before.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from grammar import listing, say, words
from lexicon import ANIMALS, BOYS, GIRLS, JOBS

ROOMS = words(
    "the kitchen|the garden|the school|the library|the market|the forest|the barn|the harbour|the park|the bakery|"
    "the old mill|the station|the workshop|the church|the meadow|the cellar",
    "|",
)
THINGS = words(
    "apple|lamp|book|ball|basket|key|letter|cup|hat|flower|bread|box|umbrella|rope|coin|picture|blanket|bottle|"
    "drum|pear|"
    "candle|map|stone|feather|bell|shell",
    "|",
)
ADJECTIVES = words(
    "small|old|red|blue|green|heavy|beautiful|broken|new|golden|wooden|strange|clean|empty|round|white", "|"
)
FEELINGS = {
    "happy": "the sun was shining|there was cake for everyone|a friend had come to visit|the work was done",
    "tired": "the day had been long|the way was far|the night had been too short",
    "sad": "the summer was over|it was raining again|nobody was at home",
    "hungry": "breakfast had been small|there was nothing left to eat",
    "excited": "the feast was near|a letter had arrived|it was snowing",
    "angry": "the door was locked|somebody had eaten all the bread",
    "surprised": "the room was full of flowers|there was a cat on the table",
}
TIMES = words("after a while|then|later|a little later|soon|a moment later|||", "|")
ADVERBS = words("slowly|quickly|quietly|carefully|happily|alone|without a word|at once|", "|")


@dataclass
class Scene:
    """The text, and questions about it with their answers."""

    text: str = ""
    questions: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class _State:
    """Where everybody is and who holds what."""

    place: dict[str, str]
    holds: dict[str, str]
    feeling: dict[str, str]


def make_scene(rng: random.Random, length: int = 0) -> Scene:
    """A scene with two or three people, of `length` sentences (three to six if 0)."""
    people = rng.sample(GIRLS + BOYS, rng.choice([2, 2, 3]))
    state = _State({}, {}, {})
    opening = rng.choice(["in the morning", "in the afternoon", "one day", "after lunch", "before sunset", "", ""])
    sentences = [_move(rng, state, people[0], opening)] + [_move(rng, state, person) for person in people[1:]]
    for _ in range((length or rng.randint(3, 6)) - len(people)):
        person = rng.choice(people)
        others = [other for other in people if other != person]
        if person in state.holds and rng.random() < 0.6:
            sentences.append(_hand_on(rng, state, person, rng.choice(others)))
        else:
            makers = [_move, _take, _feel, _see] if person not in state.holds else [_move, _feel, _see]
            sentences.append(rng.choice(makers)(rng, state, person))
    if rng.random() < 0.3:
        sentences.append(_speech(rng, *rng.sample(people, 2)))
    return Scene(" ".join(sentences), _questions(rng, state))


def _move(rng: random.Random, state: _State, person: str, time: str | None = None) -> str:
    place = rng.choice([room for room in ROOMS if room != state.place.get(person)])
    state.place[person] = place
    when = rng.choice(TIMES) if time is None else time
    return say(
        rng,
        "$time $p [went|walked|ran|came] to $place $how.",
        time=when,
        p=person,
        place=place,
        how=rng.choice(ADVERBS),
    )


def _take(rng: random.Random, state: _State, person: str) -> str:
    thing = rng.choice([thing for thing in THINGS if thing not in state.holds.values()])
    state.holds[person] = thing
    verb = rng.choice(["took", "found", "picked up", "bought", "chose"])
    return say(
        rng,
        "$time $p $verb a $adj $thing.",
        time=rng.choice(TIMES),
        p=person,
        verb=verb,
        adj=rng.choice(ADJECTIVES),
        thing=thing,
    )


def _hand_on(rng: random.Random, state: _State, person: str, other: str) -> str:
    thing = state.holds.pop(person)
    if other in state.holds or rng.random() < 0.3:
        return say(
            rng,
            "$time $p put the $thing [on the table|under the bench|behind the door|next to a $a].",
            time=rng.choice(TIMES),
            p=person,
            thing=thing,
            a=rng.choice(["box", "chair", "tree", "wall", "basket"]),
        )
    state.holds[other] = thing
    return say(
        rng,
        "$time $p [gave the $thing to $o|handed $o the $thing|gave $o the $thing].",
        time=rng.choice(TIMES),
        p=person,
        o=other,
        thing=thing,
    )


def _feel(rng: random.Random, state: _State, person: str) -> str:
    feeling = rng.choice(list(FEELINGS))
    state.feeling[person] = feeling
    return say(rng, f"$p was [very|so|a little|] $f because [{FEELINGS[feeling]}].", p=person, f=feeling)


def _see(rng: random.Random, state: _State, person: str) -> str:
    job = rng.choice(list(JOBS))
    beast = rng.choice(ANIMALS)
    return say(
        rng,
        "[$time $p saw a $adj $thing [near|behind|under|next to] $place.|a $job [waved at|talked to|helped|"
        "greeted] $p $how.|a $beast "
        "[ran|walked] past $p.|$p [thought about|talked about|looked for] [a $beast|the $job|a $adj $thing].]",
        time=rng.choice(TIMES),
        p=person,
        adj=rng.choice(ADJECTIVES),
        thing=rng.choice(THINGS),
        place=rng.choice(ROOMS),
        job=job,
        beast=beast.name,
        how=rng.choice(ADVERBS),
    )


def _speech(rng: random.Random, person: str, other: str) -> str:
    return say(
        rng,
        '["where have you been?" asked $p. "I was in $place," said $o.|"look at that $beast!" said $p to $o.|'
        '"it is getting late," said '
        '$p. "let us go home," said $o.|"what a $adj $thing!" said $p.|"will you come with me to $place?" '
        'asked $p. "[yes, I will|no, I have '
        'to work|maybe tomorrow]," said $o.]',
        p=person,
        o=other,
        place=rng.choice(ROOMS),
        beast=rng.choice(ANIMALS).name,
        adj=rng.choice(ADJECTIVES),
        thing=rng.choice(THINGS),
    )


def _questions(rng: random.Random, state: _State) -> list[tuple[str, str]]:
    questions = [(f"Where is {person}?", f"{person} is {_at(place)}.") for person, place in state.place.items()]
    for person, thing in state.holds.items():
        questions.append((f"Who has the {thing}?", f"{person} has the {thing}."))
        questions.append((f"What does {person} have?", f"{person} has the {thing}."))
    for person, feeling in state.feeling.items():
        questions.append((f"How does {person} feel?", f"{person} is {feeling}."))
    people = list(state.place)
    questions.append(("Who is in the text?", f"The text is about {listing(people)}."))
    rng.shuffle(questions)
    return questions


def _at(place: str) -> str:
    return (
        f"at {place}"
        if place in {"the market", "the station", "the harbour", "the school", "the old mill"}
        else f"in {place}"
    )
