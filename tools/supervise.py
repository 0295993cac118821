"""Train under supervision: start again, from the newest sound checkpoint, a run that failed.

    python tools/supervise.py --run runs/a --restarts 5 -- \\
        deepspeed --num_gpus 8 tools/train.py CONFIG run=runs/a engine.config=configs/deepspeed/zero2.json
The command must train in the folder that --run names. Restarts end when one of them reached no newer checkpoint.
Exit codes are the command's: 0 done, 2 and 3 for a person to mend, 75 stopped by a signal after saving (queue it
again); 1 also for a command that said 0 without finishing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmdiff.train.supervise import supervise


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, type=Path, help="the run's folder, as in run=FOLDER of the command")
    parser.add_argument("--restarts", type=int, default=3, metavar="N", help="at most so many (default: %(default)s)")
    parser.add_argument("command", nargs="+", metavar="-- COMMAND", help="what to run, with its arguments")
    args = parser.parse_args()
    try:
        return supervise(args.command, args.run, restarts=args.restarts)
    except OSError as error:
        print(f"error: {args.command[0]} cannot be started: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
