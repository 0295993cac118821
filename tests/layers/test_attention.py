"""Patterns against loops over groups, and the plain formula against torch's kernel, in value and gradient."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmdiff import noise
from mmdiff.errors import UserError
from mmdiff.layers import attention as module
from mmdiff.layers.attention import attention, attention_flops, grouped_attention, groups, heads_of, merge_heads

GRID, WINDOW = (4, 6, 4), (2, 3, 2)
PATTERNS = ["full", "spatial", "temporal", "window", "grid"]
each_pattern = pytest.mark.parametrize("pattern", PATTERNS)
Cell = tuple[int, int, int]


def qkv(grid: Cell = GRID) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (noise.normal((*grid, 2, 5), keys=[i, 10 + i]) for i in range(3))  # (b t h w k e)
    return q, k, v


def sees(pattern: str, i: Cell, j: Cell) -> bool:
    """Whether the token at i sees the token at j, in words instead of rearrangements."""
    strides = [n // s for n, s in zip(GRID, WINDOW, strict=True)]
    return {
        "full": True,
        "spatial": i[0] == j[0],
        "temporal": i[1:] == j[1:],
        "window": all(a // s == b // s for a, b, s in zip(i, j, WINDOW, strict=True)),
        "grid": all(a % s == b % s for a, b, s in zip(i, j, strides, strict=True)),
    }[pattern]


def cells(grid: Cell) -> Iterator[Cell]:
    yield from product(*map(range, grid))


@each_pattern
def test_patterns_equal_loops(pattern: str) -> None:
    q, k, v = qkv()
    found = grouped_attention(q, k, v, pattern=pattern, window=WINDOW)
    for i in cells(GRID):
        others = [j for j in cells(GRID) if sees(pattern, i, j)]
        assert len(others) == groups(pattern, GRID, WINDOW)
        keys, values = (torch.stack([z[:, t, h, w] for t, h, w in others], 2) for z in (k, v))  # (b k m e)
        scores = torch.einsum("bke,bkme->bkm", q[:, i[0], i[1], i[2]], keys) / 5**0.5
        want = torch.einsum("bkm,bkme->bke", scores.softmax(-1), values)
        torch.testing.assert_close(found[:, i[0], i[1], i[2]], want, atol=1e-5, rtol=1e-5)


def by_kernel(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


@each_pattern
def test_the_kernel_equals_the_formula_in_every_pattern(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for formula in (module.math_attention, by_kernel):
        monkeypatch.setattr(module, "math_attention", formula)
        inputs = [z.requires_grad_() for z in qkv()]
        y = grouped_attention(*inputs, pattern=pattern, window=WINDOW)
        y.backward(noise.normal(y.shape[1:], keys=[5, 6]))
        found.append([y.detach(), *(z.grad for z in inputs)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_the_kernel_equals_the_formula_under_a_mask() -> None:
    q, k, v = (noise.normal((2, n, 5), keys=[i, 10 + i]) for i, n in enumerate((7, 4, 4)))
    mask = torch.tensor([[True, True, False, True], [True, False, False, False]])
    y = attention(q, k, v, mask=mask)
    torch.testing.assert_close(y, by_kernel(q, k, v, mask[:, None, None, :]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(y[1], v[1, :, :1].expand_as(y[1]))  # one real key: its value, whatever the scores
    k[0, :, 2], v[0, :, 2] = 100.0, 100.0
    assert torch.equal(attention(q, k, v, mask=mask), y)  # what is masked is not read


def test_bfloat16_stays() -> None:
    q, k, v = (z.flatten(1, 3).transpose(1, 2).bfloat16() for z in qkv())
    y = attention(q, k, v)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), attention(q.float(), k.float(), v.float()), atol=0.03, rtol=0.03)


def test_a_window_larger_than_the_grid_is_the_whole_grid() -> None:
    q, k, v = qkv((2, 3, 2))
    whole = grouped_attention(q, k, v, pattern="full", window=WINDOW)
    for pattern in ("window", "grid"):
        torch.testing.assert_close(grouped_attention(q, k, v, pattern=pattern, window=(9, 9, 9)), whole)


@pytest.mark.parametrize("pattern", ["window", "grid"])
def test_a_window_that_does_not_divide_is_named(pattern: str) -> None:
    with pytest.raises(UserError, match=r"window \[2, 4, 2\].*grid of \[4, 6, 4\] tokens"):
        grouped_attention(*qkv(), pattern=pattern, window=(2, 4, 2))


def test_heads_come_back() -> None:
    x = noise.normal((7, 12), keys=[0, 1])
    assert heads_of(x, 3).shape == (2, 3, 7, 4) and torch.equal(merge_heads(heads_of(x, 3)), x)
    assert torch.equal(heads_of(x, 3)[:, 1, 2], x[:, 2, 4:8])


def test_flops_count_two_products() -> None:
    assert attention_flops(3, 5, 8) == 2 * (3 * 5 * 8) * 2
