"""Muon: torch's own in bf16, and the same mathematics where bf16 would be slow."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmdiff.noise import generator
from mmdiff.train.muon import Muon, orthogonal

SHAPES = [(24, 8), (8, 24), (16, 16)]


def matrices() -> list[nn.Parameter]:
    return [nn.Parameter(torch.randn(shape, generator=generator(i))) for i, shape in enumerate(SHAPES)]


def test_in_bf16_it_is_torchs_bit_for_bit() -> None:
    ours, theirs = matrices(), matrices()
    for made, held in (
        (Muon(ours, lr=0.02, weight_decay=0.1), ours),
        (torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1), theirs),
    ):
        for step in range(3):
            for i, p in enumerate(held):
                p.grad = torch.randn(p.shape, generator=generator(100 * step + i))
            made.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_update_is_nearly_orthogonal_in_either_precision(shape: tuple[int, int]) -> None:
    """The same singular vectors, and values near one: U^T X V is nearly the identity."""
    g = torch.randn(shape, generator=generator(7))
    u, _, v = torch.linalg.svd(g, full_matrices=False)
    exact, low = (orthogonal(g, dtype=dtype).float() for dtype in (torch.float32, torch.bfloat16))
    inner = u.T @ exact @ v.T
    assert (inner - inner.diag().diag()).abs().max() < 1e-4
    assert inner.diag().min() > 0.6 and inner.diag().max() < 1.3
    assert (exact - low).norm() < 0.05 * exact.norm()
