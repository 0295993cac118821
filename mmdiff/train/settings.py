"""How a run is trained, as plain dataclasses: the config's `optimizer`, `engine`, `every` and `sample` sections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol


@dataclass
class Optimizer:
    """AdamW, or Muon on the matrices of the blocks with AdamW on the rest; learning rates are those after warm-up."""

    kind: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0  # on weights of two and more dimensions
    muon_lr: float = 0.02
    warmup: int = 30  # steps
    schedule: Literal["constant", "cosine", "linear"] = "linear"
    final: float = 0.03  # the share of the learning rate that is left at the last step
    clip: float = 1.0  # global norm of the gradient; 0 does not clip
    ema: float = 0.995  # decay of the averaged weights; 0 keeps none


@dataclass
class Engine:
    """Where and how numbers are computed; nothing here changes what is computed, beyond rounding."""

    config: str | None = None  # a DeepSpeed JSON file, for runs that the deepspeed launcher starts
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # bf16 is autocast over float32 weights
    workers: int = 0  # loader processes a rank; 0 loads in the training process
    compile: bool = False  # torch.compile the blocks: a slow first step, then faster ones; rounding may differ
    checkpoint_activations: bool = False  # compute blocks a second time in the backward pass instead of keeping them
    threads: int = 0  # CPU threads a rank; 0 leaves torch's choice
    timeout: float = 600.0  # seconds after which a rank that hears nothing from the others gives up


@dataclass
class Every:
    """Intervals in steps; 0 is never. The last step always logs, saves, evaluates and samples what is not 0."""

    log: int = 10
    save: int = 500
    sample: int = 0
    evaluate: int = 0


@dataclass
class Health:
    """What a run does when its numbers go wrong, and how it shows that it lives."""

    spike: float = 5.0  # a loss of so many times the median of the last 50 is told, with its clips; 0 looks for none
    rollbacks: int = 0  # spikes after which a run goes back to its checkpoint and on without the clips since; 0 is none
    skip: list[tuple[int, int]] | str = field(default_factory=list)  # [[120, 140]] or "120-140": steps to leave out
    rehearse: bool = True  # go through every bucket once before the first step, so that too large a one is found there
    beat: float = 5.0  # seconds between the signs of life of a rank in RUN/ranks/; 0 gives none


@dataclass
class Sample:
    """The previews written while training, and the defaults of `tools/sample_video.py`."""

    prompts: list[str] = field(default_factory=list)  # empty takes captions of held-out clips
    steps: int = 25
    guidance: float | Callable[..., Any] = 2.0  # a number is plain guidance of that scale, a part any other guide
    sampler: str | Callable[..., Any] = "euler"  # a name, or a part where it takes arguments
    number: int = 4


class Run(Protocol):
    """What the loop reads of a run's config."""

    run: str
    seed: int
    steps: int
    batch: int  # clips a step, over all ranks and micro-batches
    tokens: int | None  # what a step may hold instead, in latent positions
    accumulate: int
    keep: int
    start: str | None
    optimizer: Optimizer
    engine: Engine
    every: Every
    sample: Sample
    health: Health


Config = dict[str, Any]  # the resolved config as plain containers
