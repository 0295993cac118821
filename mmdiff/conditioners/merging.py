"""Several conditioners as one, merged by the routes that their conditions take."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmdiff.batch import Batch, Cond
from mmdiff.errors import UserError


class Conditioners(nn.Module):
    """Several conditioners, merged route by route: tokens and channels side by side, vectors added.

    None at all: unconditional.
    """

    def __init__(self, parts: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, batch: Batch) -> Cond:
        """tokens (b l d), mask (b l), concat (b c ...), with l and c summed over the parts; vector (b d)."""
        conds: list[Cond] = [part(batch) for part in self.parts]
        merged = Cond()
        if tokens := [c["tokens"] for c in conds if "tokens" in c]:
            _check_widths("tokens", tokens)
            merged["tokens"] = torch.cat(tokens, 1)
            merged["mask"] = torch.cat([_mask(c) for c in conds if "tokens" in c], 1)
        if vectors := [c["vector"] for c in conds if "vector" in c]:
            _check_widths("vector", vectors)
            merged["vector"] = torch.stack(vectors).sum(0)
        if beside := [c["concat"] for c in conds if "concat" in c]:
            merged["concat"] = torch.cat(beside, 1)
        return merged


def _mask(cond: Cond) -> Tensor:
    tokens = cond["tokens"]
    return cond["mask"] if "mask" in cond else torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)


def _check_widths(route: str, found: Sequence[Tensor]) -> None:
    widths = [x.shape[-1] for x in found]
    if len(set(widths)) > 1:
        raise UserError(f"conditioners: their {route} have widths {widths}, but only equal widths can be merged.")
