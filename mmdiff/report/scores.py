"""Models, ground truth and nulls in one table: what `mmdiff.evaluate` found, as HTML.

The one idea: a number means nothing alone. Above every table stands the ground truth (oracle) and the ground truth
through the model's codec, which no model can beat; below it stand clips that are wrong in a known way, which every
model has to beat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mmdiff.config import spelt
from mmdiff.errors import UserError
from mmdiff.evaluate import evaluate, write

SPLIT = "iid"  # held out from training and from the choice of a checkpoint (which is made on val)
SEARCHED = 512  # training clips in which a report looks for copies; tools/evaluate.py looks at all
COLUMNS = {
    "facts": "all facts", "colour_count": "colours + count", "shape": "shape", "direction": "motion", "timbre": "sound",
    "sync_f1": "sync F1", "sync_f1_shuffled": "… shuffled", "sync_cost_ms": "sync cost, ms",
}  # fmt: skip
ALIGNED = {
    "onset_f1": "onset F1", "onset_f1_shuffled": "… shuffled", "onset_lag_ms": "lag, ms", "energy_f1": "energy F1",
    "energy_f1_shuffled": "… shuffled", "vendi_video": "different pictures", "vendi_audio": "different sounds",
    "free_entropy_bits": "free choice, bits",
}  # fmt: skip
GIVEN = {
    "first_frame_error": "first frame", "first_frame_error_shuffled": "… shuffled", "last_frame_error": "last frame",
    "last_frame_error_shuffled": "… shuffled",
}  # fmt: skip
DISTANCES = {
    "fd_rand_appearance_ratio": "appearance", "fd_rand_motion_ratio": "motion", "fd_rand_spectrum_ratio": "spectrum",
    "fd_rand_time_ratio": "time", "memorised_video": "copied pictures", "memorised_audio": "copied sounds",
    "fvd": "FVD", "fid": "FID", "fad_vggish": "FAD", "fad_clap": "FAD-CLAP", "clip_score": "CLIP",
    "imagebind_score": "ImageBind",
}  # fmt: skip
NAMES = {"oracle": "ground truth", "codec": "ground truth, through the codec"}
MADE = ("sampler", "steps", "guidance")  # settings that may differ between the models of a table
JUDGED = ("model", "clips")
Rows = Mapping[str, Mapping[str, Mapping[str, Any]]]


def section(folder: Path, models: Sequence[str], *, count: int, seed: int, progress: bool) -> str:
    """The table of scores, also written to RUN/scores.json; a note where nothing says what is true of the clips."""
    if not count:
        return ""
    options: dict[str, Any] = {"split": SPLIT, "n": count, "seed": seed, "training": SEARCHED, "progress": progress}
    try:
        found = {name: evaluate(name, like=folder, cache=folder / "evaluation", **options) for name in models}
    except UserError as error:
        return f'<h2>Scores</h2><p class="note">Left out: {escape(str(error))}</p>'
    result = merged(found)
    write(result, folder / "scores.json")
    marked = set(models) | {"model"}
    return f"<h2>Scores</h2>{table(result['rows'], COLUMNS, marked=marked)}{note(result['protocol'])}"


def merged(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Several models' results as one; with more than one, models go by their names and not as "model"."""
    first = next(iter(found.values()))
    if len(found) == 1:
        return {"protocol": first["protocol"], "rows": first["rows"]}
    rows = {"oracle": first["rows"]["oracle"]}
    for name, result in found.items():
        rows |= {f"codec of {name}": result["rows"]["codec"]} if "codec" in result["rows"] else {}
        rows[name] = result["rows"]["model"]
    rows |= {name: row for name, row in first["rows"].items() if name not in ("oracle", "codec", "model")}
    models = {name: {key: result["protocol"].get(key) for key in MADE} for name, result in found.items()}
    return {"protocol": first["protocol"] | {"run": list(found), "models": models}, "rows": rows}


def table(rows: Rows, columns: Mapping[str, str], *, marked: Sequence[str] | set[str] = JUDGED) -> str:
    """Rows of value and interval, in the columns that any of the rows has; the judged rows in bold."""
    kept = {metric: label for metric, label in columns.items() if any(_known(row, metric) for row in rows.values())}
    head = "".join(f"<th>{label}</th>" for label in kept.values())
    body = "\n".join(
        f"<tr{' class=model' if name in marked else ''}><td>{escape(_label(name, rows, marked))}</td>"
        + "".join(_cell(row.get(metric), metric) for metric in kept)
        + "</tr>"
        for name, row in rows.items()
    )
    return f'<div class="scroll"><table><tr><th></th>{head}</tr>\n{body}</table></div>'


def _label(name: str, rows: Rows, marked: Sequence[str] | set[str]) -> str:
    if name in marked or name in NAMES or name.startswith("codec of "):
        return NAMES.get(name, name)
    return f"null: {name}" if "oracle" in rows else name


def _known(row: Mapping[str, Mapping[str, Any]], metric: str) -> bool:
    return metric in row and row[metric]["value"] is not None


def _cell(entry: Mapping[str, Any] | None, metric: str) -> str:
    if entry is None or entry["value"] is None:
        return "<td>–</td>"
    digits = 0 if metric.endswith("_ms") else 1 if metric.endswith("_ratio") else 3 if "_error" in metric else 2
    value = f"{entry['value']:.{digits}f}"
    if entry["low"] is None:
        return f"<td>{value}</td>"
    return f"<td>{value}<small>{entry['low']:.{digits}f} – {entry['high']:.{digits}f}</small></td>"


def note(protocol: Mapping[str, Any]) -> str:
    """What a reader needs to believe the table."""
    weights = {True: ", averaged weights", False: ", raw weights"}.get(protocol.get("ema", ""), "")
    cautions = "".join(f" Caution: {text}." for text in protocol["cautions"])
    made = f"seed {protocol['seeds'][0]}{_made(protocol)}{weights}"
    text = f"""{protocol["n"]} captions of the split “{protocol["split"]}”, {made}.
        Shares of clips that fulfil what the caption states; “all facts” is their conjunction. Sync F1 matches impacts
        seen with onsets heard within 60 ms, both read from the clip; “shuffled” pairs the same pictures with the sounds
        of other clips. Small figures are 95 % bootstrap intervals over captions.{cautions}"""
    return f'<p class="note">{escape(text)}</p>'


def _made(protocol: Mapping[str, Any]) -> str:
    """How the clips were made, said once where all models of the table agree."""
    models = protocol.get("models", {"": protocol})
    said = {
        name: ", ".join(f"{key} {spelt(one[key])}" for key in MADE if one.get(key) is not None)
        for name, one in models.items()
    }
    if len(set(said.values())) == 1:
        return "".join(f", {text}" for text in {*said.values()} if text)
    return "".join(f"; {name} with {text}" for name, text in said.items())
