"""What one step did, and how fast: the numbers of a line in log.jsonl."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmdiff.train.engine import Outcome
from mmdiff.train.memory import peak
from mmdiff.train.ranks import Ranks

Record = dict[str, Any]
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}  # dense bf16, FLOP/s


@dataclass
class Update:
    """One step on one rank; sums stay on the device until the step is over."""

    ids: list[str]
    total: Tensor | float = 0.0  # mean loss over this rank's clips, summed over players
    parts: dict[str, Tensor] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    loss: float = 0.0
    seconds: float = 0.0

    def add(self, loss: Tensor, logs: dict[str, Tensor], *, share: float) -> None:
        """Count a micro-batch."""
        self.total = self.total + loss.double() * share
        for name, value in logs.items():
            self.parts[name] = self.parts.get(name, 0.0) + value.detach().double() * share

    def close(self, outcome: Outcome) -> None:
        """Note what a player's optimizer did."""
        self.outcomes.append(outcome)

    @property
    def skipped(self) -> bool:
        """True if any player's gradient was not finite; the same on every rank."""
        return any(outcome.skipped for outcome in self.outcomes)


def describe(update: Update, loss: float, ranks: Ranks, *, suspect: bool = False) -> Record:
    """The record of a step: means over all ranks; of a skipped or suspect one also the clips that it was about."""
    names = sorted(update.parts)
    sums = ranks.total(*(value / ranks.world for name in names for value in update.parts[name].reshape(-1).tolist()))
    first = update.outcomes[0]
    record: Record = {"loss": loss, "loss_hex": loss.hex()} | means(update.parts, sums)
    record |= {"lr": first.rate, "grad_norm": first.norm, "skipped": update.skipped}
    if update.skipped or suspect:
        everyone = ranks.collect((update.ids, update.loss))
        odd = [ids for ids, value in everyone if not math.isfinite(value)]
        if suspect and not odd:
            odd = [max(everyone, key=lambda pair: pair[1])[0]]
        record["ids"] = [name for ids in odd or [ids for ids, _ in everyone] for name in ids]
    return record


def means(parts: dict[str, Tensor], sums: Sequence[float]) -> dict[str, float]:
    """The scalars as they are, the pairs divided; a pair that counts nothing is left out."""
    found, rest = {}, iter(sums)
    for name in sorted(parts):
        value, count = next(rest), next(rest) if parts[name].numel() == 2 else 1.0
        if count:
            found[name] = value / count
    return found


class Speed:
    """Samples a second, and the share of the hardware's arithmetic that is used where its peak is known."""

    def __init__(self, clips: float, ranks: Ranks) -> None:
        self.clips, self.flops, self.device = clips, 0, ranks.device  # clips a step, on average
        name = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else ""
        self.peak = next((peak for kind, peak in PEAKS.items() if kind in name), None)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count the arithmetic of the first step."""
        if self.peak is None or self.flops:
            yield
            return
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            yield
        self.flops = counter.get_total_flops()

    def describe(self, step: int, seconds: float, wait: float) -> Record:
        """Clips so far, seconds of the step with its wait for data, share of the hardware's peak, most memory held."""
        whole = seconds + wait
        mfu = self.flops / whole / self.peak if self.peak else None
        record = {"samples": round(step * self.clips), "step_s": whole, "data_wait_s": wait}
        return record | {"samples_s": self.clips / whole, "mfu": mfu, "memory_gb": peak(self.device)}
