"""The exception that a person is meant to read (what is wrong, where, what to do), and how a tool ends on it."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake that the user can mend; tools print its one paragraph without a traceback and exit with 2."""


class NoSoundCheckpoint(UserError):
    """Checkpoints exist but none of them is sound; tools exit with 3 so that nothing restarts from step 0 by itself."""


def run_tool(main: Callable[[list[str]], None], argv: list[str]) -> int:
    """Run a tool -> its exit code: 0, 2 for the user's mistakes, 3 for no sound checkpoint, 130 for ctrl-c."""
    try:
        main(argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3 if isinstance(error, NoSoundCheckpoint) else 2
    except KeyboardInterrupt:
        return 130
    return 0
