"""The score of a set of generated clips: faithfulness and synchrony, each with its interval over prompts.

The one idea: one reading of every clip serves all metrics, and sync is judged against two anchors from the same
readers: the same sounds under other pictures (chance) and, where given, the ground truth of the same prompts (oracle).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mmdiff.errors import UserError
from mmdiff.metrics import statistics, sync
from mmdiff.metrics.faithfulness import Reading, compare, read
from mmdiff.noise import key, permutation
from mmdiff.world.caption import parse
from mmdiff.world.things import HELD_OUT_PAIRS, Facts

# video (t h w 3), audio (n,), fps, rate; what a clip lacks has length 0
Clip = tuple[NDArray[np.uint8], NDArray[np.float32], float, int]
Row = dict[str, dict[str, float]]  # metric -> value, low, high, n
FACTS = ("facts", "colour_count", "colour", "count", "shape", "size", "direction", "bounces", "timbre")
HEADLINES = ("facts", "colour_count", "direction", "timbre", "sync_f1", "sync_cost_ms")
SHUFFLES = 8  # pairings averaged into the chance level
MOVING = 4  # frames: with fewer no motion is judged


def score(clips: Sequence[Clip], prompts: Sequence[str], *, seed: int, references: Sequence[Clip] | None = None) -> Row:
    """{metric: {value, low, high, n}}: means over prompts, 95 % bootstrap intervals, n prompts with something to say.

    clips: (video (t h w 3) uint8, audio (n,) in [-1, 1], fps, rate), one a prompt (repeat a prompt for more samples).
    references: ground-truth clips of the same prompts, the oracle of sync_skill; without them the oracle is F1 = 1.
    Facts are shares in 0..1 of the clips that state one; sync_f1, sync_cost_ms count silence as a failure where the
    caption states an impact; lag_ms (audio minus video: positive is late) is the mean of the clips' median lags.
    A prompt that states no facts of the world is a UserError.
    """
    facts = _facts(clips, prompts)
    values = clip_values(_readings(clips), facts, judged=judged(clips), seed=seed)
    oracle: Sequence[float] = [math.nan] * len(clips)
    if references is not None and "sync_f1" in values:
        oracle = sync_values(_readings(references), facts, seed=seed)["sync_f1"]
    return summary(values, oracle, prompts, seed=seed)


def summary(
    values: Mapping[str, Sequence[float]], oracle: Sequence[float], prompts: Sequence[str], *, seed: int
) -> Row:
    """Values of single clips -> intervals over prompts, with sync_skill against the oracle's sync_f1 (nan: 1)."""
    row = {name: statistics.interval(value, seed=seed, prompts=prompts).row() for name, value in values.items()}
    return row | ({"sync_skill": _skill(values, oracle, prompts, seed=seed)} if "sync_f1" in values else {})


def judged(clips: Sequence[Clip]) -> frozenset[str]:
    """The kinds of facts that these clips can show: a picture alone has no timbre, and a single frame no motion."""
    frames, samples = min(len(clip[0]) for clip in clips), min(len(clip[1]) for clip in clips)
    fields = {"count", "colour_count", "colour", "shape", "size"} if frames else set()
    fields |= {"direction", "bounces"} if frames >= MOVING else set()
    return frozenset(fields | ({"timbre"} if samples else set()))


def clip_values(
    readings: Sequence[Reading], facts: Sequence[Facts], *, judged: Collection[str], seed: int
) -> dict[str, list[float]]:
    """Per clip every fact as 0 or 1 (nan: not stated or not judged) and, where picture moves and sounds, `sync_values`.

    Where some captions combine colour and shape as training never did and others do not, each fact stands once more
    for either kind (`shape_seen`, `shape_unseen`).
    """
    marks = [compare(reading, stated, judged=judged) for reading, stated in zip(readings, facts, strict=True)]
    values = {name: [_number(mark[name]) for mark in marks] for name in FACTS}
    new = [unseen(stated) for stated in facts]
    if len(set(new)) > 1:
        for name in FACTS:
            values[f"{name}_seen"] = [math.nan if it else v for it, v in zip(new, values[name], strict=True)]
            values[f"{name}_unseen"] = [v if it else math.nan for it, v in zip(new, values[name], strict=True)]
    return values | (sync_values(readings, facts, seed=seed) if {"direction", "timbre"} <= set(judged) else {})


def _number(mark: bool | None) -> float:
    return math.nan if mark is None else float(mark)


def unseen(facts: Facts) -> bool:
    """Whether a caption names a pair of colour and shape that the training split holds out."""
    return any((one.colour, one.shape) in HELD_OUT_PAIRS for one in facts)


def _readings(clips: Sequence[Clip]) -> list[Reading]:
    return [read(video, audio, fps=fps, rate=rate) for video, audio, fps, rate in clips]


def _facts(clips: Sequence[Clip], prompts: Sequence[str]) -> list[Facts]:
    if len(clips) != len(prompts):
        raise UserError(f"{len(clips)} clips but {len(prompts)} prompts: give one prompt a clip, repeated as needed.")
    return [parse(prompt) for prompt in prompts]


def expects_impact(facts: Facts) -> bool:
    """Whether the caption states that something hits something: a drop or a slide does, what stays still does not."""
    return any(one.motion != "still" for one in facts)


def sync_values(readings: Sequence[Reading], facts: Sequence[Facts], *, seed: int) -> dict[str, list[float]]:
    """Per clip: sync_f1, sync_f1_shuffled, lag_ms, sync_mae_ms, sync_cost_ms; nan where a clip has nothing to say."""
    expected = [expects_impact(stated) for stated in facts]
    sights, sounds = [one.impacts for one in readings], [one.onsets for one in readings]
    own = [sync.match(*it, expected=due) for *it, due in zip(sights, sounds, expected, strict=True)]
    chance = np.full((len(readings), SHUFFLES), math.nan)
    for j, others in enumerate(pairings(len(readings), seed=seed)):
        for i, k in enumerate(others):
            if not math.isnan(own[i].f1):
                chance[i, j] = sync.match(sights[i], sounds[k], expected=expected[i]).f1
    return {
        "sync_f1": [one.f1 for one in own],
        "sync_f1_shuffled": [_mean(line) for line in chance],
        "lag_ms": [1000 * one.lag for one in own],
        "sync_mae_ms": [1000 * one.mae for one in own],
        "sync_cost_ms": [1000 * one.cost for one in own],
    }


def pairings(n: int, *, seed: int) -> list[list[int]]:
    """Up to SHUFFLES rearrangements of range(n) that leave nothing in its place; none for n < 2."""
    order = permutation(n, key=key(seed, "pairing")).tolist()
    place = {clip: i for i, clip in enumerate(order)}
    return [[order[(place[i] + step) % n] for i in range(n)] for step in range(1, min(SHUFFLES, n - 1) + 1)]


def _mean(values: NDArray[np.float64]) -> float:
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if len(kept) else math.nan


def _skill(
    values: Mapping[str, Sequence[float]], oracle: Sequence[float], prompts: Sequence[str], *, seed: int
) -> dict[str, float]:
    """Skill of the means, its interval by resampling prompts of all three means together."""
    names = ("sync_f1", "sync_f1_shuffled")
    table = np.stack([statistics.per_prompt(values[name], prompts) for name in names])  # 2 prompts
    best = statistics.per_prompt(oracle, prompts)
    table = np.vstack([table, np.where(np.isnan(best), 1.0, best)])  # 3 prompts
    table = table[:, ~np.isnan(table).any(axis=0)]
    n = table.shape[1]
    if not n:
        return statistics.Interval(math.nan, math.nan, math.nan, 0).row()
    means = table[:, statistics.resample(n, draws=1000, seed=seed)].mean(axis=-1)  # 3 draws
    draws = [sync.skill(f1, shuffled=chance, oracle=top) for f1, chance, top in means.T]
    low, high = np.nanquantile(draws, [0.025, 0.975]) if not np.all(np.isnan(draws)) else (math.nan, math.nan)
    f1, chance, top = table.mean(axis=1)
    return statistics.Interval(sync.skill(f1, shuffled=chance, oracle=top), float(low), float(high), n).row()


def table(rows: Mapping[str, Row], *, metrics: Sequence[str] | None = None) -> str:
    """Rows {name: score(...)} as a Markdown table of value [low, high], with a caution below where prompts are few."""
    metrics = metrics or list(next(iter(rows.values()), {}))
    lines = ["| | " + " | ".join(metrics) + " |", "| --- |" + " ---: |" * len(metrics)]
    lines += [
        f"| {name} | " + " | ".join(_cell(row[metric], metric) for metric in metrics) + " |"
        for name, row in rows.items()
    ]
    fewest = min((int(row["facts"]["n"]) for row in rows.values() if "facts" in row), default=statistics.ENOUGH)
    note = statistics.caution(fewest)
    return "\n".join(lines + ([f"\nCaution: {note}."] if note else []))


def _cell(entry: Mapping[str, float], metric: str) -> str:
    if math.isnan(entry["value"]):
        return "-"
    digits = 1 if metric.endswith("_ms") else 3
    return f"{entry['value']:.{digits}f} [{entry['low']:.{digits}f}, {entry['high']:.{digits}f}]"
