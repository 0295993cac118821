"""A trained run, or a folder of clips from anywhere, as exact numbers with their anchors.

The one idea: a number means nothing alone. Beside the judged clips every table has the ground truth (oracle), the
ground truth through the model's codec, and clips that are wrong in a known way (nulls), all measured by one ruler; and
a record of the protocol. See `../metrics` for what is measured and `tools/evaluate.py` for the command.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mmdiff import build, records
from mmdiff.batch import ClipShape
from mmdiff.errors import UserError
from mmdiff.evaluate import protocol
from mmdiff.evaluate.anchors import Choice, anchors, cheats, ground_truth
from mmdiff.evaluate.clips import Set, codec, data_of, dream, load, modalities, real
from mmdiff.evaluate.folder import folder
from mmdiff.evaluate.given import complete, ends
from mmdiff.evaluate.measure import Anchors, Measured, Ruler, with_ratios
from mmdiff.files import write_text
from mmdiff.generate import Settings, default_devices
from mmdiff.metrics.score import Clip
from mmdiff.progress import bar
from mmdiff.train.settings import Sample

Pair = tuple[Clip, Clip, dict[str, Any]]
NONE: Mapping[str, str | Path] = MappingProxyType({})
INTERVAL = {"value": records.MAYBE, "low": records.MAYBE, "high": records.MAYBE}
RESULT = {  # of a run, as `read` wants it
    "protocol": {
        "checkpoint": {"step": int}, "prompts_hash": str, "preprocessing_hash": str, "n": int, "split": str,
        "modalities": [str], "seeds": [int],
    },
    "rows": {"model": {str: INTERVAL}},
    "per_clip": {"prompts": [str], "ids": [str], "values": {str: [records.MAYBE]}},
}  # fmt: skip
OWN = Settings()  # the run's own choices


@dataclass(frozen=True)
class Subject:
    """What is judged: clips under the name of their row, what made them, and the codec's clips where there is one."""

    name: str
    given: Set
    made_by: dict[str, Any]
    codec: Set | None = None


def evaluate(
    run: str | Path | None = None,
    *,
    like: str | Path | None = None,
    split: str = "iid",
    n: int = 64,
    seed: int = 1,
    number: int = 1,
    settings: Settings = OWN,
    prompts: Sequence[str] | None = None,
    against: str | Path | None = None,
    clips: str | Path | None = None,
    give: str | None = None,
    training: int | None = None,
    plugins: Mapping[str, str | Path] = NONE,
    cache: str | Path | None = None,
    out: str | Path | None = None,
    batch: int | None = None,
    devices: Sequence[str] = (),
    progress: bool = True,
) -> dict[str, Any]:
    """Judge a run on `n` captions of a split -> {"protocol", "rows", "per_clip", "nearest"}; JSON, written to `out`.

    rows: name -> metric -> {"value", "low", "high", "n"}: "model" (or "clips"), "oracle", "codec", and one a null.
    per_clip: the judged row's captions, ids (files in the cache, see `clips.load`, or in the folder given) and values.
    nearest: the judged clips that lie nearest to training clips, distance 1 being the limit of a copy; see `pairs`.

    run       a run folder or an exported one; may be left out with `clips`
    like      another run, whose data set is used instead of the run's own
    split     of the run's data; several with commas (n each) report seen and unseen combinations apart
    seed      of the generated clips and of the intervals; `number` clips a caption
    settings  sampler, steps, guidance, ema; what is None is the run's own choice
    prompts   judged instead of the split's captions; the anchors stay those of the split
    against   real clips (a folder or manifest) for the distances, instead of held-out clips of the split
    clips     a folder or manifest of clips made elsewhere, judged instead of the run's
    give      what the run is given of the clip whose caption is judged: a task (see `given.py`), such as video_to_audio
    training  how many training clips copies are searched in; None is all of them, 0 leaves the search out
    plugins   name -> weights of published scores, see `metrics/plugins.py`: {"fvd": "i3d_torchscript.pt"}
    cache     where clips, rows and the training set's descriptors are kept; default RUN/evaluation. Runs may share one

    The same call gives the same result, whether or not it was interrupted before. Raises UserError.
    """
    if run is None and clips is None:
        raise UserError("There is nothing to judge: name a run, or a folder of clips with --clips.")
    kept, choice = cache_of(run, clips, cache), Choice(split, n, seed, against, training, plugins)
    data = None if (home := like or run) is None else data_of(home)
    truth = None if data is None else ground_truth(data, choice)
    if clips is not None:
        subject = _brought(clips, data, progress=progress)
    else:
        options = {"number": number, "batch": batch, "devices": devices, "progress": progress, "cache": kept}
        subject = _dreamt(run, prompts, truth, replace(settings, seed=seed), options, give=give)
    anchored, record = anchors(subject.given, truth, data, choice, cache=kept, progress=progress)
    measured = _measure(_sets(subject, anchored.truth, data, seed=seed), Ruler(anchored, kept), progress=progress)
    if give is not None and truth is not None:
        _add_ends(measured, subject, truth, seed=seed)
    result = _result(subject, measured, _protocol(subject, choice, anchored, record, run))
    if out is not None:
        write(result, out)
    return result


def _brought(clips: str | Path, data: dict[str, Any] | None, *, progress: bool) -> Subject:
    """Clips that were made elsewhere."""
    given = folder(clips, shape=None if data is None else shape_of(data), progress=progress)
    return Subject("clips", given, {"clips": protocol.source(clips)})


def _sets(subject: Subject, truth: Set | None, data: dict[str, Any] | None, *, seed: int) -> dict[str, Set]:
    """The rows in the order of the table."""
    if truth is None or data is None:
        return {subject.name: subject.given}
    coded = {} if subject.codec is None else {"codec": subject.codec}
    return {"oracle": truth, **coded, subject.name: subject.given, **cheats(truth, data, seed=seed)}


def cache_of(run: str | Path | None, clips: str | Path | None, cache: str | Path | None) -> Path:
    """Where an evaluation keeps what it made and read."""
    return Path(cache or (Path(run) / "evaluation" if run is not None else Path(str(clips)) / ".evaluation"))


def pairs(result: Mapping[str, Any], data: dict[str, Any], *, cache: Path, clips: str | Path | None) -> list[Pair]:
    """The pairs of `nearest` as clips to look at: the judged one, its nearest training clip, and the entry."""
    found = []
    judged = folder(clips, shape=shape_of(data)) if clips is not None else None
    for entry in result["nearest"]:
        name = result["per_clip"]["ids"][entry["clip"]]
        mine = load(cache / "clips" / name) if judged is None else judged.clips[entry["clip"]]
        if mine is not None:
            found.append((mine, real(data, "train", first=entry["training"], count=1).clips[0], entry))
    return found


def shape_of(data: Mapping[str, Any]) -> ClipShape:
    """The shape of clips that a `data` section describes."""
    height, width = data["size"]
    return ClipShape(data["frames"], data["fps"], (height, width), data["rate"])


def write(result: dict[str, Any], out: str | Path) -> None:
    """The result as a JSON file, whole or not at all."""
    write_text(out, json.dumps(result, indent=1, allow_nan=False) + "\n")


def read(path: str | Path) -> dict[str, Any]:
    """A result that `write` wrote, of a run. Raises UserError where it is damaged."""
    result: dict[str, Any] = records.read(path, RESULT, again="Judge the run again: tools/evaluate.py.")
    return result


def _dreamt(
    run: str | Path | None,
    prompts: Sequence[str] | None,
    truth: Set | None,
    settings: Settings,
    options: dict[str, Any],
    *,
    give: str | None,
) -> Subject:
    """The run's clips of the prompts, by default the truth's, and the truth through its codec."""
    assert run is not None and truth is not None  # since there are no clips from elsewhere
    if give is not None and (prompts is not None or options["number"] != 1):
        raise UserError("--give goes on with each held-out clip once: leave out --prompts and --number.")
    device = (list(options["devices"]) or default_devices())[0]
    system, config, checkpoint = build.load(run, ema=settings.ema, device=device)
    settings = settings.resolved(Sample(**config.get("sample", {})))
    design = protocol.digest(config["system"])
    made: dict[str, Any] = {"settings": settings, "checkpoint": checkpoint, "design": design}
    if give is None:
        given = dream(run, list(prompts or truth.prompts), **made, **options)
    else:
        rest = {name: options[name] for name in ("cache", "batch", "progress")}
        given = complete(system, truth, give, device=device, **made, **rest)
    have = modalities(given.clips)
    coded = replace(truth, clips=codec(system, truth.clips)).only(have) if hasattr(system, "decode") else None
    made_by = {
        "run": protocol.source(run), "checkpoint": checkpoint, "sampler": settings.sampler, "steps": settings.steps,
        "guidance": settings.guidance, "ema": settings.ema, "clips_per_prompt": options["number"],
        "device": protocol.hardware(device),
    }  # fmt: skip
    made_by |= {} if give is None else {"given": give}
    return Subject("model", given, made_by, coded)


def _measure(sets: dict[str, Set], ruler: Ruler, *, progress: bool) -> dict[str, Measured]:
    found = {}
    with bar("measuring", total=len(sets), show=progress) as advance:
        for name, one in sets.items():
            found[name] = ruler(one)
            advance(1)
    return found


def _add_ends(measured: dict[str, Measured], subject: Subject, truth: Set, *, seed: int) -> None:
    """How near both ends of the judged clips, and of the codec's, are to those of the clips that they go on with."""
    for name, one in ((subject.name, subject.given), ("codec", subject.codec)):
        if one is not None:
            measured[name].row.update(ends(one, truth, seed=seed))


def _protocol(
    subject: Subject, choice: Choice, anchored: Anchors, record: dict[str, Any], run: str | Path | None
) -> dict[str, Any]:
    """Everything that can change a number; see `protocol.py`."""
    given, how = subject.given, protocol.preprocessing(subject.given.clips)
    config = {} if run is None else build.read(Path(run) / "config.yaml")
    n, reference = len(set(given.prompts)), len(anchored.reference.clips) if anchored.reference else 0
    return {
        **subject.made_by,
        "split": choice.split,
        "n": n,
        "seeds": [choice.seed],
        "prompts_hash": protocol.digest(given.prompts),
        "modalities": modalities(given.clips),
        "preprocessing": how,
        "preprocessing_hash": protocol.digest(how),
        **record,
        "intervals": "95 % bootstrap over prompts; distances: 1.96 standard deviations over resampled prompts",
        "versions": protocol.versions(),
        "cautions": protocol.cautions(n=n, split=choice.split, seed=choice.seed, config=config, reference=reference),
    }


def _result(subject: Subject, measured: dict[str, Measured], record: dict[str, Any]) -> dict[str, Any]:
    mine = measured[subject.name]
    found: dict[str, Any] = _plain(
        {
            "protocol": record,
            "rows": with_ratios({name: one.row for name, one in measured.items()}),
            "per_clip": {"prompts": subject.given.prompts, "ids": subject.given.ids, "values": mine.values},
            "nearest": mine.nearest,
        }
    )
    return found


def _plain(value: Any) -> Any:
    """nan and infinities as null, which JSON can hold."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
