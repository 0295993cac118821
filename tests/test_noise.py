"""Draws are functions of their keys: of nothing else, and the same ones for ever."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from mmdiff import noise


def test_keys_are_stable() -> None:
    """Golden: changing them changes every experiment that was ever run."""
    assert noise.key(0, "noise", 3, "a") == 7997364599265987565
    assert noise.keys(0, "noise", 3, ["a", "b"]) == [noise.key(0, "noise", 3, "a"), noise.key(0, "noise", 3, "b")]


def test_draws_are_stable() -> None:
    k = noise.key(0, "noise", 3, "a")
    small = torch.tensor([[0.6339, -1.7238, 0.1143, 1.3379]])
    torch.testing.assert_close(noise.normal((4,), keys=[k]), small, rtol=0, atol=1e-4)
    large = torch.tensor([0.3772, 0.0407, 0.3469, 1.7341])  # torch draws 16 numbers and more in another order
    torch.testing.assert_close(noise.normal((20,), keys=[k])[0, :4], large, rtol=0, atol=1e-4)
    assert noise.uniform(keys=[k]).item() == pytest.approx(0.8061, abs=1e-4)
    assert noise.integer(1000, key=k) == 247
    assert noise.permutation(8, key=k).tolist() == [7, 3, 1, 6, 0, 2, 5, 4]


def test_keys_tell_every_list_of_parts_apart() -> None:
    lists: list[tuple[int | str, ...]] = [(), (1,), ("1",), (1, 2), (2, 1), (12,), ("1", "2"), ("12",), ("1, 2",)]
    lists += [('1", "2',), ("1\x1fstr:2",), ("",), ("", ""), (-1,), ("é",), ("e\u0301",)]
    values = [noise.key(*parts) for parts in lists]
    assert len(set(values)) == len(values)
    assert all(0 <= value < 2**63 for value in values)


def test_keys_take_integers_of_any_library_and_nothing_vaguer() -> None:
    assert noise.key(np.int64(3)) == noise.key(3) == noise.key(torch.tensor(3))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        noise.key(0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(3,), (3, 5, 7), (1, 16)])
def test_a_sample_does_not_depend_on_its_batch(shape: tuple[int, ...]) -> None:
    keys = noise.keys(1, "noise", 0, list("abcd"))
    whole = noise.normal(shape, keys=keys)
    assert whole.shape == (4, *shape) and whole.dtype == torch.float32
    for order in itertools.islice(itertools.permutations(range(4)), 0, 24, 5):
        assert torch.equal(noise.normal(shape, keys=[keys[i] for i in order]), whole[list(order)])
    assert torch.equal(torch.cat([noise.uniform(keys=[k]) for k in keys]), noise.uniform(keys=keys))


def test_global_state_is_neither_read_nor_moved() -> None:
    torch.manual_seed(0)
    before, first = torch.get_rng_state(), noise.normal((5,), keys=[1])
    noise.uniform(keys=[2]), noise.integer(9, key=3), noise.permutation(9, key=4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(noise.normal((5,), keys=[1]), first)


def test_draws_over_keys_have_their_distribution() -> None:
    keys = noise.keys(0, "statistics", 0, [str(i) for i in range(4000)])
    u = noise.uniform(keys=keys).double()
    assert u.min() > 0 and u.max() < 1
    gap = (u.sort().values - (torch.arange(4000) + 0.5) / 4000).abs().max().item()
    assert gap < 1.95 / 4000**0.5  # Kolmogorov-Smirnov at 1e-3
    x = noise.normal((3,), keys=keys).double()
    assert x.mean().abs() < 4 / 12000**0.5 and (x.var() - 1).abs() < 4 * (2 / 12000) ** 0.5
    assert (x[:-1] * x[1:]).mean().abs() < 4 / 12000**0.5  # neighbours
    counts = torch.bincount(torch.tensor([noise.integer(5, key=k) for k in keys]), minlength=5)
    assert len(counts) == 5 and (counts - 800).abs().max() < 4 * 800**0.5


def test_uniform_never_reaches_its_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (0.0, 1 - 2**-53):
        monkeypatch.setattr(torch, "rand", lambda *_, value=value, **__: torch.tensor(value, dtype=torch.float64))
        assert 0 < noise.uniform(keys=[0]).item() < 1


def test_permutations_permute() -> None:
    for n in (0, 1, 2, 97):
        assert sorted(noise.permutation(n, key=n).tolist()) == list(range(n))
    assert noise.permutation(50, key=1).tolist() != noise.permutation(50, key=2).tolist()
    assert noise.permutation(50, key=1).tolist() == noise.permutation(50, key=1).tolist()


def test_numpy_generators_belong_to_their_keys() -> None:
    assert noise.rng(7).random(4).tolist() == noise.rng(7).random(4).tolist() != noise.rng(8).random(4).tolist()
