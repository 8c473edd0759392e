"""Skills that talk, tell, list, copy and read: greetings, stories, lists, counting, small talk and not knowing.

Each makes one or more (user, assistant) turns for `chat`.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from grammar import ask, ask_for, expand, listing, number_word, plain, say, tidy, words
from knowledge import ABOUT, EXPLANATIONS, JOKES, UNKNOWN
from lexicon import ANIMALS, BOYS, CATEGORIES, COLOURS_OF, GIRLS, OPPOSITES
from prose import rhyme
from scenes import make_scene
from stories import make_story, pick_kind, summary

Turn = tuple[str, str]
PLURALS = {animal.name: animal.plural for animal in ANIMALS}


def greeting(rng: random.Random, validation: bool) -> list[Turn]:
    """Hello, and how are you."""
    roll = rng.random()
    if roll < 0.55:
        user = plain(
            rng,
            rng.choice(
                words(
                    "Hello!|Hello.|Hi!|Hi there!|Hey!|Hello there!|Good morning!|Good evening!|Good afternoon!|"
                    "Hello, qwench!|Hi, how is it going?|Greetings!|Hello again!",
                    "|",
                )
            ),
        )
        hello = (
            "Good morning!" if "morning" in user.lower() else "Good evening!" if "evening" in user.lower() else "Hello!"
        )
        return [
            (
                user,
                say(
                    rng,
                    f"{hello} [how can I help you today?|how can I help you?|what can I do for you?|nice to meet you! "
                    "how can I help?]",
                ),
            )
        ]
    if roll < 0.75:
        return [
            (
                ask(rng, "[how are you?|how are you today?|how do you feel?|are you ok?|how are you doing?]"),
                rng.choice(ABOUT["feel"]),
            )
        ]
    name = rng.choice(GIRLS + BOYS)
    turns = [
        (
            plain(rng, say(rng, "[hello!|hi!|] [my name is|I am called] $n.", n=name)),
            say(
                rng,
                (
                    "[nice to meet you, $n!|hello, $n!|hi $n, nice to meet you!] [how can I help you?|what can I "
                    "do for you?]"
                ),
                n=name,
            ),
        )
    ]
    if rng.random() < 0.6:
        turns.append(
            (
                ask(rng, "[what is my name?|do you remember my name?|do you know my name?|who am I?]"),
                say(rng, "[your name is $n.|you are $n.]", n=name),
            )
        )
    return turns


def closing(rng: random.Random, validation: bool) -> list[Turn]:
    """Thanks and goodbye."""
    if rng.random() < 0.55:
        user = plain(
            rng,
            say(
                rng,
                "[thank you!|thanks!|thank you very much!|thanks a lot!|thank you for your help!|great, thanks!|"
                "that was nice, thank you!|that helps, thanks!]",
            ),
        )
        return [
            (
                user,
                say(
                    rng,
                    "[you are welcome!|you are very welcome!|my pleasure!|I am glad I could help!] [have a "
                    "nice day!|let me "
                    "know if you need anything else.|]",
                ),
            )
        ]
    user = plain(
        rng, say(rng, "[goodbye!|bye!|bye bye!|see you later!|good night!|see you tomorrow!|I have to go now.]")
    )
    if "night" in user.lower():
        return [(user, say(rng, "good night! [sleep well!|sweet dreams!]"))]
    return [(user, say(rng, "[goodbye!|bye!|see you soon!] [have a nice day!|take care!|it was nice to talk to you!]"))]


def about(rng: random.Random, validation: bool) -> list[Turn]:
    """Who the model is, and what qwench is."""
    topic, question = rng.choice(
        [
            (
                "who",
                "[who are you?|what is your name?|what are you called?|who am I talking to?|tell me about "
                "yourself.|introduce yourself.|"
                "what are you?|who is this?]",
            ),
            (
                "qwench",
                "[what is qwench?|what does qwench do?|tell me about qwench.|explain qwench.|what is qwench for?]",
            ),
            (
                "can",
                (
                    "[what can you do?|how can you help me?|what can I ask you?|what do you know?|help!|what are "
                    "you good at?]"
                ),
            ),
            (
                "cannot",
                "[what can you not do?|what are your limits?|can you write code?|do you know everything?|can I "
                "trust you?|are you "
                "always right?]",
            ),
            (
                "made",
                "[who made you?|how were you made?|how were you trained?|who created you?|where do you come from?]",
            ),
            ("size", "[how big are you?|how large are you?|how many parameters do you have?|how small are you?]"),
            ("human", "[are you a human?|are you a person?|are you real?|are you a robot?|are you alive?]"),
            ("who", "[who are you?|what is your name?|hello, who are you?|and who are you?]"),
        ]
    )
    return [(ask(rng, question), rng.choice(ABOUT[topic]))]


def story(rng: random.Random, validation: bool) -> list[Turn]:
    """A story on request, and questions about it."""
    kind = pick_kind(rng)
    given = rng.random() < 0.75
    short = rng.random() < 0.7
    told = make_story(rng, validation, kind, short)
    length = (
        "short "
        if short and rng.random() < 0.7
        else rng.choice(["", "", "little ", "nice ", "long "] if not short else [""])
    )
    template = f"[tell me|write|write me|tell] a {length}story" + (" about a $kind" if given else "")
    if not given and rng.random() < 0.3:
        template = "[I want to hear a story|read me a story|a story|story time]"
    elif given and rng.random() < 0.2:
        template = "[I want a story about a $kind|a story about a $kind|make up a story with a $kind]"
    turns = [(ask_for(rng, template, kind=kind), told.text)]
    name = told.name
    questions = [
        (
            f"[what was the name of the {told.kind}?|what was the {told.kind} called?|who is the story about?]",
            f"[the {told.kind} was called {name}.|the name of the {told.kind} was {name}.]",
        ),
        (
            f"[who helped {name}?|who helped the {told.kind}?|who helped?]",
            (
                f"[{told.helper}, the {told.helper_kind}, helped {name}.|a {told.helper_kind} named {told.helper} "
                f"helped {name}.]"
            ),
        ),
        ("[what was the problem?|what happened?|what went wrong?]", f"{name} {told.problem}."),
        (
            "[what is the moral?|what can we learn from it?|what is the lesson?|what does the story teach us?]",
            f"[we learn that {told.moral}.|the story teaches us that {told.moral}.]",
        ),
    ]
    for question, answer in rng.sample(questions, rng.choice([0, 0, 1, 1, 2])):
        turns.append((ask(rng, question), say(rng, answer)))
    if rng.random() < 0.2:
        turns.append(
            (
                ask_for(rng, "[summarise the story|give me a summary|tell it in two sentences|sum it up]"),
                summary(rng, told),
            )
        )
    return turns


def naming(rng: random.Random, validation: bool) -> list[Turn]:
    """Name some things of a kind, and sometimes more of them."""
    kind = rng.choice([*CATEGORIES, "animals", "animals"])
    pool = CATEGORIES[kind]
    count = min(rng.choice([2, 3, 3, 3, 4, 5]), len(pool) - 1)
    items = rng.sample(pool, count)
    number = number_word(count) if rng.random() < 0.75 else str(count)
    if rng.random() < 0.25:
        request = f"[make a list of {number} {kind}|list {number} {kind}|write a list of {number} {kind}]"
        answer = tidy("\n".join(f"{n}. {item}" for n, item in enumerate(items, 1)))
    else:
        request = f"[name {number} {kind}|tell me {number} {kind}|give me {number} {kind}|say {number} {kind}]"
        answer = tidy(
            f"{expand(rng, f'[{number_word(count)} {kind} are|here are {number_word(count)} {kind}:|]')} "
            f"{listing(items)}."
        )
    turns = [(ask_for(rng, request), answer)]
    rest = [item for item in pool if item not in items]
    if rng.random() < 0.25 and rest:
        item = rng.choice(rest)
        turns.append(
            (
                ask_for(rng, "[one more|another one|name one more|and another one]"),
                say(rng, f"[{item}.|another one is {item}.]"),
            )
        )
    return turns


def count(rng: random.Random, validation: bool) -> list[Turn]:
    """Count up or down, in digits or words, or say the alphabet."""
    if rng.random() < 0.12:
        return [
            (
                ask_for(rng, "[say the alphabet|write the alphabet|tell me the alphabet]"),
                ", ".join("ABCDEFGHIJKLMNOPQRSTUVWXYZ") + ".",
            )
        ]
    first = rng.choice([1, 1, 1, rng.randint(0, 10)])
    last = first + rng.randint(3, 9)
    numbers = list(range(first, last + 1))
    if rng.random() < 0.25:
        numbers.reverse()
    in_words = rng.random() < 0.35
    line = f"[count|count for me|count out loud] from {numbers[0]} to {numbers[-1]}"
    answer = ", ".join(number_word(n) if in_words else str(n) for n in numbers) + "."
    return [(ask_for(rng, line + (" in words" if in_words else "")), tidy(answer))]


def repeat(rng: random.Random, validation: bool) -> list[Turn]:
    """Say exactly what the user said: learned copying."""
    pool = [*PLURALS, *COLOURS_OF.values(), *GIRLS, *BOYS, *OPPOSITES, *CATEGORIES["fruits"], *CATEGORIES["tools"]]
    makers: list[Callable[[], str]] = [
        lambda: " ".join(rng.sample(pool, rng.randint(2, 7))),
        lambda: rng.choice(list(EXPLANATIONS.values())).split(". ")[0].rstrip("."),
        lambda: say(
            rng,
            "the $a $b [sees|likes|follows|meets] the $c $d",
            a=rng.choice(list(OPPOSITES)),
            b=rng.choice(list(PLURALS)),
            c=rng.choice(list(OPPOSITES.values())),
            d=rng.choice(list(PLURALS)),
        ),
        lambda: " ".join(str(rng.randint(0, 9)) for _ in range(rng.randint(3, 8))),
    ]
    phrase = rng.choice(makers)()
    lead = rng.choice(
        ["Repeat after me: ", "Please repeat: ", "Say this: ", "repeat after me: ", "repeat: ", "Copy this: "]
    )
    if rng.random() < 0.2:
        times = rng.randint(2, 4)
        return [(f"Say this {number_word(times)} times: {phrase}", "\n".join([phrase] * times))]
    return [(lead + phrase, phrase)]


def reading(rng: random.Random, validation: bool) -> list[Turn]:
    """Read a small text and answer questions about it."""
    scene = make_scene(rng)
    questions = rng.sample(scene.questions, min(len(scene.questions), rng.choice([1, 1, 2])))
    lead = rng.choice(["Read this text: ", "Here is a text: ", "", "Listen: "])
    turns = [(f"{lead}{scene.text} {questions[0][0]}", questions[0][1])]
    return turns + [(plain(rng, question), answer) for question, answer in questions[1:]]


def small_talk(rng: random.Random, validation: bool) -> list[Turn]:
    """Jokes, rhymes, feelings and likes."""
    roll = rng.random()
    if roll < 0.3:
        return [(ask_for(rng, "[tell me a joke|say something funny|make me laugh|tell a joke]"), rng.choice(JOKES))]
    if roll < 0.45:
        return [
            (ask_for(rng, "[write a poem|tell me a poem|write a rhyme|write a short poem|say a rhyme]"), rhyme(rng))
        ]
    if roll < 0.75:
        feeling, answers = rng.choice(
            [
                (
                    "sad",
                    (
                        "[I am sorry to hear that.|oh, I am sorry.] [do you want to talk about it?|would you like "
                        "to hear a story?]"
                    ),
                ),
                ("tired", "[you should rest a little.|maybe you should go to bed early today.]"),
                ("happy", "[that is wonderful!|I am glad to hear that!] [what made you so happy?|]"),
                ("bored", "[how about a story?|I could tell you a story or a joke.] [what would you like?|]"),
                ("hungry", "[how about some pancakes?|how about a warm soup?|maybe you could make a sandwich.]"),
                ("afraid", "[do not worry, you are not alone.|breathe slowly.] [what are you afraid of?|]"),
                ("cold", "[drink some hot tea and put on a warm sweater.|take a blanket and have some hot chocolate.]"),
                (
                    "sick",
                    (
                        "[I am sorry. please rest and drink enough water.|I hope that you feel better soon! rest "
                        "and drink some tea.]"
                    ),
                ),
            ]
        )
        return [(ask(rng, f"I [am|am so|feel|feel very|am very] {feeling}."), say(rng, answers))]
    kind = rng.choice(["animals", "colours", "fruits", "drinks", "sports"])
    item = rng.choice(CATEGORIES[kind])
    if rng.random() < 0.5:
        return [
            (
                ask(rng, f"[what are your favourite {kind}?|which {kind} do you like?|what {kind} do you like best?]"),
                say(
                    rng,
                    f"I am only a language model, but I would choose {PLURALS.get(item, item)}. "
                    "[what about you?|which do you like?]",
                ),
            )
        ]
    return [
        (
            ask(rng, f"[I like|I love|I really like] {PLURALS.get(item, item)}."),
            say(
                rng,
                (
                    f"[that is nice!|that is a good choice!|how nice!] [why do you like {PLURALS.get(item, item)}?|"
                    f"I like to talk about {PLURALS.get(item, item)}.]"
                ),
            ),
        )
    ]


def unknown(rng: random.Random, validation: bool) -> list[Turn]:
    """Something outside the domain: say so and offer what there is."""
    topic = rng.choice(UNKNOWN)
    line = ask(
        rng,
        "[tell me about $t.|what do you think about $t?|explain $t.|can you help me with $t?|what do you know "
        "about $t?|"
        "write something about $t.|I need help with $t.|give me advice about $t.]",
        t=topic,
    )
    return [
        (
            line,
            say(
                rng,
                "I am sorry, [I do not know much about $t.|I do not know anything about $t.] [I am a very "
                "small model.|I only know "
                "simple things.] [would you like to hear a story?|but I can tell you a story or answer a "
                "simple question.]",
                t=topic,
            ),
        )
    ]
