"""Bytes that a worker printed → lines of its log, each with time, task and epoch; secrets masked, not too many.

    2026-11-25T15:40:01.123Z cam-1@3 connected to camera 7

Rules: pure, the clocks are arguments. A secret is masked wherever it stands, also when it came in two pieces. What is
printed faster than RATE_BYTES_S for longer than a moment is left out, with a line that says how much; its end is always
kept, as it is what a crash leaves. Memory is bounded whatever is printed.

What does not live here: pipes and threads (`logs`), files (`ring`).
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from datetime import UTC, datetime
from urllib.parse import quote

import orjson

from skalds_streams.core.redact import MASK, SECRET_MIN_CHARS

LINE_MOST_BYTES = 16 * 1024
"""A longer line goes on in the next one."""
PARTIAL_S = 1.0
"""A line without an end is shown after so long."""
RATE_BYTES_S = 512 * 1024
"""What a worker may print for ever. A ring of 5 MB then holds the last ten seconds at least."""
BURST_BYTES = 1024 * 1024
HELD_BYTES = 64 * 1024
"""The newest output that is kept while more comes than may be written."""
TAIL_LINES = 50
TAIL_LINE_CHARS = 500
TAIL_BYTES = 8 * 1024
"""Of the last lines, as JSON: they become a part of the task's row."""
LABEL_MOST_CHARS = 100
SECRETS_MOST = 2_000
"""With more than so many texts to look for, nothing of what the worker prints is written."""
PIECE_BYTES = 1024
"""Longer secrets are looked for piece by piece."""

_USERINFO = re.compile(rb"([a-zA-Z][a-zA-Z0-9+.\-]{0,30}://)[^/\s@\"']{1,512}@")
_MASK = MASK.encode()


class Secrets:
    """Texts that must not be written."""

    def __init__(self, values: Collection[str] = ()) -> None:
        self.values = frozenset(values)
        spellings = {spelling for value in self.values for spelling in _spellings(value)}
        self.too_many = len(spellings) > SECRETS_MOST
        self._spellings = () if self.too_many else tuple(sorted(spellings))
        try:
            self._pattern = re.compile(_trie(self._spellings)) if self._spellings else None
        except RecursionError:  # each is the beginning of the next
            self.too_many = True

    def mask(self, data: bytes) -> bytes:
        """The data without them, and without the userinfo of URLs."""
        if self._pattern is not None:
            data = self._pattern.sub(_MASK, data)
        return _USERINFO.sub(rb"\1" + _MASK + b"@", data) if b"://" in data else data

    def ready(self, data: bytes) -> int:
        """How many bytes can be masked already. What follows may be the beginning of a secret."""
        border = len(data) - self._begun_at_end(data)
        for found in self._pattern.finditer(data) if self._pattern is not None else ():
            if found.start() < border < found.end():
                return found.start()
        return border

    def _begun_at_end(self, data: bytes) -> int:
        end = data[-2 * PIECE_BYTES :]
        longest = 0
        for spelling in self._spellings:
            for size in range(min(len(spelling) - 1, len(end)), longest, -1):
                if end.endswith(spelling[:size]):
                    longest = size
                    break
        return longest


def _spellings(value: str) -> Iterator[bytes]:
    """How a text may be printed: line by line, as it is, in a URL, in JSON, by repr."""
    lines = value.splitlines() if "\n" in value or "\r" in value else [value]
    for line in lines:
        if len(line) < SECRET_MIN_CHARS:
            continue
        escaped = {json.dumps(line)[1:-1], json.dumps(line, ensure_ascii=False)[1:-1], repr(line)[1:-1]}
        for text in {line, quote(line, safe="", errors="replace"), *escaped}:
            data = text.encode(errors="replace")
            while len(data) > 2 * PIECE_BYTES:
                yield data[:PIECE_BYTES]
                data = data[PIECE_BYTES:]
            yield data


def _trie(texts: Collection[bytes]) -> bytes:
    """A pattern that finds the longest of these texts, sorted ones, in time that does not grow with their number."""
    first, last = min(texts), max(texts)
    size = next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
    common = first[:size]
    rests = [text[len(common) :] for text in texts]
    by_first: dict[bytes, list[bytes]] = {}
    for rest in filter(None, rests):
        by_first.setdefault(rest[:1], []).append(rest)
    if not by_first:
        return re.escape(common)
    branches = b"|".join(_trie(group) for group in by_first.values())
    return re.escape(common) + b"(?:" + branches + b")" + (b"" if all(rests) else b"?")


class Shaper:
    """One run's output. What comes out is whole lines, ready for the file."""

    def __init__(self, task_id: str, epoch: int, secrets: Secrets | None = None) -> None:
        self.secrets = secrets or Secrets()
        self._task_id = _label(task_id)
        self._label = b""
        self.take_epoch(epoch)
        self._raw = bytearray()
        self._fed_at_s = 0.0
        self._room = float(BURST_BYTES)
        self._refilled_at_s: float | None = None
        self._left_out = 0
        self._skipping = False
        self._last: deque[str] = deque(maxlen=TAIL_LINES)

    def take_epoch(self, epoch: int) -> None:
        """The run goes on under another epoch."""
        self._label = f"{self._task_id}@{epoch} ".encode()

    def feed(self, data: bytes, now_s: float, at_ms: int) -> bytes:
        """Take what was printed. now_s: a monotonic clock; at_ms: the wall clock."""
        self._raw += data
        self._fed_at_s = now_s
        return self._flow(now_s, at_ms, is_end=False)

    def settle(self, now_s: float, at_ms: int) -> bytes:
        """What time alone brings: lines that nobody ends, and what there is room for again."""
        if not self.waits:
            return b""
        return self._flow(now_s, at_ms, is_end=now_s - self._fed_at_s >= PARTIAL_S)

    def close(self, now_s: float, at_ms: int) -> bytes:
        """The end of the output: all that is held."""
        self._room = float(BURST_BYTES)
        data = self._flow(now_s, at_ms, is_end=True)
        return data + self._end_line(at_ms) + self._told_left_out(at_ms)

    def note(self, text: str, at_ms: int) -> bytes:
        """A line of ours; it may quote what the worker said."""
        lines = [self.secrets.mask(line.encode(errors="replace")) for line in text.splitlines()]
        return self._written([line[:LINE_MOST_BYTES] for line in lines], at_ms)

    @property
    def waits(self) -> bool:
        """Whether time alone may bring lines."""
        return bool(self._raw or self._left_out)

    @property
    def tail(self) -> list[str]:
        """The last lines, without time and label."""
        return tail_of(self._last)

    # -- how much

    def _flow(self, now_s: float, at_ms: int, *, is_end: bool) -> bytes:
        if self._refilled_at_s is not None:
            self._room = min(self._room + RATE_BYTES_S * (now_s - self._refilled_at_s), BURST_BYTES)
        self._refilled_at_s = now_s
        if self._skipping:
            self._skip(0)
        if len(self._raw) > self._room:
            if len(self._raw) > HELD_BYTES:
                self._skip(len(self._raw) - HELD_BYTES)
            return b""
        if self.secrets.too_many:
            self._left_out += len(self._raw)
            self._raw.clear()
            return b""
        data = self._told_left_out(at_ms)
        before = len(self._raw)
        data += self._lines(at_ms, is_end=is_end)
        self._room -= before - len(self._raw)
        return data

    def _skip(self, least: int) -> None:
        """Leave out at least so many bytes, and then on to the end of a line: the rest of a secret tells of it."""
        end = self._raw.find(b"\n", least) + 1
        self._skipping = end == 0
        size = end or len(self._raw)
        self._left_out += size
        del self._raw[:size]

    def _told_left_out(self, at_ms: int) -> bytes:
        if not self._left_out:
            return b""
        why = f"more than {RATE_BYTES_S // 1024} KiB a second"
        if self.secrets.too_many:
            why = "the task has more secrets than can be masked"
        text = f"… {self._left_out} bytes are left out: {why}"
        self._left_out = 0
        return self._written([text.encode()], at_ms)

    # -- lines

    def _lines(self, at_ms: int, *, is_end: bool) -> bytes:
        raw = self._raw
        # A line ends with \n, \r\n or \r; a \r that is the last byte may be followed by its \n.
        known = len(raw) - 1 if raw.endswith(b"\r") and not is_end else len(raw)
        end = max(raw.rfind(b"\n", 0, known), raw.rfind(b"\r", 0, known)) + 1
        lines: list[bytes] = []
        if end:
            whole = bytes(raw[:end]).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            del raw[:end]
            lines = self._masked(whole).split(b"\n")[:-1]
        if len(raw) > LINE_MOST_BYTES or (is_end and raw):
            lines += self._unended()
        pieces = [line[at : at + LINE_MOST_BYTES] for line in lines for at in range(0, len(line) or 1, LINE_MOST_BYTES)]
        self._last.extend(piece[: 4 * TAIL_LINE_CHARS].decode(errors="replace")[:TAIL_LINE_CHARS] for piece in pieces)
        return self._written(pieces, at_ms)

    def _unended(self) -> list[bytes]:
        """The beginning of a line whose end has not come. What may be half a secret waits."""
        raw = bytes(self._raw)
        ready = self.secrets.ready(raw)
        del self._raw[:ready]
        return [self._masked(raw[:ready])] if ready else []

    def _masked(self, data: bytes) -> bytes:
        return self.secrets.mask(data).replace(b"\0", b"\\0")

    def _end_line(self, at_ms: int) -> bytes:
        """What only might have been a secret."""
        rest, self._raw = bytes(self._raw), bytearray()
        if not rest:
            return b""
        if len(rest) >= SECRET_MIN_CHARS:
            rest = _MASK
        self._last.append(rest.decode(errors="replace")[:TAIL_LINE_CHARS])
        return self._written([rest], at_ms)

    def _written(self, lines: Iterable[bytes], at_ms: int) -> bytes:
        prefix = time_text(at_ms).encode() + b" " + self._label
        return b"".join([prefix + line + b"\n" for line in lines])


def tail_of(texts: Iterable[str]) -> list[str]:
    """The last of them, at most TAIL_LINES and TAIL_BYTES."""
    lines = list(texts)[-TAIL_LINES:]
    sizes = [len(orjson.dumps(line)) + 1 for line in lines]
    while lines and sum(sizes) > TAIL_BYTES:
        del lines[0], sizes[0]
    return lines


def time_text(at_ms: int) -> str:
    """A moment in UTC, to the millisecond, always as long: 2026-11-25T15:40:01.123Z."""
    at = datetime.fromtimestamp(at_ms // 1000, UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{at_ms % 1000:03d}Z"


def _label(task_id: str) -> str:
    """The id as one word."""
    word = "".join(char if char.isprintable() and not char.isspace() else quote(char, safe="") for char in task_id)
    return word if len(word) <= LABEL_MOST_CHARS else word[: LABEL_MOST_CHARS - 1] + "…"
