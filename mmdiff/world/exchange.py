"""One fact of a caption exchanged for another: what a model that hears its words has to notice.

The one idea: the words of a fact stand in rows of one style, so an exchange changes what is said and nothing of how.
"""

from __future__ import annotations

import re

from mmdiff import noise
from mmdiff.world.caption import COUNT_WORDS, SHAPE_WORDS, SIZE_WORDS
from mmdiff.world.things import COLOURS

Rows = tuple[tuple[str, ...], ...]
WORDS: dict[str, Rows] = {  # fact -> rows of phrases that mean its values; a way is exchanged for its opposite
    "colour": (tuple(COLOURS),),
    "shape": tuple(zip(*SHAPE_WORDS.values(), strict=True)),
    "size": tuple(zip(*SIZE_WORDS.values(), strict=True)),
    "left or right": (("left", "right"),),
    "up or down": (("up", "down"), ("top", "bottom")),
    "bounces": tuple(zip(*COUNT_WORDS.values(), strict=True)),
    "timbre": (("bell", "wood", "click"),),
}


def exchanged(text: str, fact: str, *, key: int) -> str | None:
    """The caption with the first value of a fact changed to one that it does not name; None if it states none.

    `fact` is a key of WORDS; which of the other values it becomes is drawn by `key`.
    """
    every = "|".join(phrase for row in WORDS[fact] for phrase in row)
    found = re.search(rf"\b({every})\b", text)
    if found is None:
        return None
    (row,) = (row for row in WORDS[fact] if found[0] in row)
    others = [phrase for phrase in row if not re.search(rf"\b{phrase}\b", text)]
    if not others:
        return None
    return text[: found.start()] + others[noise.integer(len(others), key=key)] + text[found.end() :]
