"""The one exception that a person is meant to read: what is wrong, where, and what to do about it."""

from __future__ import annotations


class UserError(Exception):
    """A mistake that the user can mend; tools print its one paragraph without a traceback and exit with 2."""


class NoSoundCheckpoint(UserError):
    """Checkpoints exist but none of them is sound; tools exit with 3 so that nothing restarts from step 0 by itself."""
