"""The letters on task.deadletter, and which of them were sent again.

Whether a letter was sent again is read from its source topic: the event that went back names its letter in a header
(`model.deadletter`), so there is no second record that a killed command could leave unwritten, and readers of
task.deadletter need not know of one. It costs a scan of the source's partition from the letter's input on. Where the
records after that input are no longer kept, nobody can tell, and `judge` says so instead of guessing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from skalds_streams.cli.kafka import Cluster, Sent
from skalds_streams.cli.output import err
from skalds_streams.core.row import Row
from skalds_streams.errors import SkaldsError
from skalds_streams.model.deadletter import REDRIVE_OF, Letter, read_letter
from skalds_streams.model.record import Record
from skalds_streams.projections.masking import text_cleaner
from skalds_streams.replay.reader import LogReader, Place, Ranges
from skalds_streams.replay.reader import Progress as OnProgress
from skalds_streams.topics import Topics

LETTERS_MOST = 100_000
"""Letters held in memory at once, without their values."""
TOPICS_NEEDED = ("deadletter", "assign", "cancel", "update", "report")
"""Fields of `Topics`: what `connect` is to look up."""

Spot = tuple[int, int]
"""(partition, offset) of a letter."""


# -- reading -----------------------------------------------------------------------------------------------------------


async def read_letters(
    cluster: Cluster,
    reader: LogReader,
    picks: Callable[[Letter], bool],
    spots: Collection[Spot] | None,
    on_progress: OnProgress | None = None,
) -> list[Letter]:
    """The letters that `picks` takes, oldest first; of `spots` only, unless that is None.

    Raises SkaldsError for a spot without a letter, and for more than LETTERS_MOST.
    """
    found: list[Letter] = []
    async for record in read_records(cluster, reader, spots, on_progress):
        letter = cleaned(record, cluster.words)
        if picks(letter):
            found.append(letter)
        if len(found) > LETTERS_MOST:
            raise SkaldsError(f"more than {LETTERS_MOST:,} dead letters: choose with --since, --topic or --reason")
    return sorted(found, key=lambda letter: (letter.at_ms, letter.spot))


async def read_records(
    cluster: Cluster, reader: LogReader, spots: Collection[Spot] | None, on_progress: OnProgress | None = None
) -> AsyncIterator[Record]:
    """Every dead letter whole, or those at `spots`, in order within a partition.

    Raises SkaldsError for a spot without a letter.
    """
    topic = cluster.topics.deadletter
    kept = await reader.whole(topic, range(cluster.topics.partitions))
    ranges: Ranges = kept
    if spots is not None:
        _check_kept(spots, {partition: limits for (_, partition), limits in kept.items()})
        numbers: dict[int, list[int]] = defaultdict(list)
        for partition, offset in spots:
            numbers[partition].append(offset)
        ranges = {(topic, partition): (min(some), max(some) + 1) for partition, some in numbers.items()}
    missing = set(spots or ())
    async for records in reader.read(ranges, on_progress):
        for record in records:
            spot = (record.partition, record.offset)
            if spots is None or spot in missing:
                missing.discard(spot)
                yield record
    if missing:
        raise SkaldsError(f"there is no dead letter {', '.join(map(spot_words, sorted(missing)))}")


async def read_record(cluster: Cluster, reader: LogReader, spot: Spot) -> Record:
    """The one at this spot. Raises SkaldsError."""
    (record,) = [record async for record in read_records(cluster, reader, [spot])]
    return record


def _check_kept(spots: Collection[Spot], kept: Mapping[int, tuple[int, int]]) -> None:
    for partition, offset in sorted(spots):
        begin, end = kept.get(partition, (0, 0))
        if not begin <= offset < end:
            what = f"keeps offsets {begin} to {end - 1}" if begin < end else "is empty"
            if partition not in kept:
                what = f"does not exist, there are {len(kept)}"
            name = spot_words((partition, offset))
            raise SkaldsError(f"there is no dead letter {name}: partition {partition} {what}")


def cleaned(record: Record, words: frozenset[str]) -> Letter:
    """The letter, its reason without the secrets of its value: an error likes to quote what it was given."""
    try:
        value = orjson.loads(record.value or b"null")
    except orjson.JSONDecodeError:
        value = None
    letter = read_letter(record)
    return replace(letter, reason=text_cleaner(Row("", attachments={"value": value}), words)(letter.reason))


# -- which were sent again ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Copy:
    """A letter's event on its source topic, once more."""

    place: Sent
    at_ms: int


@dataclass(frozen=True, slots=True)
class Copies:
    """What the source topics say of some letters.

    `unsure`: letters whose copies may have been there once; `ends`: how far each place was read.
    """

    found: Mapping[Spot, Sequence[Copy]] = field(default_factory=dict)
    unsure: frozenset[Spot] = frozenset()
    ends: Mapping[Place, int] = field(default_factory=dict)


async def find_copies(
    reader: LogReader,
    topics: Topics,
    letters: Collection[Letter],
    *,
    after: Mapping[Place, int] | None = None,
    on_progress: OnProgress | None = None,
) -> Copies:
    """Look for the letters' events on their source topics: behind each one's input, or behind a former look's ends."""
    by_place: dict[Place, list[Letter]] = defaultdict(list)
    for letter in letters:
        if not misfit(letter, topics) and letter.source is not None:
            by_place[letter.source.topic, letter.source.partition].append(letter)
    begins, ends = await reader.begins(by_place), await reader.ends(by_place)
    unsure: set[Spot] = set()
    ranges: dict[Place, tuple[int, int]] = {}
    for place, some in by_place.items():
        offsets = {letter.spot: letter.source.offset for letter in some if letter.source is not None}
        unsure |= {spot for spot, offset in offsets.items() if not begins[place] <= offset + 1 <= ends[place]}
        start = after[place] if after is not None else min(offsets.values()) + 1
        ranges[place] = (max(start, begins[place]) if start <= ends[place] else begins[place], ends[place])
    wanted = {letter.where.encode(): letter for some in by_place.values() for letter in some}
    found: dict[Spot, list[Copy]] = defaultdict(list)
    async for records in reader.read(ranges, on_progress):
        for record in records:
            for name, value in record.headers:
                named = wanted.get(value) if name == REDRIVE_OF else None
                if named is not None and _is_behind(record, named, unsure):
                    at = Sent(record.topic, record.partition, record.offset)
                    found[named.spot].append(Copy(at, record.timestamp_ms))
    return Copies(found, frozenset(unsure), ends)


def _is_behind(record: Record, letter: Letter, unsure: Collection[Spot]) -> bool:
    """A copy comes after its letter's input. One before it is of a letter of a topic that was deleted since."""
    source = letter.source
    if source is None or (source.topic, source.partition) != (record.topic, record.partition):
        return False
    return record.offset > source.offset or letter.spot in unsure


def misfit(letter: Letter, topics: Topics) -> str:
    """Why the letter's event can't go back where it came from; "" when it can."""
    source = letter.source
    if source is None:
        return "it does not say where it came from"
    if source.topic not in topics.inputs or source.partition >= topics.partitions:
        return f"its source {source} is no input of this application"
    return ""


# -- as shown ----------------------------------------------------------------------------------------------------------


def spot_words(spot: Spot) -> str:
    """ "3/17"."""
    return f"{spot[0]}/{spot[1]}"


def key_words(key: bytes | None) -> str:
    """The key as text, as 0x… if it is none."""
    if key is None:
        return "–"
    try:
        return key.decode()
    except UnicodeDecodeError:
        return f"0x{key.hex()}"


def letter_doc(letter: Letter, copies: Copies | None = None) -> dict[str, Any]:
    """For `-o json`."""
    source = letter.source
    doc: dict[str, Any] = {
        "partition": letter.partition,
        "offset": letter.offset,
        "at_ms": letter.at_ms,
        "source": {"topic": source.topic, "partition": source.partition, "offset": source.offset} if source else None,
        "key": None if letter.key is None else key_words(letter.key),
        "size": letter.size,
        "reason": letter.reason,
        "redrives": letter.redrives,
    }
    if copies is not None:
        found = copies.found.get(letter.spot, ())
        doc["redriven"] = [{**copy.place.to_doc(), "at_ms": copy.at_ms} for copy in found]
        doc["redriven_unsure"] = letter.spot in copies.unsure
    return doc


@contextmanager
def bar(verb: str) -> Iterator[OnProgress]:
    """A bar on a terminal, nothing elsewhere."""
    console = err()
    if not console.is_terminal:
        yield lambda _topic, _done, _total: None
        return
    columns = (TextColumn(verb + " {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as shown:
        number = shown.add_task("", total=None)
        yield lambda topic, done, total: shown.update(number, description=topic, completed=done, total=total)
