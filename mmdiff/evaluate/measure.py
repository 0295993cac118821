"""A set of clips -> one row of the table: every metric that the clips, their captions and the anchors allow.

The one idea: rows differ in their clips and in nothing else. All that the metrics compare with - the real clips of the
distances, the training set and its bar, the oracle's synchrony - is gathered once in `Anchors`; and a row is a function
of (clips, anchors, seed), so that it is kept under the hash of these and read back instead of being measured again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mmdiff
from mmdiff.errors import UserError
from mmdiff.evaluate.clips import Set, modalities
from mmdiff.files import write_text
from mmdiff.metrics import alignment, diversity, frechet, memorisation, score, statistics
from mmdiff.metrics.faithfulness import Reading, read
from mmdiff.metrics.features import SPACES, features
from mmdiff.metrics.plugins import Plugin
from mmdiff.metrics.score import Row
from mmdiff.world.caption import parse
from mmdiff.world.things import Facts

KEPT_PAIRS = 8  # nearest training pairs of each modality that are kept to be looked at
Values = dict[str, list[float]]


@dataclass(frozen=True)
class Measured:
    """One row, the values of its single clips, and the pairs that are nearest to training clips."""

    row: Row
    values: Values = field(default_factory=dict)
    nearest: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Anchors:
    """What every row is compared with; absent anchors leave their metrics out."""

    reference: Set | None = None  # real clips, none of them in the oracle row
    bar: memorisation.Bar | None = None
    truth: Set | None = None  # the oracle row's clips
    seed: int = 1
    plugins: tuple[Plugin, ...] = ()

    def digest(self) -> str:
        """A hash of everything in here."""
        parts = [one.digest() if one is not None else "" for one in (self.reference, self.truth)]
        trained = (
            {} if self.bar is None else {n: [limit, len(self.bar.training[n])] for n, limit in self.bar.limits.items()}
        )
        return hashlib.sha256(
            json.dumps([parts, trained, self.seed, [(one.name, one.weights) for one in self.plugins]]).encode()
        ).hexdigest()


class Ruler:
    """Measures sets against the same anchors; what it has measured once it reads back from the cache."""

    def __init__(self, anchors: Anchors, cache: Path) -> None:
        self.anchors, self.folder, self.hash = anchors, cache / "rows", anchors.digest()
        self.features: dict[str, NDArray[np.float32]] = {}
        self.embedded: dict[str, NDArray[np.float32]] = {}
        reference = anchors.reference
        if reference is None or len(reference.clips) < 2:
            return
        have = modalities(reference.clips)
        for space, modality in SPACES.items():
            if modality in have and (space != "motion" or _moves(reference)):
                self.features[space] = features(reference.clips, space)
        for one in anchors.plugins:
            if one.protocol.distance and set(have) >= set(one.protocol.needs):
                self.embedded[one.name] = one.embed(reference.clips, reference.prompts)

    def __call__(self, given: Set) -> Measured:
        """The row of a set."""
        key = hashlib.sha256(f"{_code()} {self.hash} {given.digest()}".encode()).hexdigest()[:32]
        path = self.folder / f"{key}.json"
        try:
            return Measured(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            measured = self._measure(given)
        write_text(path, json.dumps(asdict(measured)))
        return measured

    def _measure(self, given: Set) -> Measured:
        seed, prompts = self.anchors.seed, given.prompts
        values, nearest = self._values(given)
        row = score.summary(values, self._oracle(given), prompts, seed=seed)
        row = row | self._distances(given) | self._effective(given) | self._plugged(given)
        return Measured(row, values, nearest)

    def _values(self, given: Set) -> tuple[Values, list[dict[str, Any]]]:
        """The metrics that single clips have."""
        seed, facts = self.anchors.seed, stated(given.prompts)
        values: Values = {}
        if facts is not None:
            readings = read_all(given)
            values |= score.clip_values(readings, facts, judged=score.judged(given.clips), seed=seed)
            values["free_entropy_bits"] = diversity.free_entropy(readings, facts, given.prompts)
        if modalities(given.clips) == ["video", "audio"] and _moves(given):
            values |= alignment.alignment_values(given.clips, seed=seed)
        if self.anchors.bar is None:
            return values, []
        marks, pairs = memorisation.compare(given.clips, self.anchors.bar)
        kept = [pair for name in marks for pair in [p for p in pairs if f"memorised_{p.modality}" == name][:KEPT_PAIRS]]
        return values | marks, [asdict(pair) for pair in kept]

    def _oracle(self, given: Set) -> Sequence[float]:
        """The ground truth's sync F1 clip by clip where the prompts are the same, else nan (it counts as 1)."""
        truth = self.anchors.truth
        if truth is None or truth.prompts != given.prompts or (facts := stated(truth.prompts)) is None:
            return [math.nan] * len(given.prompts)
        return score.sync_values(read_all(truth), facts, seed=self.anchors.seed)["sync_f1"]

    def _distances(self, given: Set) -> Row:
        """Frechet and kernel distances from the reference, in every space that both sets have."""
        have, row = modalities(given.clips), Row()
        for space, reference in self.features.items():
            if SPACES[space] in have and len(given.clips) > 1 and (space != "motion" or _moves(given)):
                mine = features(given.clips, space)
                options: dict[str, Any] = {"prompts": given.prompts, "seed": self.anchors.seed}
                row[f"fd_rand_{space}"] = frechet.frechet_interval(mine, reference, **options).row()
                row[f"mmd_rand_{space}"] = frechet.mmd_interval(mine, reference, **options).row()
        return row

    def _effective(self, given: Set) -> Row:
        """Vendi scores with the reference's bandwidth: effective numbers of different clips, no interval."""
        have, row = modalities(given.clips), Row()
        for name, space in (("vendi_video", "appearance"), ("vendi_audio", "spectrum")):
            if space in self.features and SPACES[space] in have:
                width = frechet.bandwidth(self.features[space].mean(1))
                value = diversity.vendi(features(given.clips, space).mean(1), width=width)
                n = len(set(given.prompts))
                row[name] = statistics.Interval(value, math.nan, math.nan, n).row()
        return row

    def _plugged(self, given: Set) -> Row:
        """The scores of the plug-ins that these clips have the modalities for."""
        have, row = set(modalities(given.clips)), Row()
        for one in self.anchors.plugins:
            if have >= set(one.protocol.needs):
                row[one.name] = one.row(given.clips, given.prompts, self.embedded.get(one.name), seed=self.anchors.seed)
        return row


def stated(prompts: Sequence[str]) -> list[Facts] | None:
    """What each prompt states in the words of the sounding world; None where none of them states anything in them.

    Raises UserError, naming the first, where some do and some do not: their shares would be of different clips.
    """
    found: list[Facts] = []
    problem: UserError | None = None
    for prompt in prompts:
        try:
            found.append(parse(prompt))
        except UserError as error:
            problem = problem or error
    if problem is not None and found:
        raise problem
    return found or None


def read_all(given: Set) -> list[Reading]:
    """Every clip read back."""
    return [read(video, audio, fps=fps or 1.0, rate=rate or 8000) for video, audio, fps, rate in given.clips]


@lru_cache(maxsize=1)
def _code() -> str:
    """A hash of the code that measures: a row that other code has measured is measured again."""
    home = Path(mmdiff.__file__).parent
    files = sorted(path for name in ("metrics", "world", "evaluate") for path in (home / name).glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def _moves(given: Set) -> bool:
    return min((len(clip[0]) for clip in given.clips), default=0) >= score.MOVING


def with_ratios(rows: Mapping[str, Row]) -> dict[str, Row]:
    """Every Frechet distance once more as a multiple of the oracle row's: that of real clips from real clips."""
    floor = rows.get("oracle", {})
    found = {}
    for name, row in rows.items():
        both = [metric for metric in row if metric.startswith("fd_") and floor.get(metric, {}).get("value")]
        ratios = {
            f"{metric}_ratio": {
                key: value if key == "n" else value / floor[metric]["value"] for key, value in row[metric].items()
            }
            for metric in both
        }
        found[name] = row | ratios
    return found
