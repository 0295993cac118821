"""Latents and text embeddings of a whole data set, written once (tools/encode.py) and read by data/latents.py.

settle the plan -> visit every shard, by any executor -> write the index of what is there. Killed anywhere and started
again, every step finds what was finished and makes the rest; the result is the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from mmdiff.data.shards import Shard, sha256, written
from mmdiff.encode.executors import EXECUTORS, Work
from mmdiff.encode.job import Job, plan_hash, settle
from mmdiff.encode.ledger import in_turn
from mmdiff.encode.work import DIGITS, Visit, present
from mmdiff.files import write_text
from mmdiff.progress import bar

__all__ = ["Job", "encode"]
MENTIONED = 5


def encode(job: Job, *, executor: str = "local", workers: int = 1, show: bool = True) -> list[str]:
    """Do a job, or what is left of it -> what to tell. Raises UserError for what the user can mend."""
    works = settle(job)
    visits = _visited(job, works, executor, workers, show)
    files = {(v.split, v.number): v.file for v in visits}
    others = {work: present(job, *work) for work in works if work not in files}
    missing = [work for work, file in others.items() if file is None]
    told = _told(job, visits)
    if missing:
        return [*told, f"{len(missing)} of {len(works)} shards are left to other tasks; the last one writes the index."]
    found = files | {work: file for work, file in others.items() if file is not None}
    for split in dict.fromkeys(split for split, _ in works):
        told.append(_index(job, split, [found[work] for work in works if work[0] == split]))
    return [*told, f"train on them with data.latents={job.out}"]


def _visited(job: Job, works: Sequence[Work], executor: str, workers: int, show: bool) -> list[Visit]:
    """Visits of all shards that this executor looks after, waiting for those that another process is at."""
    done: list[Visit] = []
    left = list(works)
    with bar("encoding shards", total=len(works), show=show) as advance:
        while left:
            busy = []
            for visit in EXECUTORS[executor](job, left, workers):
                if visit.file:
                    done.append(visit)
                    advance(1)
                else:
                    busy.append((visit.split, visit.number))
            left = busy
            time.sleep(0.5 if left else 0)
    return done


def _told(job: Job, visits: Sequence[Visit]) -> list[str]:
    made, stale = sum(v.made for v in visits), [name for v in visits for name in v.stale]
    told = [f"{len(visits)} shards in {job.out}: {made} made now, {len(visits) - made} found and sound"]
    if stale:
        names = ", ".join(stale[:MENTIONED]) + (f" and {len(stale) - MENTIONED} more" if len(stale) > MENTIONED else "")
        told.append(f"stale: {len(stale)} clips have changed since they were encoded, such as {names}; old shards stay")
    return told


def _index(job: Job, split: str, files: Sequence[str]) -> str:
    """Write the index of a split, under the hash of its text."""
    folder, headers = job.folder / split, []
    for name in files:
        headers.append(Shard(folder / name))
    rows = [row for shard in headers for row in shard.header["rows"]]
    shards = [[name, sha256(shard.text)] for name, shard in zip(files, headers, strict=True)]
    step = job.shard_size * job.views
    text = written({"plan": plan_hash(job), "shards": shards, "rows": rows, "views": job.views, "step": step})
    path = folder / f"index-{sha256(text)[:DIGITS]}.json"
    with in_turn(folder / "index"):  # also where it is there already: a claim may have been left behind
        if not path.is_file():
            write_text(path, text)
    bad = [row for row in rows if "bad" in row]
    size = sum((folder / name).stat().st_size for name in files)
    lost = "".join(f"\n    not usable: {row['id']}: {row['bad']}" for row in bad[:MENTIONED])
    more = f"\n    and {len(bad) - MENTIONED} more" if len(bad) > MENTIONED else ""
    return f"{path}: {len(rows)} clips, {size:,} bytes, {len(bad)} not usable{lost}{more}"
