"""What training would make of someone's clips, before it is started: a page to look at, and the same as JSON.

The one idea: everything is found out by doing what training does, with its own code: each clip's window is read, steps
are taken from its plan, previews are what it would see and hear. The page shows what the JSON holds and adds pictures.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmdiff import noise
from mmdiff.data.manifest import Entry, Listing, read_listing
from mmdiff.errors import UserError
from mmdiff.files import write_text
from mmdiff.inspection.offsets import Offset, offsets
from mmdiff.inspection.plan import Outlook, outlook
from mmdiff.inspection.recipe import Recipe, from_config, policy_of
from mmdiff.inspection.speed import Speed, speeds
from mmdiff.inspection.verdicts import SILENT, Verdict, judge

SPOTS, TIMED = 12, 8  # clips that are checked for sync, and that are read against the clock


@dataclass(frozen=True)
class Inspection:
    """Everything that was found."""

    path: str
    recipe: Recipe
    listing: Listing
    entries: list[Entry]  # that were looked at
    listed: int  # in the split
    verdicts: list[Verdict]
    outlook: Outlook
    offset: Offset
    speeds: list[Speed]

    @property
    def kept(self) -> list[tuple[Entry, Verdict]]:
        """The clips that training would use."""
        return [(e, v) for e, v in zip(self.entries, self.verdicts, strict=True) if v.reason is None]

    @property
    def reasons(self) -> dict[str, int]:
        """Reasons against clips without names and numbers, and how many have each."""
        return dict(Counter(general(v) for v in self.verdicts if v.reason is not None).most_common())

    @property
    def sound(self) -> dict[str, int]:
        """Of the kept clips: with sound in the window, without, silent, without a picture."""
        kept = [verdict for _, verdict in self.kept]
        return {
            "with sound": sum(v.sound for v in kept),
            "without sound": sum(not v.sound for v in kept),
            "silent": sum(v.sound and v.peak is not None and v.peak < SILENT for v in kept),
            "without picture": sum(not v.picture for v in kept),
        }

    def to_json(self) -> dict[str, Any]:
        """Plain containers; what a file does not tell is null."""
        policy = asdict(self.recipe.policy)
        splits = Counter(entry.split or "" for entry in self.listing.entries)
        found = {
            "path": self.path,
            "read_as": policy | {"split": self.recipe.split},
            "listed": self.listed,
            "looked_at": len(self.verdicts),
            "kept": len(self.kept),
            "reasons": self.reasons,
            "splits": dict(splits),
            "notes": self.listing.notes,
            "sound": self.sound,
            "training": asdict(self.outlook),
            "offset": asdict(self.offset),
            "speed": [asdict(speed) for speed in self.speeds],
            "clips": [asdict(verdict) for verdict in self.verdicts],
        }
        return _plain(found)


def general(verdict: Verdict) -> str:
    """A reason without the file's name and without numbers."""
    text = (verdict.reason or "").removeprefix(f"{verdict.file}: ").removeprefix(f"{verdict.file} ")
    return re.sub(r"\d+(\.\d+)?", "N", re.sub(r"^/\S+: ", "", text)).rstrip(".")


def inspect(
    path: str | Path,
    *,
    config: str | None = None,
    overrides: Sequence[str] = (),
    shape: Mapping[str, Any] | None = None,
    count: int | None = None,
    progress: bool = True,
) -> Inspection:
    """Look at the clips of a folder or manifest as the training of a config would, or in a shape without any training.

    shape    frames, fps, size, rate, where there is no config      count   look at so many clips, drawn by their ids
    Raises UserError for what keeps it from looking at all; what is wrong with clips is in the verdicts.
    """
    if (config is None) == (shape is None):
        raise UserError("Give a config, or frames, fps, size and rate, to say what the clips are read for.")
    recipe = Recipe(policy_of(dict(shape))) if shape is not None else from_config(str(config), overrides, path)
    listing = read_listing(path)
    listed = listing.of(recipe.split)
    entries = listed if count is None else sorted(listed, key=lambda e: noise.key("inspection", e.id))[:count]
    verdicts = judge(entries, recipe, progress=progress)
    good = [(e, v) for e, v in zip(entries, verdicts, strict=True) if v.reason is None]
    both = [e for e, v in good if e.video and v.picture and v.sound and v.fps]
    moving = [e for e, v in good if v.picture and v.fps]
    return Inspection(
        path=str(path),
        recipe=recipe,
        listing=listing,
        entries=list(entries),
        listed=len(listed),
        verdicts=verdicts,
        outlook=outlook(verdicts, recipe, listed=len(listed)),
        offset=offsets(spread(both, SPOTS), progress=progress),
        speeds=speeds(spread(moving, TIMED), recipe.policy, progress=progress),
    )


def spread(things: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of them, evenly apart."""
    step = max(1.0, len(things) / count)
    return [things[int(k * step)] for k in range(min(count, len(things)))]


def write(found: Inspection, folder: str | Path, *, previews: int = 12) -> list[Path]:
    """Write inspection.json and inspection.html with so many clips to look at -> their paths."""
    from mmdiff.inspection.page import render

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    record, page = folder / "inspection.json", folder / "inspection.html"
    write_text(record, json.dumps(found.to_json(), indent=1, allow_nan=False) + "\n")
    write_text(page, render(found, previews=previews))
    return [record, page]


def summary(found: Inspection) -> str:
    """A few lines for a terminal."""
    kept, sound, plan = len(found.kept), found.sound, found.outlook
    lines = [f"{found.path}: {kept} of {len(found.verdicts)} clips kept ({found.listed} listed)."]
    lines += [f"  dropped {n}: {reason}" for reason, n in found.reasons.items()]
    lines += [f"  {note}" for note in found.listing.notes]
    lines.append(f"  sound: {', '.join(f'{n} {name}' for name, n in sound.items())}")
    lines += [f"  bucket {room.shape}: {room.kept} of {room.clips} clips" for room in plan.rooms]
    if plan.problem:
        lines.append(f"  no such training: {plan.problem}")
    elif plan.epochs is not None and plan.tokens_a_step is not None and plan.clips_a_step is not None:
        lines.append(
            f"  {plan.steps} steps of {plan.clips_a_step:.4g} clips and {plan.tokens_a_step[1]:,.0f} tokens: "
            f"{plan.epochs:.3g} epochs"
        )
    if (offset := found.offset).median is not None:
        lines.append(f"  sound minus picture: {round(1000 * offset.median):+d} ms over {offset.pairs} pairs")
    if offset.met is not None and offset.chance is not None:
        lines.append(f"  onsets that meet something seen: {offset.met:.0%}; by chance {offset.chance:.0%}")
    lines += [f"  {s.reader}, {s.threads} thread(s): {s.clips_a_second:.1f} clips a second" for s in found.speeds]
    return "\n".join(lines)


def _plain(value: Any) -> Any:
    """Containers whose numbers JSON knows: what is not finite is null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
