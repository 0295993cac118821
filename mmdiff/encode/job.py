"""What is to be encoded and by what: the parts of a config that encode, without the network that learns.

The one idea: OUT/plan.json says everything that decides a byte - weights, settings and statistics of the codecs, the
recipe of the data, the version of this code - and a folder has one plan for ever: what would change it is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmdiff import build
from mmdiff.batch import Batch
from mmdiff.conditioners import Frame, FrameTokens, HFText
from mmdiff.data.clips import Clips
from mmdiff.data.latents import CODECS, PLAN, SETTLED, fingerprint, transform, weights
from mmdiff.data.shards import read_json, sha256, written
from mmdiff.encode.ledger import in_turn, publish
from mmdiff.errors import UserError
from mmdiff.files import write_text
from mmdiff.prepare import prepare
from mmdiff.systems.base import Autoencoder
from mmdiff.systems.diffusion import clips
from mmdiff.train.checkpoint import load_weights
from mmdiff.train.folder import differences
from mmdiff.train.loop import take_statistics

CODE = 1  # of what is written and how; raised by a change after which the same sources give other bytes
SIDE = "autoencoders."


@dataclass(frozen=True)
class Job:
    """What a worker has to know; plain values, so that any executor can carry them to any machine."""

    source: str  # a config, or the folder of a run whose codecs are to be used
    out: str
    overrides: tuple[str, ...] = ()
    shard_size: int = 256  # clips
    batch: int = 8  # clips that are encoded at once; the last bits of a number may depend on it
    views: int = 1  # windows and crops that are drawn of a clip: epoch e of a training reads view e mod views
    dtype: str = "float32"
    device: str = "cpu"

    @property
    def trained(self) -> bool:
        """Whether the source is a run."""
        return Path(self.source).is_dir()

    @property
    def folder(self) -> Path:
        """Where everything goes."""
        return Path(self.out)

    @property
    def plan(self) -> Path:
        """The folder's plan."""
        return self.folder / PLAN


class Coders(nn.Module):
    """Codecs and conditioner of a config's system, by the names that the system gives them."""

    def __init__(self, node: Mapping[str, Any]) -> None:
        super().__init__()
        parts = {"joint": ("video", "audio"), "diffusion": ("autoencoder",)}.get(node["kind"])
        if parts is None:
            raise UserError(f"A system of kind {node['kind']} learns from clips; only diffusion learns from latents.")
        names = parts if len(parts) > 1 else (node.get("modality", "video"),)
        self.autoencoders = nn.ModuleDict({n: build.make(node[part]) for n, part in zip(names, parts, strict=True)})
        self.conditioner = build.make(node["conditioner"])
        modules = list(self.conditioner.modules())
        self.voices = {part.voice: part for part in modules if isinstance(part, HFText)}
        self.shown = any(isinstance(part, Frame | FrameTokens) for part in modules)
        self.requires_grad_(False)

    @property
    def codecs(self) -> Mapping[str, Autoencoder]:
        """The autoencoders by modality."""
        return cast(Mapping[str, Autoencoder], self.autoencoders)

    def fit(self, batches: Iterable[Batch]) -> None:
        """Statistics of codecs that have none, from the clips that have their modality, as training takes them."""
        kept = list(batches)
        for name, codec in self.codecs.items():
            if not codec.fitted:
                codec.fit(torch.cat([clips(batch, name)[batch["valid"][name]] for batch in kept]))


class Bench:
    """A job with its parts built."""

    def __init__(self, job: Job) -> None:
        path = Path(job.source)
        self.job = job
        self.run = build.parse(build.read(path / "config.yaml" if job.trained else path, job.overrides))
        if self.run.data["kind"] != "clips":
            raise UserError(f"data.kind is {self.run.data['kind']}: only clips can be encoded.")
        if self.run.data.get("buckets") is not None:
            raise UserError("data.buckets: clips of many shapes cannot be encoded yet; encode one shape at a time.")
        prepare(self.run)
        torch.set_num_threads(1)  # the last bits of a sum depend on it
        self.coders = Coders(self.run.system)

    @cached_property
    def sets(self) -> dict[str, Clips]:
        """Split -> its clips: those of training and those that are held out."""
        nodes = [self.run.data] + ([] if self.run.held_out is None else [self.run.held_out])
        files = {"latents": None, "cache": False}
        merged = [build.overlay(build.overlay(self.run.data, node), files) for node in nodes]
        return {node.get("split", "train") or "all": build.make(node) for node in merged}

    def works(self) -> list[tuple[str, int]]:
        """(split, number) of every shard."""
        size = self.job.shard_size
        return [(name, i) for name, data in self.sets.items() for i in range(-(-len(data) // size))]


@lru_cache(maxsize=1)
def bench(job: Job) -> Bench:
    """The parts of a job whose plan is settled, once a process."""
    made = Bench(job)
    made.coders.autoencoders.load_state_dict(load_file(job.folder / CODECS))
    made.coders.to(job.device)
    return made


def settle(job: Job) -> list[tuple[str, int]]:
    """Write the plan and the codecs, or see that they are what is there -> all shards. Raises UserError if not."""
    made, path = Bench(job), job.folder / CODECS
    job.folder.mkdir(parents=True, exist_ok=True)
    with in_turn(job.folder / "settle", begins=""):
        before = read_json(job.plan, SETTLED) if job.plan.is_file() else None
        _load(made, path)
        plan = _plan(made, before)
        if before is not None and (changed := differences(before, plan)):
            raise UserError(
                f"{job.out} was encoded by another plan: {'; '.join(line[:120] for line in changed[:5])}. What is "
                "there stays as it is: choose another --out, or ask for the same."
            )
        for split in made.sets:
            (job.folder / split).mkdir(exist_ok=True)
        state = {name: t.contiguous() for name, t in made.coders.autoencoders.state_dict().items()}
        if not path.is_file():
            publish(path, lambda staged: save_file(state, staged))
        if before is None:
            write_text(job.plan, written(plan))
    return made.works()


def _load(made: Bench, path: Path) -> None:
    """The weights of the codecs: those of the run, those that the folder has, or else as training would begin."""
    codecs: Any = made.coders.autoencoders
    if made.job.trained:
        state, _, _ = load_weights(made.job.source)
        codecs.load_state_dict({name.removeprefix(SIDE): t for name, t in state.items() if name.startswith(SIDE)})
    elif path.is_file():
        codecs.load_state_dict(load_file(path))
    else:
        take_statistics(made.coders, next(iter(made.sets.values())), made.run.batch)


def _plan(made: Bench, before: Mapping[str, Any] | None) -> dict[str, Any]:
    job, parts = made.job, made.coders.autoencoders.items()
    return {
        "code": CODE,
        "codecs": {name: fingerprint(codec) for name, codec in parts},
        "texts": {voice: weights(part.encoder.model) for voice, part in made.coders.voices.items()},
        "frame": made.coders.shown,
        "adopted": _adopted(made, before or {}),
        "sets": {name: transform(data.policy, data.seed) for name, data in made.sets.items()},
        "shard_size": job.shard_size,
        "batch": job.batch,
        "views": job.views,
        "dtype": job.dtype,
    }


def _adopted(made: Bench, before: Mapping[str, Any]) -> dict[str, str]:
    """Run -> hash of the weights that it has now, for codecs that came from it; a run may be gone by now."""
    runs = {str(part.run) for part in made.coders.modules() if hasattr(part, "adopt") and not made.job.trained}
    known = before.get("adopted", {})
    return {run: load_weights(run)[2] if Path(run).is_dir() or run not in known else known[run] for run in sorted(runs)}


def plan_hash(job: Job) -> str:
    """SHA-256 of the plan as it stands there."""
    return sha256(job.plan.read_text(encoding="utf-8"))


def half(z: Tensor, dtype: str, what: str) -> Tensor:
    """Latents as they are kept. Raises UserError for what the type does not hold."""
    kept = z.detach().to("cpu", getattr(torch, dtype))
    if not bool(kept.isfinite().all()):
        raise UserError(f"{what} has latents that are not finite in {dtype}; encode with --dtype float32.")
    return kept
