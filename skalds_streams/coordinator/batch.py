"""One batch of one partition: records in, a staged transaction out. No I/O, no clock but the `now_ms` it is given.

Rules: a record at or below its topic's position is skipped; each record is all or nothing; what can't be understood
becomes a dead letter and nothing else is touched; nothing is visible before `Journal` has committed what is staged
here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import orjson

from skalds_streams.core import decide as core
from skalds_streams.core.events import Event, Update
from skalds_streams.core.invariants import check_step
from skalds_streams.core.membership import Members
from skalds_streams.core.placement import Choice, Load, choose
from skalds_streams.core.row import Row
from skalds_streams.errors import SkaldsError, WireError
from skalds_streams.model.codec import Limits, parse
from skalds_streams.model.documents import Positions, encode_positions, encode_row, history_doc
from skalds_streams.model.record import Record
from skalds_streams.model.specs import check_merged
from skalds_streams.topics import POSITIONS_KEY, Topics

CHANGES_MOST = 2_000
"""Changed rows and copies for other partitions after which a batch takes no more records: one may name 10,000 tasks."""
REASON_MOST = 2_048
CONDEMNED_BYTES = 100_000
CONDEMNED_HEADER_BYTES = 1_000

Header = tuple[str, bytes]


@dataclass(frozen=True, slots=True)
class Output:
    """One record to be written inside the transaction, into the journal's own partition."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: tuple[Header, ...] = ()


@dataclass(frozen=True, slots=True)
class Secrecy:
    """How parameters are masked and digested in history. `paths`: class name → paths of its secret parameters."""

    words: frozenset[str] = frozenset()
    digest_key: bytes = b""
    paths: Callable[[str | None], Collection[str]] = lambda class_name: ()


@dataclass(slots=True)
class Staged:
    """What one batch wants to write.

    `rows`: changed rows, None for one that is forgotten; `forwards`: (task id, document) to be sent and awaited before
    the commit; floors: what new rows start above from now on; `partitions`: how many there are.
    """

    rows: dict[str, Row | None] = field(default_factory=dict)
    epoch_floor: int = 0
    revision_floor: int = 0
    history: list[tuple[Row, int]] = field(default_factory=list)
    deadletters: list[Output] = field(default_factory=list)
    forwards: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    offsets: dict[str, int] = field(default_factory=dict)
    placed: list[Choice] = field(default_factory=list)
    records: int = 0
    skipped: int = 0
    ignored: int = 0
    partitions: int = 0

    @property
    def is_empty(self) -> bool:
        return not self.offsets

    @property
    def is_full(self) -> bool:
        """Whether the transaction is large enough. Then the records that follow are the next batch's."""
        return len(self.history) + len(self.forwards) >= CHANGES_MOST


class Stager:
    """Decides records one after the other on copies. One object a batch."""

    def __init__(
        self,
        rows: Mapping[str, Row],
        positions: Positions,
        *,
        topics: Topics,
        members: Members,
        load: Load,
        limits: Limits,
        now_ms: int,
    ) -> None:
        self._rows, self._positions, self._topics = rows, positions, topics
        self._members, self._load, self._limits = members, load, limits
        self._context = core.Context(
            now_ms=now_ms,
            choose=partial(choose, members=members, load=load),
            epoch_floor=positions.epoch_floor,
            revision_floor=positions.revision_floor,
        )
        self.staged = Staged(partitions=topics.partitions)

    def add(self, records: Iterable[Record]) -> Staged:
        """Decide until the batch is full; `records` of what is returned says how many it took."""
        for record in records:
            if self.staged.is_full:
                break
            self.add_one(record)
        return self.staged

    def add_one(self, record: Record) -> None:
        self.staged.records += 1
        position = self.staged.offsets.get(record.topic, self._positions.offsets.get(record.topic, -1))
        if record.offset <= position:
            self.staged.skipped += 1
            return
        self.staged.offsets[record.topic] = record.offset
        try:
            self._understand(record)
        except WireError as error:
            self.staged.deadletters.append(deadletter(record, str(error), self._topics))
        except SkaldsError as error:
            reason = f"internal error, please report it: {type(error).__name__}: {error}"
            self.staged.deadletters.append(deadletter(record, reason, self._topics))
        except Exception as error:
            if isinstance(error, MemoryError):
                raise
            # The edge of one record: whatever it makes of us, its partition must not stand still for ever. What the
            # error says stays out, it may repeat parameters.
            reason = f"internal error, please report it: {type(error).__name__}"
            self.staged.deadletters.append(deadletter(record, reason, self._topics))

    def _understand(self, record: Record) -> None:
        parsed = parse(record, self._topics, self._limits)
        changed: dict[str, Row | None] = {}
        history: list[tuple[Row, int]] = []
        ignored = 0
        for event in parsed.events:
            decision = self._decide(event, changed)
            if decision.row is None:
                ignored += 1
                continue
            changed[event.task_id] = None if decision.forget else decision.row
            if decision.forget:
                self._raise_floors(decision.row)
            offset = -1
            if decision.choice is not None:
                offset = decision.choice.members_offset
                self._note(decision.choice, decision.row)
            history.append((decision.row, offset))
        self.staged.rows |= changed
        self.staged.history += history
        self.staged.forwards += parsed.forwards
        self.staged.ignored += ignored

    def _row(self, task_id: str, changed: Mapping[str, Row | None]) -> Row | None:
        for rows in (changed, self.staged.rows):
            if task_id in rows:
                return rows[task_id]
        return self._rows.get(task_id)

    def _raise_floors(self, forgotten: Row) -> None:
        """A user's fencing token must never go back: whoever comes next under this id starts above."""
        context = self._context
        epoch, revision = max(context.epoch_floor, forgotten.epoch), max(context.revision_floor, forgotten.revision)
        self._context = replace(context, epoch_floor=epoch, revision_floor=revision)
        self.staged.epoch_floor, self.staged.revision_floor = epoch, revision

    def _decide(self, event: Event, changed: Mapping[str, Row | None]) -> core.Decision:
        row = self._row(event.task_id, changed)
        decision = core.decide(row, event, self._context)
        if decision.row is not None:
            check_step(row, decision.row)
            if isinstance(event, Update) and event.merge and decision.row.attachments != (row and row.attachments):
                check_merged(event.task_id, decision.row.attachments, self._limits)
        return decision

    def _note(self, choice: Choice, row: Row) -> None:
        if choice.incarnation is not None:
            self._load.note(choice.incarnation, choice.members_offset, row.units)
        self.staged.placed.append(choice)


def cut(record: Record) -> Record:
    """As much of a record as surely fits into a dead letter."""
    return replace(
        record,
        key=record.key if len(record.key or b"") <= CONDEMNED_HEADER_BYTES else None,
        value=record.value[:CONDEMNED_BYTES] if record.value else None,
        headers=[item for item in record.headers if len(item[0]) + len(item[1] or b"") <= CONDEMNED_HEADER_BYTES][:20],
    )


def deadletter(record: Record, reason: str, topics: Topics) -> Output:
    """The record as it came, with where it came from and why it is here."""
    headers = (
        ("reason", reason[:REASON_MOST].encode(errors="replace")),
        ("source.topic", record.topic.encode()),
        ("source.partition", str(record.partition).encode()),
        ("source.offset", str(record.offset).encode()),
        ("source.timestamp_ms", str(record.timestamp_ms).encode()),
        *((f"original.{name}", value) for name, value in record.headers),
    )
    return Output(topics.deadletter, record.key, record.value, headers)


def condemned(record: Record, reason: str, topics: Topics) -> Output:
    """A record that can't be written down as it is, cut to what surely fits, as a dead letter."""
    if len(record.value or b"") > CONDEMNED_BYTES:
        reason += f"; cut to {CONDEMNED_BYTES} bytes"
    return deadletter(cut(record), reason, topics)


def outputs(staged: Staged, positions: Positions, topics: Topics, secrecy: Secrecy) -> list[Output]:
    """Everything that the transaction writes, the positions last."""
    written = [
        Output(topics.changelog, task_id.encode(), encode_row(row) if row is not None else None)
        for task_id, row in staged.rows.items()
    ]
    for row, members_offset in staged.history:
        doc = history_doc(
            row,
            words=secrecy.words,
            paths=secrecy.paths(row.class_name),
            digest_key=secrecy.digest_key,
            members_offset=members_offset,
        )
        written.append(Output(topics.history, row.task_id.encode(), orjson.dumps(doc)))
    written += staged.deadletters
    written.append(Output(topics.changelog, POSITIONS_KEY, encode_positions(positions)))
    return written


def advanced(positions: Positions, staged: Staged) -> Positions:
    """The positions once the batch is committed."""
    return Positions(
        {**positions.offsets, **staged.offsets},
        max(positions.epoch_floor, staged.epoch_floor),
        max(positions.revision_floor, staged.revision_floor),
        staged.partitions or positions.partitions,
    )


def in_waves(forwards: Sequence[tuple[str, dict[str, Any]]]) -> list[list[tuple[str, dict[str, Any]]]]:
    """Forwarded commands, no task twice in one wave, each wave to be written before the next is sent.

    When sending fails, a part may have been written, a later command of a task without an earlier one, which would then
    be taken for one that was forwarded before: the row keeps the highest offset of each origin.
    """
    waves: list[list[tuple[str, dict[str, Any]]]] = []
    sent: dict[str, int] = {}
    for task_id, doc in forwards:
        turn = sent[task_id] = sent.get(task_id, -1) + 1
        if turn == len(waves):
            waves.append([])
        waves[turn].append((task_id, doc))
    return waves
