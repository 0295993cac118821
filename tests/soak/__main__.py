"""The long checks of reliability: `python tests/soak`. Prints a table; exits with 1 if a check does not hold.

A check that takes longer than --minutes is ended and counts as failed, so that the whole is bounded.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], metavar="WORD", help="checks whose name holds the word")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--decodes", type=int, default=5000)
    parser.add_argument("--suites", type=int, default=20, help="times the whole test suite is run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60, help="bound on one check")
    parser.add_argument("--out", type=Path, help="where the runs are left; by default they are deleted")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        return soak(args, args.out or Path(folder))


def soak(args: argparse.Namespace, folder: Path) -> int:
    """Run the checks in turn, each bounded -> the exit code."""
    from checks import CHECKS, Soak, prepared

    folder.mkdir(parents=True, exist_ok=True)
    told = Soak(folder, prepared(folder), args.kills, args.decodes, args.suites, args.seed)
    signal.signal(signal.SIGALRM, too_long)
    rows = []
    for name, (numbers, check) in CHECKS.items():
        if args.only and not any(word in name for word in args.only):
            continue
        began, held = time.monotonic(), True
        signal.alarm(round(args.minutes * 60))
        try:
            said = check(told)
        except (AssertionError, OSError, TimeoutError) as error:
            said, held = f"{type(error).__name__}: {error}", False
        signal.alarm(0)
        rows.append({"name": name, "checks": numbers, "held": held, "said": said, "s": time.monotonic() - began})
        print(json.dumps(rows[-1]), flush=True)
    print("\n| check | number | what was done | holds | minutes |\n|---|---|---|---|---|")
    for row in rows:
        said = " ".join(row["said"].split())[:600]
        print(f"| {row['name']} | {row['checks']} | {said} | {'yes' if row['held'] else 'NO'} | {row['s'] / 60:.1f} |")
    return int(not all(row["held"] for row in rows))


def too_long(number: int, frame: FrameType | None) -> None:
    raise TimeoutError("took longer than --minutes")


if __name__ == "__main__":
    sys.exit(main())
