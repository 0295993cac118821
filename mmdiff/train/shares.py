"""Which float32 numbers a rank owns, and the way from these shares to whole tensors by name and back.

A checkpoint holds whole named tensors and a rank takes its share of them, so that no file knows how many ranks or which
ZeRO stage wrote it: a map from names to slices is all that a stage and a number of ranks decide. Every share is a list
of local tensors in one fixed order; the weights, their average and each moment of the optimizer are such lists.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Values = list[Tensor | None]  # one for each local tensor; None where the optimizer has no such moment


class Shares(ABC):
    """`local` are the float32 tensors that this rank's optimizer updates."""

    local: list[Tensor]

    @abstractmethod
    def gather(self, values: Values) -> Iterator[tuple[str, Tensor]]:
        """Whole tensors by name from every rank's values; all ranks must iterate together."""

    @abstractmethod
    def scatter(self, whole: Callable[[str], Tensor | None], into: list[Tensor]) -> list[bool]:
        """Copy this rank's share of the named whole tensors; None keeps what was there -> which were written to."""

    @abstractmethod
    def publish(self) -> None:
        """Bring the modules' weights up to date with `local`."""


class Whole(Shares):
    """Every rank owns everything: one process, or DeepSpeed's stage 0."""

    def __init__(self, named: Mapping[str, nn.Parameter], groups: list[dict[str, Any]]) -> None:
        names = {id(p): name for name, p in named.items()}
        self.local = [p for group in groups for p in group["params"]]
        self.names = [names[id(p)] for p in self.local]

    def gather(self, values: Values) -> Iterator[tuple[str, Tensor]]:
        for name, value in zip(self.names, values):
            if value is not None:
                yield name, value.detach()

    def scatter(self, whole: Callable[[str], Tensor | None], into: list[Tensor]) -> list[bool]:
        values = [whole(name) for name in self.names]
        for value, target in zip(values, into):
            if value is not None:
                target.detach().copy_(value)
        return [value is not None for value in values]

    def publish(self) -> None:
        """They are the same tensors."""


@dataclass(frozen=True)
class Slice:
    """`count` numbers of the flattened tensor `name`, from `first` on; they lie in a local buffer from `at` on."""

    name: str
    buffer: int
    at: int
    first: int
    count: int


def flat_slices(groups: Sequence[Sequence[tuple[str, int, int]]], sizes: Sequence[int], rank: int) -> list[Slice]:
    """A rank's slices of flat buffers, each cut into slices of `sizes`; groups hold (name, length, where it begins)."""
    slices = []
    for buffer, (tensors, size) in enumerate(zip(groups, sizes, strict=True)):
        begin = rank * size
        for name, length, at in tensors:
            low, high = max(at, begin), min(at + length, begin + size)
            if low < high:
                slices.append(Slice(name, buffer, low - begin, low - at, high - low))
    return slices


def piece_slices(places: Mapping[str, tuple[int, int, int, int]], rank: int) -> list[Slice]:
    """A rank's slices of tensors that are cut one by one: name -> (buffer, where it begins, a piece's length, all)."""
    cut = {
        name: (b, at, piece, rank * piece, min(piece, n - rank * piece)) for name, (b, at, piece, n) in places.items()
    }
    return [Slice(name, b, at, first, count) for name, (b, at, _, first, count) in cut.items() if count > 0]


class Cut(Shares):
    """The shares of ZeRO stages that cut tensors up."""

    slices: list[Slice]

    def scatter(self, whole: Callable[[str], Tensor | None], into: list[Tensor]) -> list[bool]:
        written = [False] * len(into)
        for s in self.slices:
            if (value := whole(s.name)) is not None:
                into[s.buffer].detach()[s.at : s.at + s.count].copy_(value.flatten()[s.first : s.first + s.count])
                written[s.buffer] = True
        return written


class Flat(Cut):
    """ZeRO stages 1 and 2: each optimizer group is one flat buffer, cut into equal slices, a slice a rank."""

    def __init__(self, named: Mapping[str, nn.Parameter], zero: Any, rank: int, world: int) -> None:
        self.zero, self.world = zero, world
        self.local = zero.single_partition_of_fp32_groups
        names = {id(p): name for name, p in named.items()}
        groups = zip(zero.round_robin_bit16_groups, zero.round_robin_bit16_offsets)
        self.places = [[(names[id(p)], p.shape, at) for p, at in zip(*group)] for group in groups]
        lengths = [[(name, shape.numel(), at) for name, shape, at in places] for places in self.places]
        self.slices = flat_slices(lengths, [t.numel() for t in self.local], rank)

    def gather(self, values: Values) -> Iterator[tuple[str, Tensor]]:
        for value, places in zip(values, self.places):
            if value is not None:
                flat = _all(value, self.world, self.zero.bit16_groups_flat[0].device)
                for name, shape, at in places:
                    yield name, flat[at : at + shape.numel()].view(shape)

    def publish(self) -> None:
        self.zero.update_lp_params()


class Pieces(Cut):
    """ZeRO stage 3: every parameter is cut into equal pieces, a piece a rank, kept together in flat buffers."""

    def __init__(self, named: Mapping[str, nn.Parameter], zero: Any, rank: int, world: int) -> None:
        self.zero, self.world = zero, world
        self.local = zero.fp32_partitioned_groups_flat
        self.named: dict[str, Any] = {
            name: p for name, p in named.items() if zero.get_param_id(p) in zero.grad_position
        }
        places = {name: (*self._place(p), int(p.ds_numel)) for name, p in self.named.items()}
        self.slices = piece_slices(places, rank)

    def _place(self, p: Any) -> tuple[int, int, int]:
        """(buffer, first element, number of elements) of a parameter's piece."""
        buffer, first, count = self.zero.grad_position[self.zero.get_param_id(p)]
        return int(buffer), int(first), int(count)

    def gather(self, values: Values) -> Iterator[tuple[str, Tensor]]:
        for name, p in self.named.items():
            buffer, first, count = self._place(p)
            if (value := values[buffer]) is not None:
                flat = _all(value.detach()[first : first + count], self.world, p.device)
                yield name, flat[: p.ds_numel].view(p.ds_shape)

    @torch.no_grad()
    def publish(self) -> None:
        self.zero._partition_all_parameters()
        for buffer in range(len(self.local)):
            self.zero._reassign_or_swap_out_partitioned_parameters(buffer)
        if kept := self.zero.persistent_parameters:
            kept[0].all_gather(kept)


def _all(mine: Tensor, world: int, device: torch.device) -> Tensor:
    """The ranks' flat tensors of equal size, one after another."""
    mine = mine.detach().to(device).contiguous()
    if world == 1:
        return mine
    out = torch.empty(world * mine.numel(), dtype=mine.dtype, device=device)
    torch.distributed.all_gather_into_tensor(out, mine)
    return out
