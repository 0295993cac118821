"""The null condition: the same batch, of which nothing is said."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from mmdiff.batch import Batch


def emptied(batch: Batch) -> Batch:
    """The same clips with nothing said about them but the `negative` text, if the batch has one."""
    gone = dropped(batch, torch.ones(len(batch["text"]), dtype=torch.bool))
    return cast(Batch, {**gone, "text": batch["negative"]}) if "negative" in batch else gone


def dropped(batch: Batch, drop: Tensor) -> Batch:
    """The same clips, their text emptied and nothing else said of them where drop (b,) is True."""
    text = ["" if gone else text for text, gone in zip(batch["text"], drop.tolist(), strict=True)]
    return cast(Batch, {**batch, "text": text, "said": ~drop})
