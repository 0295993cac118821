"""Captions of a scene, each with the facts that it states, and the exact way back from a text to its facts.

The one idea: a caption is one clause an object, a clause is a template whose slots are facts, and every slot is
filled from words that mean one thing only; so `parse` can read any template, and only stated facts are ever scored.
Templates are split into train, val and para (held-out paraphrases: unseen clause structures made of words that
train has seen).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from mmdiff import noise
from mmdiff.errors import UserError
from mmdiff.world.physics import truth
from mmdiff.world.things import COLOURS, Facts, ObjectFacts, Scene

SHAPE_WORDS = {"circle": ("circle", "ball"), "square": ("square", "box"), "triangle": ("triangle", "wedge")}
SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
COUNT_WORDS = {
    1: ("once", "1 time"),
    2: ("twice", "2 times"),
    3: ("three times", "3 times"),
    4: ("four times", "4 times"),
}
WAY_WORDS = {
    "left": ("left", "to the left"),
    "right": ("right", "to the right"),
    "up": ("up", "to the top"),
    "down": ("down", "to the bottom"),
}
# One clause: {np} the object with its article, {bare} without; {times} {way} {sound} are empty where not stated.
TEMPLATES: dict[str, dict[str, tuple[str, ...]]] = {
    "train": {
        "drop": (
            "{np} falls and bounces{times}{sound}",
            "{np} drops to the floor and bounces{times}{sound}",
            "{np} is dropped and bounces{times}{sound}",
            "{lead}{np} falls and bounces{times}",
        ),
        "slide": (
            "{np} slides{way} and hits the wall{sound}",
            "{np} moves{way} and hits the wall{sound}",
            "{np} is pushed{way} into the wall{sound}",
            "{lead}{np} slides{way} and hits the wall",
        ),
        "still": ("{np} stays still", "{np} does not move"),
    },
    "val": {
        "drop": ("{np} falls to the floor and bounces{times}{sound}", "{lead}{np} is dropped and bounces{times}"),
        "slide": ("{np} slides{way} into the wall{sound}", "{lead}{np} is pushed{way} into the wall"),
        "still": ("{np} is still",),
    },
    "para": {
        "drop": (
            "the floor is hit{times} as {np} drops{sound}",
            "dropped to the floor, {np} bounces{times}{sound}",
            "{np} bounces{times}{sound}, dropped to the floor",
        ),
        "slide": (
            "the wall is hit as {np} slides{way}{sound}",
            "pushed{way}, {np} hits the wall{sound}",
            "{np} hits the wall{sound}, pushed{way}",
        ),
        "still": ("still, {np} does not move", "{np} is not pushed and stays still"),
    },
}
SHORT: dict[str, dict[str, str]] = {
    "train": {"drop": "{bare} falls, bounces{times}{tag}", "slide": "{bare} slides{way}{tag}", "still": "{bare} still"},
    "val": {"drop": "{bare} drops, bounces{times}{tag}", "slide": "{bare} moves{way}{tag}", "still": "{bare}, still"},
    "para": {"drop": "bounces{times}{tag}: {bare}", "slide": "slides{way}{tag}: {bare}", "still": "still: {bare}"},
}
SOUNDS = {
    "train": (" with a {} sound", " making a {} sound"),
    "val": (" with a {} sound", " and makes a {} sound"),
    "para": (" to the sound of a {}", " with the sound of a {}"),
}
JOINS = (" while ", "; ")

K = TypeVar("K", int, str)


@dataclass(frozen=True)
class Caption:
    """A text and the facts that it states, in the order in which it names the objects."""

    text: str
    facts: Facts


def captions(
    scene: Scene, *, seconds: float, key: int, template_split: str = "train", number: int = 4
) -> list[Caption]:
    """`number` captions: the first states every fact, the last is short, those between drop facts and vary the words.

    A `by_material_text` scene always names its sounds; a `random` scene never does, since nothing could tell them.
    """
    rng, facts = noise.rng(key), truth(scene, seconds)
    if scene.binding == "random":
        facts = tuple(replace(one, timbre=None) for one in facts)
    said = [_caption(rng, facts, template_split, short=False)]
    for i in range(1, number):
        order = [facts[j] for j in rng.permutation(len(facts))]
        chosen = tuple(_drop(rng, one, always=scene.binding == "by_material_text") for one in order)
        said.append(_caption(rng, chosen, template_split, short=i == number - 1))
    return said


def _drop(rng: np.random.Generator, one: ObjectFacts, always: bool) -> ObjectFacts:
    size, way, times, sound = rng.random(4)
    return replace(
        one,
        size=one.size if size < 0.5 else None,
        direction=one.direction if way < 0.9 else None,
        bounces=one.bounces if times < 0.7 else None,
        timbre=one.timbre if always or sound < 0.7 else None,
    )


def _caption(rng: np.random.Generator, facts: Facts, template_split: str, short: bool) -> Caption:
    clauses = [_clause(rng, one, template_split, short) for one in facts]
    return Caption(JOINS[int(short)].join(clauses), facts)


def _clause(rng: np.random.Generator, one: ObjectFacts, template_split: str, short: bool) -> str:
    template = SHORT[template_split][one.motion] if short else _pick(rng, TEMPLATES[template_split][one.motion])
    sound = _pick(rng, SOUNDS[template_split]).format(one.timbre) if one.timbre else ""
    size = _pick(rng, SIZE_WORDS[one.size]) + " " if one.size else ""
    bare = f"{size}{one.colour} {_pick(rng, SHAPE_WORDS[one.shape])}"
    return template.format(
        np=f"a {bare}",
        bare=bare,
        times=" " + _pick(rng, COUNT_WORDS[one.bounces]) if one.bounces else "",
        way=" " + _pick(rng, WAY_WORDS[one.direction]) if one.direction else "",
        sound=sound,
        lead=f"with a {one.timbre} sound, " if one.timbre else "",
        tag=f", {one.timbre}" if one.timbre else "",
    )


def _pick(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[int(rng.integers(len(words)))]


_COLOUR = re.compile(r"\b(" + "|".join(COLOURS) + r")\b")
_NOUN_PHRASE = r"(?:a |an |the |one )?(?:(?:small|little|tiny|large|big) )?(?:" + "|".join(COLOURS) + r")\b"
_JOIN = re.compile(r";|\.|\bwhile\b|\bmeanwhile\b|\band (?=" + _NOUN_PHRASE + ")")
_SHAPE = {
    "circle": r"\b(circle|ball|disc|disk)\b",
    "square": r"\b(square|box|cube)\b",
    "triangle": r"\b(triangle|wedge)\b",
}
_SIZE = {"small": r"\b(small|little|tiny)\b", "large": r"\b(large|big)\b"}
_MOTION = {  # in this order: a slide may bounce off a wall, and what "does not move" may be "pushed"
    "still": r"\b(still|not move|rests|motionless)\b",
    "slide": r"\b(slides?|sliding|moves?|moving|pushed|wall)\b",
    "drop": r"\b(falls?|falling|drops?|dropped|dropping|bounces?|bouncing)\b",
}
_WAY = {
    "left": r"\bleft\b",
    "right": r"\bright\b",
    "up": r"\b(up|upwards?|top)\b",
    "down": r"\b(down|downwards?|bottom)\b",
}
_COUNT = {
    1: r"\b(once|(1|one) time)\b",
    2: r"\b(twice|(2|two) times)\b",
    3: r"\b(thrice|(3|three) times)\b",
    4: r"\b(4|four) times\b",
}
_TIMBRE = {"bell": r"\bbell\b", "wood": r"\b(wood|wooden)\b", "click": r"\b(click|clicking)\b"}


def parse(text: str) -> Facts:
    """The facts that a text states, one entry a clause; exact for every template, lenient in case and punctuation.

    A clause without a colour, a shape or a motion of this world is a UserError that names it.
    """
    clauses = [clause.strip(" ,") for clause in _JOIN.split(text.lower())]
    facts = tuple(_facts(clause) for clause in clauses if clause)
    if not facts:
        raise UserError(
            "The caption is empty, so it states no facts. Write, for example, 'a red ball falls and bounces'."
        )
    return facts


def _facts(clause: str) -> ObjectFacts:
    found = _COLOUR.search(clause)
    shape, motion = _first(_SHAPE, clause), _first(_MOTION, clause)
    if found is None or shape is None or motion is None:
        missing = "colour" if found is None else "shape" if shape is None else "motion"
        raise UserError(
            f"The caption clause {clause!r} names no {missing} of the sounding world, so it cannot be scored. Colours: "
            f"{', '.join(COLOURS)}; shapes: circle or ball, square or box, triangle; motions: falls, slides, is still."
        )
    return ObjectFacts(
        colour=found.group(1),
        shape=shape,
        size=_first(_SIZE, clause),
        motion=motion,
        direction=_first(_WAY, clause) if motion == "slide" else None,
        bounces=_first(_COUNT, clause) if motion == "drop" else None,
        timbre=_first(_TIMBRE, clause),
    )


def _first(table: dict[K, str], clause: str) -> K | None:
    return next((name for name, pattern in table.items() if re.search(pattern, clause)), None)
