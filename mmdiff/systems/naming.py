"""Training a tower without labels: guess from the picture which words its caption holds.

Words are told apart by a hash into so many buckets, so that there is no vocabulary to make or to keep, and each is a
question of its own with its own logit (Joulin et al. 2016, "Learning visual features from large weakly supervised
data"). What the tower has to see for that - colours, forms, places - is what its features are then good for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdiff.batch import Batch, ClipShape
from mmdiff.errors import UserError
from mmdiff.guidance import Guide
from mmdiff.models.tower import Tower
from mmdiff.noise import key
from mmdiff.sampling import Sampler
from mmdiff.systems.base import Logs, Report, System


class Naming(System):
    """A tower and one linear layer: clip -> logits of the words of its caption."""

    def __init__(self, *, tower: Tower, shape: ClipShape, buckets: int = 128) -> None:
        super().__init__()
        self.shape, self.buckets = shape, buckets
        self.learner = nn.ModuleDict({"tower": tower, "head": nn.Linear(2 * tower.width, buckets)})

    def players(self) -> dict[str, nn.Module]:
        return {"learner": self.learner}

    def logits(self, video: Tensor) -> Tensor:
        """(b 3 t h w) -> (b buckets), from the mean and the maximum of the last features over time and space."""
        h = self.learner["tower"](video)[-1].flatten(2)  # (b c n)
        return self.learner["head"](torch.cat([h.mean(2), h.amax(2)], 1))

    def loss(self, batch: Batch, *, seed: int, step: int, player: str = "learner") -> tuple[Tensor, Logs]:
        """Binary cross-entropy, summed over the buckets, mean over clips; logs the share of words found."""
        device = next(self.learner.parameters()).device
        wanted = self.words(batch["text"]).to(device)  # (b buckets)
        logits = self.logits(batch["video"].to(device)).float()
        loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum(1).mean()
        found = (logits > 0).float() * wanted
        return loss, {"found": (found.sum() / wanted.sum().clamp(min=1)).detach()}

    def words(self, texts: Sequence[str]) -> Tensor:
        """Captions -> (b buckets), 1 where a word of that bucket occurs."""
        wanted = torch.zeros(len(texts), self.buckets)
        for row, text in zip(wanted, texts, strict=True):
            for word in re.findall(r"\w+", text.lower()):
                row[key("word", word) % self.buckets] = 1
        return wanted

    def generate(
        self,
        batch: Batch,
        *,
        seed: int,
        steps: int = 0,
        sampler: str | Sampler = "",
        guidance: float | Guide = 1.0,
        shape: ClipShape | None = None,
        report: Report | None = None,
    ) -> Batch:
        raise UserError("A tower looks at clips and makes none; it serves the perceptual loss of an autoencoder.")
