"""An inspection as one self-contained page: tables of what was found, and clips as training would see and hear them."""

from __future__ import annotations

import string
import tempfile
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from statistics import median

import torch

from mmdiff.data import media
from mmdiff.data.manifest import Entry
from mmdiff.data.window import FULL_SCALE, Policy, read_window
from mmdiff.inspection import Inspection, spread
from mmdiff.inspection.offsets import WINDOW
from mmdiff.inspection.verdicts import MIDDLE, SILENT, Verdict, remembered
from mmdiff.report import figures, gallery
from mmdiff.world.listen import read_onsets

SHOWN = 500  # rows of a table; the JSON holds all
Row = Sequence[str]


def render(found: Inspection, *, previews: int) -> str:
    """The page as a text."""
    template = string.Template((files("mmdiff.report") / "page.html").read_text(encoding="utf-8"))
    sections = [_dropped(found), _plan(found), _sound(found), _speed(found), _clips(found, previews), _all(found)]
    return template.substitute(
        title=f"mmdiff · inspection of {escape(Path(found.path).name)}",
        lead=_lead(found),
        sections="\n".join(filter(None, sections)),
    )


def table(head: Row, rows: Sequence[Row], *, kind: str = "") -> str:
    """A table of texts, every one escaped."""
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in rows[:SHOWN])
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    more = f'<p class="note">{len(rows) - SHOWN:,} more are in inspection.json.</p>' if len(rows) > SHOWN else ""
    return f'<div class="scroll"><table class="{kind}"><tr>{names}</tr>\n{lines}</table></div>{more}'


def note(text: str) -> str:
    """A paragraph in small."""
    return f'<p class="note">{escape(text)}</p>'


def _lead(found: Inspection) -> str:
    policy, looked = found.recipe.policy, len(found.verdicts)
    asked = f"{policy.frames} frames at {policy.fps:g} fps, {policy.size[0]} x {policy.size[1]}, {policy.rate:,} Hz"
    some = "" if looked == found.listed else f" (drawn from {found.listed:,} that are listed)"
    split = f", split {found.recipe.split}" if found.recipe.split else ""
    return escape(f"{len(found.kept):,} of {looked:,} clips kept{some}, read as {asked}{split}. {found.path}")


def _dropped(found: Inspection) -> str:
    bad = [verdict for verdict in found.verdicts if verdict.reason is not None]
    told = "".join(note(text) for text in found.listing.notes)
    if not bad:
        return f"<h2>Dropped</h2>{note('Nothing: the window of every clip could be read.')}{told}"
    groups = table(["reason", "clips"], [[reason, f"{n:,}"] for reason, n in found.reasons.items()])
    names = table(["clip", "reason"], [[v.id, v.reason or ""] for v in bad], kind="record")
    return f"<h2>Dropped</h2>{told}{groups}{names}"


def _plan(found: Inspection) -> str:
    plan = found.outlook
    head = ["bucket", "clips", "kept", "tokens a clip", "clips a step", "share of tokens"]
    rows = [
        [
            room.shape, f"{room.clips:,}", f"{room.kept:,}", _number(room.tokens), _number(room.clips_a_step),
            _share(room.share),
        ]
        for room in plan.rooms
    ]  # fmt: skip
    return f"<h2>Buckets and steps</h2>{table(head, rows)}{note(_steps(found))}"


def _steps(found: Inspection) -> str:
    plan = found.outlook
    if plan.problem:
        return f"No such training: {plan.problem}"
    if plan.epochs is None or plan.tokens_a_step is None or plan.clips_a_step is None:
        return "Without a config there are no steps: give one to see tokens a step and epochs."
    low, mean, high = plan.tokens_a_step
    room = f" of {plan.room_for:,}" if plan.room_for else ""
    return (
        f"{plan.steps:,} steps of {plan.clips_a_step:.4g} clips on average: every kept clip is read {plan.epochs:.3g} "
        f"times. A step holds {mean:,.0f} tokens{room} on average, {low:,} at least and {high:,} at most (counted in "
        "the first 1,000 steps)."
    )


def _sound(found: Inspection) -> str:
    offset, kept = found.offset, max(1, len(found.kept))
    cover = table(["", "clips", "share"], [[k, f"{n:,}", f"{100 * n / kept:.0f} %"] for k, n in found.sound.items()])
    silent = note(f"Of the kept clips, in the window that was read. Silent: no sample reaches {SILENT:.0f} dB.")
    rows = [[s.id, s.of, *(f"{len(n)}" for n in (s.seen, s.heard, s.lags)), _middle(s.lags)] for s in offset.spots]
    head = ["clip", "seen are", "seen", "heard", "pairs", "sound minus picture"]
    if offset.median is None or offset.quartiles is None:
        said = "No pairs of something seen and something heard were found to compare."
    else:
        low, middle, high = map(_ms, (offset.quartiles[0], offset.median, offset.quartiles[1]))
        said = (
            f"Median of all {offset.pairs} pairs: {middle}; half of them lie between {low} and {high}. Positive: the "
            f"sound is late. {_share(offset.met)} of the onsets meet something seen within {1000 * WINDOW:.0f} ms, and "
            f"{_share(offset.chance)} do when every sound is given another clip's picture: if these are alike, the "
            "pictures tell nothing about the sounds, and the median means nothing."
        )
    spots = table(head, rows) if rows else ""
    return f"<h2>Sound</h2>{cover}{silent}<h2>Sync, on a few clips</h2>{note(said)}{spots}"


def _middle(lags: Sequence[float]) -> str:
    return _ms(median(lags)) if lags else "–"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def _ms(seconds: float) -> str:
    return f"{round(1000 * seconds):+d} ms"


def _speed(found: Inspection) -> str:
    if not found.speeds:
        return ""
    a_step = found.outlook.clips_a_step
    head = ["reader", "threads", "clips a second", "frames a second", "seconds a step"]
    rows = [
        [
            s.reader, f"{s.threads}", f"{s.clips_a_second:.1f}", f"{s.frames_a_second:,.0f}",
            "–" if a_step is None else f"{a_step / s.clips_a_second:.2f}",
        ]
        for s in found.speeds
    ]  # fmt: skip
    text = (
        "Whole windows of these files, picture and sound, read on this machine as it was at that moment. Training has "
        "engine.workers processes read; data.reader names the reader."
    )
    return f"<h2>Decoding</h2>{table(head, rows)}{note(text)}"


def _all(found: Inspection) -> str:
    head = ["clip", "", "seconds", "picture", "fps", "sound", "sound begins, ends", "captions", "split"]
    rows = [
        [
            v.id, "kept" if v.reason is None else "dropped", _number(v.seconds),
            "–" if v.size is None else f"{v.size[0]} x {v.size[1]}", _number(v.fps),
            "–" if v.rate is None else f"{v.rate:,} Hz x {v.channels}", _ends(v), str(v.captions), v.split or "–",
        ]
        for v in found.verdicts
    ]  # fmt: skip
    return f"<h2>All clips</h2><details><summary>{len(rows):,} clips</summary>{table(head, rows)}</details>"


def _ends(v: Verdict) -> str:
    return "–" if v.sound_from is None or v.sound_to is None else f"{v.sound_from:+.2f}, {v.sound_to:+.2f} s"


def _number(value: float | int | None) -> str:
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


# ---- previews ------------------------------------------------------------------------------------------------------


def _clips(found: Inspection, previews: int) -> str:
    shown = [clip for b, _ in enumerate(found.recipe.shapes) for clip in _of_bucket(found, b, previews)]
    if not shown:
        return ""
    text = (
        "The middle window of each as training reads it: scaled, cut, at its frame rate and its sample rate. Under the "
        "frames: the sound, pitch over time (log-mel); dashed lines are onsets that were heard."
    )
    with tempfile.TemporaryDirectory() as folder:
        cards = "".join(_card(*clip, found, Path(folder)) for clip in shown)
    return f'<h2>Clips</h2>{note(text)}<div class="columns">{cards}</div>'


def _of_bucket(found: Inspection, bucket: int, previews: int) -> list[tuple[Entry, Verdict]]:
    mine = [(e, v) for e, v in found.kept if v.bucket == bucket]
    return spread(mine, max(1, round(previews * len(mine) / max(1, len(found.kept))))) if previews else []


def _card(entry: Entry, verdict: Verdict, found: Inspection, folder: Path) -> str:
    """One clip: the player, its frames, its sound, its caption and what the file is."""
    policy = found.recipe.policy.of(found.recipe.shapes[verdict.bucket or 0])
    reading = read_window(entry, policy, MIDDLE, remembered())
    video = reading.video.permute(1, 2, 3, 0) if reading.valid.get("video") else None  # (t h w 3)
    audio = reading.audio.float() / FULL_SCALE if reading.valid.get("audio") else None  # (1 n)
    parts = [figures.strip(video)] if video is not None and len(video) > 1 else []
    if audio is not None:
        level = gallery.log_mel(audio[0], rate=policy.rate)
        onsets = read_onsets(audio.numpy(), policy.rate)
        parts.append(figures.sound(level, seconds=policy.seconds, onsets=onsets, impacts=[]))
    player = _player(video, audio, policy, folder / "clip")
    caption = entry.captions[0] if entry.captions else "no caption"
    return (
        f'<section class="prompt"><p>{escape(caption[:300])}</p><div class="clip"><h3>{escape(entry.id)}</h3>{player}'
        f'<div>{"".join(parts)}</div><p class="facts">{escape(_source(verdict))}</p></div></section>'
    )


def _player(video: torch.Tensor | None, audio: torch.Tensor | None, policy: Policy, stem: Path) -> str:
    path = media.write_any(stem, video, audio, fps=policy.fps, rate=policy.rate)
    source = figures.embed(path)
    if path.suffix == ".mp4":
        poster = "" if video is None else f' poster="{figures.png(video[len(video) // 2])}"'
        return f'<video src="{source}"{poster} controls loop playsinline preload="metadata"></video>'
    return (
        f'<audio src="{source}" controls></audio>' if path.suffix == ".wav" else f'<img class="still" src="{source}">'
    )


def _source(v: Verdict) -> str:
    """What the file is."""
    size = "" if v.size is None else f"{v.size[0]} x {v.size[1]}"
    fps = "" if not v.fps else f"{v.fps:.4g} fps"
    sound = "no sound" if v.rate is None else f"{v.rate:,} Hz, {v.channels} channel(s), peak {v.peak or 0.0:.0f} dB"
    seconds = "" if v.seconds is None else f"{v.seconds:.2f} s"
    return ", ".join(filter(None, [size, fps, seconds, sound]))
