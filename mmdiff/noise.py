"""Randomness is a function: every draw is determined by a key, never by a global state.

A key is hashed from (seed, purpose, step, sample id), so a draw does not depend on the rank, the world size, the batch
layout or the number of loader workers; a resumed run repeats it with no generator saved, and two arms of an ablation
share it. Numbers are drawn on the CPU and moved, so that every device sees the same ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from operator import index

import numpy as np
import torch
from torch import Tensor


def key(*parts: int | str) -> int:
    """A 63-bit key that depends on every part, on its type and on their order.

    Torch seeds from the lower 32 bits, so one pair of keys in 4e9 draws the same numbers.
    """
    text = json.dumps([part if isinstance(part, str) else index(part) for part in parts])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def keys(seed: int, purpose: str, step: int, ids: Sequence[str]) -> list[int]:
    """One key per sample id."""
    return [key(seed, purpose, step, name) for name in ids]


def generator(k: int) -> torch.Generator:
    """A CPU generator of the key alone; one purpose a key, because two kinds of draws from it are correlated."""
    return torch.Generator().manual_seed(k)


def rng(k: int) -> np.random.Generator:
    """A NumPy generator that belongs to the key alone, for the parts of the house that need no torch."""
    return np.random.Generator(np.random.PCG64(k))


def normal(shape: Sequence[int], *, keys: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Standard normal noise of one `shape` per key -> (b *shape) float32."""
    return torch.stack([torch.randn(tuple(shape), generator=generator(k)) for k in keys]).to(device)


def uniform(*, keys: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """One number in the open interval (0, 1) per key -> (b,) float32."""
    draws = [torch.rand((), generator=generator(k), dtype=torch.float64) for k in keys]
    return torch.stack(draws).clamp(1e-7, 1 - 1e-7).float().to(device)


def integer(n: int, *, key: int) -> int:
    """One integer in [0, n)."""
    return int(torch.randint(n, (), generator=generator(key)))


def permutation(n: int, *, key: int) -> Tensor:
    """A permutation of range(n) -> (n,) int64."""
    return torch.randperm(n, generator=generator(key))
