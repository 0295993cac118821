"""Tar archives as folders: where each member lies, read in place and never unpacked.

The one idea: a member is named by a path that goes on inside its archive (shard.tar/a.mp4), and where its bytes lie is
a function of the archive alone; so no index has to be written, and every process finds every clip at random access.
Archives come from strangers: regular files and folders are taken, in the ustar, GNU and pax ways of writing their names
(POSIX.1-2001, "pax Interchange Format"), and everything else is refused with its name. Nothing is lost in silence: an
archive without its end is refused as well.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

from mmdiff.errors import UserError

SUFFIX = ".tar"
BLOCK = 512
FILES, FOLDER, PAX, LONG_NAME = (b"0", b"\0"), b"5", b"x", b"L"
REFUSED = {
    b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe", b"7": "reserved",
    b"S": "a sparse file", b"g": "a header for all members", b"K": "a link with a long name",
}  # fmt: skip
LARGEST = 1 << 60  # bytes of a member, which a file can be positioned at
LARGEST_HEADER = 1 << 16  # bytes of a header that holds a long name


class Place(NamedTuple):
    """Where a member's bytes lie in its archive."""

    offset: int
    size: int


def inside(path: Path) -> tuple[Path, str] | None:
    """The archive and the member's name in it; None for a path that leads through no archive."""
    for archive in path.parents:
        if archive.suffix.lower() == SUFFIX and archive.is_file():
            return archive, path.relative_to(archive).as_posix()
    return None


def size(path: Path) -> int:
    """Bytes of a file or of a member. Raises OSError where there is none."""
    found = inside(path)
    return path.stat().st_size if found is None else _place(*found).size


def is_file(path: Path) -> bool:
    """Whether there is such a file or such a member."""
    found = inside(path)
    return path.is_file() if found is None else found[1] in members(found[0])


def read(path: Path, count: int = -1) -> bytes:
    """The first `count` bytes of a file or of a member, or all of them."""
    with stream(path) as file:
        return file.read(count)


def stream(path: Path) -> BinaryIO:
    """A file or a member, opened for reading bytes."""
    found = inside(path)
    if found is None:
        return path.open("rb")
    return io.BufferedReader(Window(found[0], _place(*found), str(path)))


@contextmanager
def source(path: Path) -> Iterator[str | BinaryIO]:
    """What a decoder is to open: the address of a file, or the stream of a member."""
    if inside(path) is None:
        yield f"file:{path}"
    else:
        with stream(path) as file:
            yield file


class Window(io.RawIOBase):
    """A stretch of a file as a file of its own, with the name of what lies there."""

    def __init__(self, path: Path, place: Place, name: str) -> None:
        self.name, self._place, self._at, self._file = name, place, 0, path.open("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._place.size}[whence])
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        wanted = min(len(buffer), max(0, self._place.size - self._at))
        self._file.seek(self._place.offset + self._at)
        got = self._file.read(wanted)
        buffer[: len(got)] = got
        self._at += len(got)
        return len(got)

    def close(self) -> None:
        self._file.close()
        super().close()


# ---- the index -----------------------------------------------------------------------------------------------------


def members(archive: Path) -> dict[str, Place]:
    """Name -> place of every regular file, in the archive's order. Raises UserError for what is refused."""
    state = archive.stat()
    return _members(archive, state.st_mtime_ns, state.st_size)


def _place(archive: Path, name: str) -> Place:
    found = members(archive).get(name)
    if found is None:
        raise FileNotFoundError(f"{archive} has no member {name}")
    return found


@cache
def _members(archive: Path, changed: int, length: int) -> dict[str, Place]:
    """`changed` and `length` are those of the file, so that another one is read anew."""
    found: dict[str, Place] = {}
    with archive.open("rb") as file:
        for name, place in _walk(file, archive):
            if place.offset + place.size > length:
                raise UserError(f"{archive}: truncated; '{name}' ends beyond the end of the archive.")
            if name in found:
                raise UserError(f"{archive}: two members are named '{name}'; pack it again with every name once.")
            found[name] = place
    return found


def _walk(file: BinaryIO, archive: Path) -> Iterator[tuple[str, Place]]:
    """Every regular file, header by header."""
    long: str | None = None
    stated: int | None = None
    while (head := _header(file, archive)) is not None:
        kind, count = head[156:157], _number(head[124:136], archive)
        offset = file.tell()
        if kind == PAX:
            long, stated = _pax(_small(file, count, archive), archive)
        elif kind == LONG_NAME:
            long = _text(_small(file, count, archive).rstrip(b"\0"), archive)
        else:
            name = _clean(_short(head, archive) if long is None else long, archive)
            if kind not in (*FILES, FOLDER):
                what = REFUSED.get(kind, f"of the unknown kind {kind!r}")
                raise UserError(f"{archive}: '{name}' is {what}. Only files and folders are taken: pack it again.")
            count = stated if stated is not None else count
            if count >= LARGEST:
                raise UserError(f"{archive}: '{name}' states {count} bytes, more than any file has.")
            if kind != FOLDER and not name.endswith("/"):
                yield name, Place(offset, count)
            long = stated = None
        file.seek(offset + -(-count // BLOCK) * BLOCK)


def _header(file: BinaryIO, archive: Path) -> bytes | None:
    """The next header, None at the archive's end."""
    at, head = file.tell(), file.read(BLOCK)
    if head == bytes(BLOCK):
        if file.read(1 << 20).strip(b"\0"):
            raise UserError(f"{archive}: goes on after its end. Archives are not joined by joining their bytes.")
        return None
    if len(head) < BLOCK:
        raise UserError(f"{archive}: truncated; it breaks off at byte {at + len(head)} without an end.")
    counted = sum(head[:148]) + 8 * 32 + sum(head[156:])
    if counted != _number(head[148:156], archive):
        raise UserError(f"{archive}: no tar archive, or damaged at byte {at}. Compressed ones have to be unpacked.")
    return head


def _number(field: bytes, archive: Path) -> int:
    """An octal number, or one of base 256 where it is large (GNU)."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        value = int(field.split(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        value = -1
    if value < 0:
        raise UserError(f"{archive}: no tar archive, or damaged: {field!r} is no number.")
    return value


def _small(file: BinaryIO, count: int, archive: Path) -> bytes:
    if count > LARGEST_HEADER:
        raise UserError(f"{archive}: a header of {count} bytes; more than {LARGEST_HEADER} are refused.")
    return file.read(count)


def _pax(records: bytes, archive: Path) -> tuple[str | None, int | None]:
    """The name and the size that "LENGTH KEY=VALUE\\n" records state for the next member."""
    name, count = None, None
    while records:
        digits, _, rest = records.partition(b" ")
        end = int(digits) if digits.isdigit() and len(digits) < 9 else 0
        key, sign, value = records[len(digits) + 1 : end - 1].partition(b"=")
        if not sign or records[end - 1 : end] != b"\n" or key.startswith(b"GNU.sparse"):
            raise UserError(f"{archive}: a pax header that is damaged, or of a sparse file.")
        if key == b"path":
            name = _text(value, archive)
        if key == b"size":
            count = int(value) if value.isdigit() and len(value) < 19 else -1
            if count < 0:
                raise UserError(f"{archive}: a pax header states the size {value[:40]!r}.")
        records = records[end:]
    return name, count


def _short(head: bytes, archive: Path) -> str:
    """The name in a header itself, with the prefix that ustar may put before it."""
    name, prefix = head[:100].split(b"\0")[0], head[345:500].split(b"\0")[0]
    ustar = head[257:263] == b"ustar\0"
    return _text(prefix + b"/" + name if prefix and ustar else name, archive)


def _text(name: bytes, archive: Path) -> str:
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{archive}: a member's name is not UTF-8: {name[:80]!r}.") from error


def _clean(name: str, archive: Path) -> str:
    """A name relative to the archive, or a refusal."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not name or name.startswith("/") or ".." in parts or "\0" in name:
        raise UserError(f"{archive}: a member is named {name[:80]!r}, which leads out of the archive.")
    return "/".join(parts) + ("/" if name.endswith("/") else "")
