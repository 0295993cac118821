"""What a network is told, made from what a clip is: Batch -> Cond, keyed by route (tokens, vector), never by source.

The one idea: there is no null embedding. The null condition is the same conditioner on the emptied batch, whose texts
are "": condition dropout, classifier-free guidance (Ho and Salimans 2022) and negative prompts are one mechanism.
"""

from __future__ import annotations

from collections.abc import Callable

from mmdiff.batch import Batch, Cond
from mmdiff.conditioners.frame import Frame, FrameTokens, connect
from mmdiff.conditioners.merging import Conditioners
from mmdiff.conditioners.nothing import dropped, emptied
from mmdiff.conditioners.numbers import FrameRate, Label, MotionBucket, Number
from mmdiff.conditioners.pretrained import HFText
from mmdiff.conditioners.text import Text, masked_mean

Conditioner = Callable[[Batch], Cond]  # an nn.Module whose forward has this signature

__all__ = [
    "Conditioner",
    "Conditioners",
    "Frame",
    "FrameRate",
    "FrameTokens",
    "HFText",
    "Label",
    "MotionBucket",
    "Number",
    "Text",
    "connect",
    "dropped",
    "emptied",
    "masked_mean",
]
