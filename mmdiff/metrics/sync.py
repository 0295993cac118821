"""Synchrony of one clip: do the impacts that are seen and the onsets that are heard agree, event by event.

The one idea: both lists of times are read from the *generated* pair, never from ground truth, and matched one-to-one,
so that neither silence nor a click every frame can win: precision and recall count alike. Matching two sorted lists is
a small dynamic programme (a non-crossing optimum exists on a line). F1 is that of onset detection (mir_eval, Raffel et
al. 2014); the truncated cost is a kin of OSPA (Schuhmacher et al. 2008). Lags are audio minus video: positive is late.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WINDOW = 0.06  # s, a pair within it counts for F1
HORIZON = 0.5  # s, a pair within it counts for lag, mae and cost; an unmatched event costs half of it


@dataclass(frozen=True)
class Match:
    """How well a list of seen times and a list of heard times agree; nan where there is nothing to say."""

    pairs: tuple[tuple[int, int], ...]  # (video index, audio index) within the window, in order of time
    f1: float
    lag: float  # s, median of audio - video over pairs within HORIZON
    mae: float  # s, mean |audio - video| over the same pairs
    cost: float  # s, truncated: (sum |e| + w u / 2) / (n + u / 2)


def pair(video: Sequence[float], audio: Sequence[float], *, window: float, bonus: float = 0.0) -> list[tuple[int, int]]:
    """One-to-one pairs of two sorted lists of seconds, maximising the sum of (window - |e| + bonus) over pairs.

    bonus 0 minimises the truncated cost; a bonus above the window times the number of events maximises the count first.
    """
    n, m = len(video), len(audio)
    gain = bonus + window - np.abs(np.subtract.outer(np.asarray(video, float), np.asarray(audio, float)))  # n m
    gain = np.where(gain >= bonus - 1e-12, gain, -1.0).reshape(n, m).tolist()
    best = [[0.0] * (m + 1) for _ in range(n + 1)]
    for i in range(n):
        for j in range(m):
            both = best[i][j] + gain[i][j] if gain[i][j] >= 0 else -1.0
            best[i + 1][j + 1] = max(best[i][j + 1], best[i + 1][j], both)
    return _walk_back(best, gain)


def _walk_back(best: list[list[float]], gain: list[list[float]]) -> list[tuple[int, int]]:
    """The pairs behind a filled table of best gains."""
    i, j, pairs = len(best) - 1, len(best[0]) - 1, []
    while i and j:
        if best[i][j] == best[i - 1][j]:
            i -= 1
        elif best[i][j] == best[i][j - 1]:
            j -= 1
        else:
            i, j = i - 1, j - 1
            pairs.append((i, j))
    return pairs[::-1]


def match(
    video_times: Sequence[float], audio_times: Sequence[float], *, window: float = WINDOW, expected: bool = True
) -> Match:
    """Compare impacts seen with onsets heard, both in seconds and in any order.

    Nothing seen and nothing heard: f1 is 0 and cost is HORIZON where the caption says that something happens
    (`expected`), because silence is then a failure; otherwise both are nan, and averages leave the clip out rather than
    give it a perfect mark. One side empty: f1 is 0, cost is HORIZON. No pair within HORIZON: lag and mae are nan.
    """
    video, audio = sorted(video_times), sorted(audio_times)
    if not video or not audio:
        failed = expected or bool(video or audio)
        return Match((), 0.0 if failed else math.nan, math.nan, math.nan, HORIZON if failed else math.nan)
    close = pair(video, audio, window=window, bonus=window * (len(video) + len(audio)))
    wide = pair(video, audio, window=HORIZON)
    errors = [audio[j] - video[i] for i, j in wide]
    missed = len(video) + len(audio) - 2 * len(wide)
    spent = sum(map(abs, errors)) + HORIZON * missed / 2
    lag = float(np.median(errors)) if errors else math.nan
    mae = float(np.mean(np.abs(errors))) if errors else math.nan
    f1 = 2 * len(close) / (len(video) + len(audio))
    return Match(tuple(close), f1, lag, mae, spent / (len(wide) + missed / 2))


def skill(f1: float, *, shuffled: float, oracle: float) -> float:
    """(F1 - F1 shuffled) / (F1 oracle - F1 shuffled): 0 is chance, 1 is the ground truth; nan where they coincide."""
    room = oracle - shuffled
    return float((f1 - shuffled) / room) if room > 1e-9 else math.nan


def auroc(true: Sequence[float], false: Sequence[float]) -> float:
    """Probability that a true pair scores above a false one, ties counting half (Mann-Whitney); nan if one is empty."""
    a, b = np.asarray(true, float), np.asarray(false, float)
    if not a.size or not b.size:
        return math.nan
    return float(((a[:, None] > b).mean() + (a[:, None] >= b).mean()) / 2)
