"""Which clips make which step, for data of one shape and of many.

The one idea: a bucket is a shape with an endless stream of its clips, and a plan is a pure function of the step that
names places in these streams; so ranks, workers and resumed runs agree, and every clip has its turn. A step holds as
many tokens as the config says: clips of one bucket (`Bucketed`), or clips of all of them, packed into sequences of
bounded length (`Packed`; Dehghani et al. 2023, NaViT).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, count
from typing import Protocol

from mmdiff import noise
from mmdiff.batch import ClipShape
from mmdiff.errors import UserError

Index = int | tuple[int, int]  # a position, in the data's own shape or (bucket, position in the bucket's stream)
Unit = list[Index]  # clips that one rank reads together


@dataclass(frozen=True)
class Budget:
    """What a step may cost, over all ranks and micro steps, and what a clip of some shape costs."""

    tokens: int
    cost: Callable[[ClipShape], int]


class Plan(Protocol):
    """Which clips make a step."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """The numbers of units that occur in a step; ranks and micro steps must divide them."""

    @property
    def mean(self) -> float:
        """Clips a step, on average."""

    @property
    def budget(self) -> int | None:
        """Tokens of a step if its clips are packed."""

    @property
    def rehearsal(self) -> Sequence[int]:
        """Steps that between them need all the memory that any needs, if the first alone does not."""

    def step(self, step: int) -> list[Unit]:
        """The units of a step, 0 being the first."""


class Layout(Protocol):
    """How an epoch's clips become steps of so many tokens."""

    def __call__(self, epoch: Epoch, tokens: int) -> Plan: ...


@dataclass(frozen=True)
class Epoch:
    """What there is of each bucket: its name, its number of clips and the tokens of one of them."""

    names: tuple[str, ...]
    counts: tuple[int, ...]
    costs: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Line:
    """The plan of one shape: position after position."""

    batch: int
    budget: None = None
    rehearsal: tuple[int, ...] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.batch,)

    @property
    def mean(self) -> float:
        return self.batch

    def step(self, step: int) -> list[Unit]:
        return [[position] for position in range(step * self.batch, (step + 1) * self.batch)]


@dataclass(frozen=True)
class Bucketed:
    """Every step takes clips of one bucket: as many as the tokens hold, rounded down to a multiple of `multiple`.

    What an epoch leaves of a bucket waits for the next one. Steps come in random order, and a bucket's share of them is
    its share of the tokens, so every token counts the same.
    """

    multiple: int = 1

    def __call__(self, epoch: Epoch, tokens: int) -> Plan:
        sizes = [tokens // cost // self.multiple * self.multiple for cost in epoch.costs]
        for name, size, cost in zip(epoch.names, sizes, epoch.costs, strict=True):
            if size < 1:
                raise UserError(f"tokens: {tokens} does not hold {self.multiple} clips of {name}, {cost} tokens each.")
        return BucketPlan(epoch.counts, tuple(sizes), epoch.seed)


@dataclass(frozen=True)
class BucketPlan:
    """`counts` clips of each bucket in an epoch, `clips` of them in a step."""

    counts: tuple[int, ...]
    clips: tuple[int, ...]
    seed: int
    budget: None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(c for n, c in zip(self.counts, self.clips, strict=True) if n)

    @property
    def mean(self) -> float:
        return sum(self.counts) / sum(n / c for n, c in zip(self.counts, self.clips, strict=True))

    def step(self, step: int) -> list[Unit]:
        last = 1
        while self.before(last) <= step:
            last *= 2
        epoch = bisect_right(range(last), step, key=self.before) - 1
        bucket, turn = _turns(self.counts, self.clips, self.seed, epoch)[step - self.before(epoch)]
        size = self.clips[bucket]
        return [[(bucket, position)] for position in range(turn * size, (turn + 1) * size)]

    @property
    def rehearsal(self) -> Sequence[int]:
        """The first step of every bucket."""
        firsts: dict[int, int] = {}
        for epoch in count():
            turns = _turns(self.counts, self.clips, self.seed, epoch)
            for i, (bucket, _) in enumerate(turns, start=self.before(epoch)):
                firsts.setdefault(bucket, i)
            if len(firsts) == len(self.sizes):
                return sorted(firsts.values())
        raise AssertionError  # every bucket that holds clips has its turn

    def before(self, epoch: int) -> int:
        """Whole steps that the epochs before this one gave: what was left over is carried on."""
        return sum(epoch * n // c for n, c in zip(self.counts, self.clips, strict=True))


@lru_cache(maxsize=2)
def _turns(counts: tuple[int, ...], clips: tuple[int, ...], seed: int, epoch: int) -> list[tuple[int, int]]:
    """(bucket, step of its stream) for every step of an epoch."""
    pairs = zip(counts, clips, strict=True)
    steps = [(b, k) for b, (n, c) in enumerate(pairs) for k in range(epoch * n // c, (epoch + 1) * n // c)]
    return [steps[i] for i in _shuffled(len(steps), seed, epoch)]


@lru_cache(maxsize=2)
def _shuffled(n: int, seed: int, epoch: int) -> list[int]:
    order: list[int] = noise.permutation(n, key=noise.key(seed, "steps", epoch)).tolist()
    return order


@dataclass(frozen=True)
class Packed:
    """Every step takes tokens / length packs: clips of any bucket that together have at most `length` tokens.

    The largest clips are placed first, so packs are nearly full; which clip of its bucket stands where, and the order
    of the packs, are drawn anew in each epoch. Every token counts the same.
    """

    length: int

    def __call__(self, epoch: Epoch, tokens: int) -> Plan:
        for name, cost in zip(epoch.names, epoch.costs, strict=True):
            if cost > self.length:
                raise UserError(
                    f"data.buckets.layout.length: {self.length} tokens do not hold a clip of {name}, {cost} tokens."
                )
        if tokens < self.length or tokens % self.length:
            raise UserError(f"tokens: {tokens} is no multiple of {self.length}, the length of a pack.")
        packs = tuple(compose(epoch.counts, epoch.costs, self.length))
        return PackPlan(epoch.counts, packs, tokens // self.length, epoch.seed, tokens)


def compose(counts: Sequence[int], costs: Sequence[int], length: int) -> Iterator[tuple[int, ...]]:
    """Clips of each bucket in every pack of an epoch: the largest that still fit, until none is left."""
    left, order = list(counts), sorted(range(len(costs)), key=lambda b: -costs[b])
    while any(left):
        room, taken = length, [0] * len(left)
        for b in order:
            taken[b] = min(left[b], room // costs[b])
            left[b], room = left[b] - taken[b], room - taken[b] * costs[b]
        yield tuple(taken)


@dataclass(frozen=True)
class PackPlan:
    """`packs[k][b]` clips of bucket b in pack k of an epoch, so many packs `a_step`."""

    counts: tuple[int, ...]
    packs: tuple[tuple[int, ...], ...]
    a_step: int
    seed: int
    budget: int
    rehearsal: tuple[int, ...] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.a_step,)

    @property
    def mean(self) -> float:
        return self.a_step * sum(self.counts) / len(self.packs)

    def step(self, step: int) -> list[Unit]:
        return [self.pack(*divmod(k, len(self.packs))) for k in range(step * self.a_step, (step + 1) * self.a_step)]

    def pack(self, epoch: int, place: int) -> Unit:
        """The clips of one pack, bucket by bucket."""
        k = _shuffled(len(self.packs), self.seed, epoch)[place]
        firsts = self._firsts[k]
        return [
            (b, epoch * self.counts[b] + first + i)
            for b, (first, n) in enumerate(zip(firsts, self.packs[k], strict=True))
            for i in range(n)
        ]

    @cached_property
    def _firsts(self) -> list[tuple[int, ...]]:
        """How many clips of each bucket the packs before each hold."""
        columns = [list(accumulate(column, initial=0)) for column in zip(*self.packs, strict=True)]
        return list(zip(*columns, strict=True))
