"""Short stories with one hero, one helper, one problem and one ending that agree with each other.

`make_story` returns the text and what a reader should remember of it, so that `chat` can ask about it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from grammar import say, words
from lexicon import ANIMAL_BY_NAME, ANIMALS, BOYS, GIRLS, PETS

PLACES = words(
    "in a small village|at the edge of a dark forest|near a wide river|in a green valley|by the sea|on a quiet farm|"
    "in a little town|at the foot of a high mountain|beside a clear lake|in an old garden",
    "|",
)
TRAITS = words("brave|clever|shy|kind|curious|gentle|cheerful|patient|proud|lazy|careful|hungry", "|")

# plot: (opening wish, problem, what the helper does, ending, one-line problem, one-line help)
PLOTS = {
    "lost key": (
        "$name had a small golden key that opened a secret box.",
        "[One day|One morning], while $name was playing, the key fell [into the tall grass|down a deep hole|"
        "under a pile of "
        "leaves]. $name looked and looked, but $he could not find it.",
        "$helper searched every corner [slowly and carefully|again and again], and at last something shone in "
        "the light. It "
        "was the key!",
        (
            "together they opened the box. Inside they found [an old map|a bag of sweets|a silver bell|a letter "
            "from a friend]."
        ),
        "lost a golden key",
        "found the key",
    ),
    "storm": (
        "$name loved to walk and look at the sky.",
        (
            "[One afternoon|One evening] a great storm came. The wind was loud, the rain was cold, and $name was "
            "far from home."
        ),
        "$helper showed $name a dry [cave|barn|hut] and they waited there together. They told each other funny stories "
        "until the storm was over.",
        "when the sun came back, there was a bright rainbow over the hills.",
        "was caught in a storm",
        "found a dry place",
    ),
    "broken bridge": (
        "$name wanted to visit [an old aunt|a good friend|a big market] on the other side of the river.",
        "but the bridge was broken. The water was deep and fast, and $name did not know what to do.",
        (
            "$helper had an idea. They tied [a long rope|strong branches] between two trees and made a new path "
            "over the water."
        ),
        "step by step they crossed the river, and from that day everyone could use the new bridge.",
        "could not cross the river",
        "made a new bridge",
    ),
    "hungry winter": (
        "all summer long $name played in the sun and never thought of the winter.",
        "then the snow came. It was cold, the cupboard was empty, and $name was very hungry.",
        "$helper opened the door and said that there was enough for two. They shared [a warm soup|a loaf of "
        "bread|nuts and "
        "dried apples] by the fire.",
        "in the next summer $name worked hard and filled $his cupboard to the top.",
        "had no food in the winter",
        "shared a warm meal",
    ),
    "way home": (
        "$name liked to explore new places.",
        (
            "[One day|One morning] $name walked too far and lost $his way. All the trees looked the same, and it "
            "was getting dark."
        ),
        "$helper knew the path well and walked in front with a [small lamp|bright lantern].",
        "soon they saw the lights of the village, and $name ran to $his mother happily.",
        "got lost",
        "showed the way home",
    ),
    "kite": (
        "$name had made a beautiful [red|blue|yellow] kite.",
        "the kite flew high, but a strong wind took it, and it got stuck at the top of a tall tree.",
        "$helper climbed up [branch by branch|very slowly], took the kite and brought it down again.",
        "they flew the kite together until the sun went down.",
        "lost a kite in a tree",
        "brought the kite down",
    ),
    "song": (
        "$name wanted to sing at the big feast.",
        "but $he was so afraid that no sound came out. Some of the others [laughed|smiled and turned away].",
        "$helper sat down beside $name and sang the first line very softly. Then they sang the second line together.",
        "at the feast everyone clapped, and $name was not afraid any more.",
        "was afraid to sing",
        "sang the first line",
    ),
    "well": (
        "$name had to fetch water from the old well every day, and $he never forgot it.",
        (
            "[One day|One morning] the rope broke and the bucket fell into the water. Without the bucket there was "
            "nothing to drink."
        ),
        "$helper [brought a long hook|made a new rope] and pulled the bucket up.",
        "they drank the cool water and rested in the shade.",
        "lost the bucket in the well",
        "pulled the bucket up",
    ),
    "treasure": (
        "$name found an old map with a red cross on it.",
        "the map led to a high hill, but a huge stone lay on the very spot, and $name could not move it alone.",
        "$helper came with a strong pole. They pushed with all their strength, and the stone rolled away.",
        "under the stone was a box full of [gold coins|shining shells|old books], and they shared everything.",
        "could not move a huge stone",
        "helped to push the stone away",
    ),
    "garden": (
        "$name planted [carrots|beans|pumpkins|sunflowers] in $his garden and gave them water every evening.",
        "but it did not rain for many weeks, and the plants became dry and brown.",
        "$helper dug a small channel from the river to the garden, and the water came running in.",
        "in autumn the garden was full, and they had a great feast.",
        "had a dry garden",
        "brought water from the river",
    ),
    "birthday": (
        "it was the birthday of $name, but nobody said a word about it.",
        "$he waited all day and became sadder and sadder. It seemed that everyone had forgotten.",
        "then $helper knocked at the door and asked $name to come outside. All the friends were there with "
        "[lights|flowers|"
        "music] and a big cake!",
        "it was the best birthday that $name had ever had.",
        "thought that everyone had forgotten the birthday",
        "brought a big cake",
    ),
    "boat": (
        "$name built a little boat, because $he wanted to sail to the island.",
        "in the middle of the lake water came into the boat through a hole, and it began to sink.",
        "$helper saw it from the shore, came quickly and closed the hole with [wax|a piece of cloth].",
        "together they sailed to the island and ate [apples|cherries|sandwiches] under a tree.",
        "was in a sinking boat",
        "closed the hole",
    ),
    "false alarm": (
        "$name often told stories that were not true.",
        "[One day|One night] there was a real fire near the house. $name called for help, but nobody believed a word.",
        "only $helper came to look, saw the smoke and put out the fire with a bucket of water.",
        "after that $name always told the truth.",
        "called for help and was not believed",
        "put out the fire",
    ),
    "race": (
        "$name wanted to win the big race.",
        "but [right at the start|near the end] $name fell and hurt $his foot. The others ran past and did not stop.",
        '$helper stopped, helped $name up and said, "Let us finish the race together."',
        "they were the last to arrive, but the whole village cheered for them.",
        "fell in the big race",
        "stopped to help",
    ),
    "new friend": (
        "$name was new and did not know anyone.",
        "every day $he sat alone and watched the others play. It was a lonely time.",
        '$helper came over, smiled and asked, "Would you like to play with us?"',
        "from then on they met every day after [breakfast|lunch|school] and played until the evening.",
        "had no friends",
        "asked the hero to play",
    ),
}
_SHE, _HE = [{"he": "she", "his": "her"}], [{"he": "he", "his": "his"}]
PRONOUNS = {"girl": _SHE, "princess": _SHE, "witch": _SHE, "boy": _HE, "king": _HE, "prince": _HE}
PEOPLE = words("dragon|princess|prince|king|witch|robot|giant|knight|pirate|wizard", "|")  # heroes that are no animals
MORALS = (
    "a good friend is worth more than gold",
    "it is good to help each other",
    "two can do more than one",
    "kindness always comes back",
    "it is never too late to learn",
    "small deeds can make a big difference",
    "courage grows when we are not alone",
    "patience leads to good things",
)


@dataclass(frozen=True)
class Story:
    """A finished story and the facts in it that can be asked for."""

    title: str
    text: str
    name: str
    kind: str
    helper: str
    helper_kind: str
    problem: str
    help: str
    moral: str


def held_out(kind: str, plot: str) -> bool:
    """One hero and plot in twelve never meets in training: the validation text uses exactly these."""
    kinds = [*sorted(ANIMAL_BY_NAME), "boy", "girl", *PEOPLE]
    return (7 * kinds.index(kind) + 5 * sorted(PLOTS).index(plot)) % 12 == 0


def _cast(rng: random.Random, kind: str) -> str:
    if kind == "girl":
        return rng.choice(GIRLS)
    if kind == "boy":
        return rng.choice(BOYS)
    return rng.choice(PETS)


def pick_kind(rng: random.Random) -> str:
    """A kind of hero: mostly animals, sometimes a child or somebody from a fairy tale."""
    roll = rng.random()
    if roll < 0.3:
        return rng.choice(["girl", "boy"] if roll < 0.17 else PEOPLE)
    return rng.choice(ANIMALS).name


def make_story(rng: random.Random, validation: bool, kind: str = "", short: bool = False) -> Story:
    """Write a story about `kind` (any if empty), from the hero and plot pairs that belong to the split."""
    while True:
        hero_kind = kind or pick_kind(rng)
        plot = rng.choice(list(PLOTS))
        if held_out(hero_kind, plot) == validation:
            break
    wish, problem, help_, ending, problem_line, help_line = PLOTS[plot]
    helper_kind = rng.choice([other for other in ANIMALS if other.name != hero_kind]).name
    name, helper = _cast(rng, hero_kind), rng.choice(PETS)
    while helper == name:
        helper = rng.choice(PETS)
    values = {
        "name": name,
        "kind": hero_kind,
        "place": rng.choice(PLACES),
        "trait": rng.choice(TRAITS),
        "helper": helper,
        "friend": helper_kind,
        "moral": rng.choice(MORALS),
        "other": rng.choice(TRAITS),
    } | rng.choice(PRONOUNS[hero_kind] if hero_kind in PRONOUNS else _SHE + _HE)
    parts = [
        "[once upon a time there was|once there was|there once was] a $trait $kind [named|called] $name [who "
        "lived|that lived] "
        "$place."
        if rng.random() < 0.75
        else "$place there lived a $trait $kind [named|called] $name.",
        wish,
        problem,
        (
            "[just then|at that moment|after a while|luckily] a $other $friend [named|called] $helper came [by|"
            "along|down the road]."
        ),
        ""
        if short
        else '["what is wrong?" asked $helper.|"can I help you?" asked $helper.|"do not be sad," said $helper.|'
        '"why do you look so sad?" asked $helper.] ["please help me," said $name.|$name told $helper everything.|'
        '"I do not know what to do," said $name.]',
        help_,
        ending,
        ""
        if short
        else '["thank you," said $name. "You are a true friend."|$name thanked $helper again and again.|'
        '"thank you so much!" said $name.|]',
        "[$name learned that $moral.|that day $name learned that $moral.|and so $name and $helper became the "
        "best of friends.|"
        "from that day on $name knew that $moral.]",
    ]
    text = " ".join(said for part in parts if (said := say(rng, part, **values)))
    title = say(rng, f"$name and the {plot}" if rng.random() < 0.5 else f"the $trait $kind and the {plot}", **values)
    return Story(title, text, name, hero_kind, helper, helper_kind, problem_line, help_line, values["moral"])


def summary(rng: random.Random, story: Story) -> str:
    """Two or three sentences that repeat the story's facts."""
    return say(
        rng,
        "[the story is about|this is the story of] $name, a $kind who $problem. A $friend [named|called] $helper "
        "[$help.|came and $help.] [In the end they were friends.|In the end everything was well.|It ends well.]",
        name=story.name,
        kind=story.kind,
        problem=story.problem,
        friend=story.helper_kind,
        helper=story.helper,
        help=story.help.replace("the hero", story.name),
    )
