"""Whole tensors cut among any number of ranks and put together again, in both ways of cutting; nobody is launched."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mmdiff import noise
from mmdiff.train import shares
from mmdiff.train.shares import Cut, Flat, Pieces, flat_slices, piece_slices

SHAPES = {"matrix": (7, 5), "gain": (3,), "one": (1,), "image": (2, 3, 2, 2), "bias": (11,)}
WORLDS = (1, 2, 3, 4, 8)


def flat(world: int, rank: int) -> Flat:
    """A rank's share as ZeRO-1 and 2 lay it out: two groups, each padded to a multiple of the ranks."""
    named = {name: nn.Parameter(torch.zeros(shape)) for name, shape in SHAPES.items()}
    groups = [[p for p in named.values() if p.ndim > 1], [p for p in named.values() if p.ndim < 2]]
    sizes = [-(-sum(p.numel() for p in group) // world) for group in groups]
    offsets = [[sum(p.numel() for p in group[:i]) for i in range(len(group))] for group in groups]
    zero = SimpleNamespace(
        single_partition_of_fp32_groups=[torch.zeros(size) for size in sizes],
        round_robin_bit16_groups=groups,
        round_robin_bit16_offsets=offsets,
        bit16_groups_flat=[torch.zeros(1)],
    )
    return Flat(named, zero, rank, world)


def pieces(world: int, rank: int) -> Pieces:
    """A rank's share as ZeRO-3 lays it out: a piece of each tensor, the pieces one after another in one buffer."""
    named = {name: nn.Parameter(torch.zeros(shape)) for name, shape in SHAPES.items()}
    places, at = {}, 0
    for p in named.values():
        p.ds_numel, p.ds_shape, piece = p.numel(), p.shape, -(-p.numel() // world)
        places[id(p)] = (0, at, piece)
        at += piece
    zero = SimpleNamespace(fp32_partitioned_groups_flat=[torch.zeros(at)], get_param_id=id, grad_position=places)
    return Pieces(named, zero, rank, world)


def together(monkeypatch: pytest.MonkeyPatch, ranks: list[Cut]) -> dict[str, Tensor]:
    """What the first rank gathers if the others hold what they hold; a collective call finds them by address."""

    def everyones(mine: Tensor, world: int, device: torch.device) -> Tensor:
        for i, buffer in enumerate(ranks[0].local):
            first = (mine.data_ptr() - buffer.data_ptr()) // 4
            if 0 <= first < buffer.numel():
                return torch.cat([rank.local[i][first : first + mine.numel()] for rank in ranks])
        raise AssertionError("the gathered tensor is no part of the share")

    monkeypatch.setattr(shares, "_all", everyones)
    return dict(ranks[0].gather(list(ranks[0].local)))


@pytest.mark.parametrize("before", [flat, pieces])
@pytest.mark.parametrize("after", [flat, pieces])
def test_any_number_of_ranks_hands_over_to_any_other(monkeypatch, before, after):
    whole = {name: noise.normal(shape, keys=[noise.key("share", name)])[0] for name, shape in SHAPES.items()}
    for some in WORLDS:
        for others in WORLDS:
            held = whole
            for made, world in ((before, some), (after, others)):
                ranks = [made(world, rank) for rank in range(world)]
                for rank in ranks:
                    rank.scatter(held.get, rank.local)
                held = together(monkeypatch, ranks)
            assert held.keys() == whole.keys()
            assert all(torch.equal(held[name], whole[name]) for name in whole), (some, others)


def test_what_a_checkpoint_does_not_hold_is_left_alone_and_told():
    for made in (flat, pieces):
        share = made(2, 0)
        values = [torch.full_like(t, 7.0) for t in share.local]
        assert share.scatter(lambda name: None, values) == [False] * len(values)
        assert all((value == 7).all() for value in values)


lengths = st.lists(st.integers(1, 40), min_size=1, max_size=6)


@given(lengths=lengths, world=st.integers(1, 9))
def test_slices_tile_every_tensor_once_and_never_overlap_in_a_buffer(lengths, world):
    begins = [sum(lengths[:i]) for i in range(len(lengths))]
    names = [f"t{i}" for i in range(len(lengths))]
    size = -(-sum(lengths) // world)
    group = [list(zip(names, lengths, begins))]
    cuts = [-(-n // world) for n in lengths]
    places = {t: (0, sum(cuts[:i]), cuts[i], lengths[i]) for i, t in enumerate(names)}
    for every in (
        [flat_slices(group, [size], rank) for rank in range(world)],
        [piece_slices(places, rank) for rank in range(world)],
    ):
        seen = [(s.name, s.first + i) for slices in every for s in slices for i in range(s.count)]
        assert sorted(seen) == sorted((t, i) for t, n in zip(names, lengths) for i in range(n))
        for slices in every:
            used = [s.at + i for s in slices for i in range(s.count)]
            assert len(used) == len(set(used))
