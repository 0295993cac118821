"""The processes of one run: who they are, how they agree, and how they leave.

Decisions (stop, skip, is the checkpoint whole) travel on a group of their own over the CPU, with a timeout like every
other group, so that a rank that is gone is noticed. One process needs no group and asks nobody.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

from mmdiff.errors import UserError
from mmdiff.train.settings import Engine


class OwnError(UserError):
    """An error that one rank met alone, so that it must be told by that rank."""

    own = True


LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


@dataclass
class Ranks:
    """This process among those of its run."""

    rank: int = 0
    local: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")
    launched: bool = False  # by the deepspeed launcher, also if it started one process only
    control: Any = None  # the process group of decisions

    @property
    def first(self) -> bool:
        """True on the one rank that writes and prints."""
        return self.rank == 0

    def total(self, *numbers: float) -> list[float]:
        """The sum of each number over the ranks, in float64: the same on every rank."""
        if self.world == 1:
            return list(numbers)
        tensor = torch.tensor(numbers, dtype=torch.float64)
        torch.distributed.all_reduce(tensor, group=self.control)
        return tensor.tolist()

    def collect(self, thing: Any) -> list[Any]:
        """Every rank's thing, in the order of ranks: the same list on every rank."""
        if self.world == 1:
            return [thing]
        things: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(things, thing, group=self.control)
        return things

    def barrier(self) -> None:
        """Wait for all."""
        self.total(0.0)

    def agree(self, error: UserError | None) -> None:
        """Raise on every rank what went wrong on any of them, so that none waits for one that has left."""
        errors = [e for e in self.collect(error) if e is not None]
        if errors:
            raise errors[0]

    def shared(self, thing: Any) -> Any:
        """The first rank's thing, on every rank."""
        return self.collect(thing)[0]


def join(settings: Engine) -> Ranks:
    """Find out who started this process and, if it was a launcher, meet the others."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.set_float32_matmul_precision("high")
    if not all(name in os.environ for name in LAUNCHED):
        return _alone(settings)
    rank, local, world = (int(os.environ[name]) for name in LAUNCHED)
    ranks = Ranks(rank, local, world, _device(local), launched=True)
    _meet(ranks, timedelta(seconds=settings.timeout))
    return ranks


def _alone(settings: Engine) -> Ranks:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "WORLD_SIZE says that several processes take part, but RANK or LOCAL_RANK is missing. Start the run with "
            "the DeepSpeed launcher: deepspeed --num_gpus N tools/train.py CONFIG."
        )
    if settings.config is not None:
        raise UserError(
            f"engine.config={settings.config} configures DeepSpeed, but this run was started by plain python. Start it "
            f"as deepspeed tools/train.py CONFIG engine.config={settings.config}, or leave engine.config out."
        )
    return Ranks(device=_device(0))


def _device(local: int) -> torch.device:
    count = torch.cuda.device_count()
    if count == 0:
        return torch.device("cpu")
    wanted = max(local + 1, int(os.environ.get("LOCAL_SIZE", "1")))
    if wanted > count:
        raise UserError(
            f"The launcher started {wanted} processes on this machine, but there are {count} GPUs. "
            f"Start the run with --num_gpus {count} or fewer."
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def _meet(ranks: Ranks, timeout: timedelta) -> None:
    """Start the process groups; deepspeed's accelerator must be chosen before it is imported."""
    if ranks.device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    warnings.filterwarnings("ignore", category=FutureWarning, message=r"`?torch\.distributed")  # deepspeed's calls
    import deepspeed

    deepspeed.utils.logger.setLevel("ERROR")
    backend_module: Any = importlib.import_module("deepspeed.comm.torch")
    backend_module.build_shm_op = lambda: None  # minutes of compilation for an operator that training never calls
    backend = "nccl" if ranks.device.type == "cuda" else "gloo"
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, timeout=timeout)
    if ranks.world > 1:
        ranks.control = torch.distributed.new_group(backend="gloo", timeout=timeout)


def bound_waiting(timeout: timedelta) -> None:
    """Give every process group the timeout; DeepSpeed makes groups of its own with torch's default of half an hour."""
    c10d: Any = torch.distributed.distributed_c10d
    for group in list(c10d._world.pg_map):
        if hasattr(torch.distributed, "set_timeout"):
            torch.distributed.set_timeout(timeout, group)
        else:
            c10d._set_pg_timeout(timeout, group)


def leave(code: int) -> None:
    """End this process with an exit code; at once where DeepSpeed ran, whose CPU runs may abort at interpreter exit."""
    sys.stdout.flush()
    sys.stderr.flush()
    if not all(name in os.environ for name in LAUNCHED):
        sys.exit(code)
    if code in (0, 75) and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    os._exit(code)
