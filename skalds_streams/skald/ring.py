"""The log files of a node's tasks: two halves a task, the newer `<name>.log`, the older `<name>.log.1`.

Rules: only whole lines are written, and a half begins with one; a half above its share becomes the older one, whose
predecessor goes. What a crash or a full disk cut off in the middle of a line ends there: the next line is a line of its
own. Nothing is kept open between two calls, so files may be deleted or moved at any time. Every call blocks on the
disk: none belongs on an event loop.

What does not live here: what the lines say (`output`), and where they come from (`logs`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, unquote

SUFFIX = ".log"
HOSTS_NAME = "shared-hosts.out"
NAME_MOST_CHARS = 180
"""File names of longer ids are cut and end with a digest: file systems take 255 bytes."""
BLOCK_BYTES = 64 * 1024
TAIL_MOST_BYTES = 8 * 1024 * 1024
"""More than this is not read for a tail, however many lines are asked for."""
STAMP_BYTES = 24
"""The first line's time. Together with the inode it tells a file from another that got the same inode later."""


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the log of a task, as good as the file that it is in."""

    inode: int = 0
    stamp: str = ""
    offset: int = 0

    def __str__(self) -> str:
        return f"{self.inode}/{self.stamp}/{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Position | None:
        """Inverse of `str`; None for anything else."""
        parts = text.split("/")
        if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) < 20 for part in parts[::2]):
            return None
        return cls(int(parts[0]), parts[1][:STAMP_BYTES], int(parts[2]))


@dataclass(frozen=True, slots=True)
class Read:
    """Lines, without their ends, and the place behind them. `missed`: the ring has overtaken who reads."""

    lines: list[bytes]
    position: Position
    missed: bool = False
    more: bool = False
    """Whether there are further lines already."""


class Ring:
    """The writing side of one task's log."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        """max_bytes: of both halves together."""
        self.path = path
        self._half_bytes = max_bytes // 2
        self._torn = True
        """Whether the file may end in the middle of a line."""

    def append(self, lines: bytes) -> None:
        """Write whole lines. Raises OSError when the disk does not take them; some may be written then."""
        rest = memoryview(lines)
        while rest:
            try:
                fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
            except FileNotFoundError:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
            try:
                size = self._mended(fd)
                fitting = _fitting(rest, self._half_bytes - size)
                if not fitting and size == 0:
                    fitting = bytes(rest).find(b"\n") + 1 or len(rest)  # a line larger than a half
                if fitting:
                    self._write(fd, rest[:fitting])
                    rest = rest[fitting:]
            finally:
                os.close(fd)
            if rest:
                self.path.replace(older(self.path))

    def _mended(self, fd: int) -> int:
        """The size of the file, whose last line is whole from now on."""
        size = os.fstat(fd).st_size
        if self._torn:
            if size and os.pread(fd, 1, size - 1) != b"\n":
                self._write(fd, b"\n")
                size += 1
            self._torn = False
        return size

    def _write(self, fd: int, data: bytes | memoryview) -> None:
        self._torn = True
        written = os.write(fd, data)
        if written < len(data):
            os.write(fd, data[written:])  # raises what is wrong
        self._torn = False


def _fitting(lines: memoryview, room: int) -> int:
    """Length of the whole lines at the beginning that fit."""
    if len(lines) <= room:
        return len(lines)
    return bytes(lines[: max(room, 0)]).rfind(b"\n") + 1


def older(path: Path) -> Path:
    """The other half."""
    return path.with_name(path.name + ".1")


class LogFiles:
    """The logs of a directory: where they are, what is in them, which may go."""

    def __init__(self, directory: Path, *, max_bytes: int, most: int) -> None:
        """max_bytes: of one task's log; most: number of tasks whose logs are kept."""
        self._directory, self._max_bytes, self._most = directory, max_bytes, most

    def path(self, task_id: str) -> Path:
        """The newer half."""
        return self._directory / (file_name(task_id) + SUFFIX)

    def ring(self, task_id: str) -> Ring:
        """To write with."""
        return Ring(self.path(task_id), self._max_bytes)

    def ring_of_hosts(self) -> Ring:
        """Of what is printed in hosts that many runs share, and is no run's. It has no name that a task could have."""
        return Ring(self._directory / HOSTS_NAME, self._max_bytes)

    def exists(self, task_id: str) -> bool:
        return self.path(task_id).exists() or older(self.path(task_id)).exists()

    def tail(self, task_id: str, most: int) -> Read:
        """The last whole lines, at most so many."""
        with ExitStack() as stack:
            halves = self._halves(task_id, stack)
            found: list[bytes] = []
            position, left = Position(), TAIL_MOST_BYTES
            for at, (file, place) in enumerate(reversed(halves)):
                data = _end_of(file, most - len(found), left)
                whole = data[: data.rfind(b"\n") + 1] if at == 0 else data
                if at == 0:
                    position = Position(place.inode, place.stamp, file.seek(0, os.SEEK_CUR) - len(data) + len(whole))
                left -= len(data)
                lines = whole.split(b"\n")
                if not lines[-1]:
                    lines.pop()
                wanted = most - len(found)
                found = (lines[-wanted:] if wanted else []) + found
                if len(found) >= most or left <= 0:
                    break
            return Read(found, position)

    def read_on(self, task_id: str, position: Position, most_bytes: int = BLOCK_BYTES) -> Read:
        """The whole lines behind a place, at most so many bytes of them."""
        with ExitStack() as stack:
            halves = self._halves(task_id, stack)
            if not halves:
                return Read([], Position(), missed=position != Position())
            at = next((at for at, (_, place) in enumerate(halves) if _same_file(place, position)), None)
            begins = position == Position()
            missed = at is None and not begins
            at, offset = (0, 0) if at is None else (at, position.offset)
            file, place = halves[at]
            size = os.fstat(file.fileno()).st_size
            if offset > size:
                offset, missed = 0, True
            file.seek(offset)
            data = file.read(most_bytes)
            is_last = at == len(halves) - 1
            ended = offset + len(data) >= os.fstat(file.fileno()).st_size
            if is_last or not ended:
                whole = data[: data.rfind(b"\n") + 1]
                data = data if len(data) == most_bytes and not whole else whole
            if ended and not is_last:
                after, more = halves[at + 1][1], True
            else:
                after, more = Position(place.inode, place.stamp, offset + len(data)), not ended
            lines = data.split(b"\n")
            if not lines[-1]:
                lines.pop()
            return Read(lines, after, missed, more)

    def _halves(self, task_id: str, stack: ExitStack) -> list[tuple[BinaryIO, Position]]:
        """The files that there are, the older first. Opened in this order, a change of halves in between shows one of
        them twice, and never loses one.
        """
        path = self.path(task_id)
        newer = _open(path, stack)
        before = _open(older(path), stack)
        halves = [half for half in (before, newer) if half is not None]
        if len(halves) == 2 and halves[0][1].inode == halves[1][1].inode:
            halves = halves[:1]
        return halves

    def sweep(self, is_wanted: Callable[[str], bool], ids: Callable[[], Collection[str]], open_ids: set[str]) -> int:
        """Delete the logs of tasks that are not wanted any more, and the oldest above the number that is kept.

        ids: all that are wanted; asked only when there is a name that tells no id. open_ids: never touched. Returns
        how many tasks' logs went.
        """
        names = {file_name(task_id) for task_id in open_ids}
        cut: frozenset[str] | None = None
        left: list[tuple[float, str]] = []
        gone: list[str] = []
        for name, written_at in self._names():
            if name in names:
                left.append((float("inf"), name))
                continue
            task_id = unquote(name)
            if file_name(task_id) == name:
                wanted = is_wanted(task_id)
            else:
                cut = frozenset(map(file_name, ids())) if cut is None else cut
                wanted = name in cut
            if wanted:
                left.append((written_at, name))
            else:
                gone.append(name)
        left.sort(reverse=True)
        gone += [name for written_at, name in left[self._most :] if written_at != float("inf")]
        for name in gone:
            path = self._directory / (name + SUFFIX)
            for half in (older(path), path):
                half.unlink(missing_ok=True)
        return len(gone)

    def _names(self) -> Iterator[tuple[str, float]]:
        """(file name without suffix, when it was written to last), once a task."""
        found: dict[str, float] = {}
        with suppress(FileNotFoundError), os.scandir(self._directory) as entries:
            for entry in entries:
                name = entry.name.removesuffix(".1")
                if not name.endswith(SUFFIX):
                    continue
                name = name.removesuffix(SUFFIX)
                with suppress(FileNotFoundError):
                    found[name] = max(found.get(name, 0.0), entry.stat(follow_symlinks=False).st_mtime)
        yield from found.items()


def file_name(task_id: str) -> str:
    """A file name for a task, without suffix; other ids have other names."""
    plain = quote(task_id, safe="", errors="replace")
    if len(plain) <= NAME_MOST_CHARS:
        return plain
    return f"{plain[:NAME_MOST_CHARS]}={hashlib.sha256(task_id.encode(errors='replace')).hexdigest()[:16]}"


def _open(path: Path, stack: ExitStack) -> tuple[BinaryIO, Position] | None:
    try:
        file = stack.enter_context(path.open("rb"))
    except FileNotFoundError:
        return None
    stamp = file.read(STAMP_BYTES).decode("ascii", "replace").replace("/", "-")
    if len(stamp) < STAMP_BYTES:
        return None  # nothing is in it yet
    return file, Position(os.fstat(file.fileno()).st_ino, stamp)


def _same_file(one: Position, other: Position) -> bool:
    return (one.inode, one.stamp) == (other.inode, other.stamp)


def _end_of(file: BinaryIO, lines: int, most_bytes: int) -> bytes:
    """The end of a file with so many whole lines, as far as there are; read block by block, backwards."""
    end = file.seek(0, os.SEEK_END)
    at, blocks, newlines = end, list[bytes](), 0
    while at and newlines <= lines and end - at < most_bytes:
        size = min(BLOCK_BYTES, at)
        at -= size
        file.seek(at)
        blocks.insert(0, file.read(size))
        newlines += blocks[0].count(b"\n")
    file.seek(end)
    data = b"".join(blocks)
    return data[data.find(b"\n") + 1 :] if at else data
