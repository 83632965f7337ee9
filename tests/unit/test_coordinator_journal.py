"""The loop of one partition against a log that fails on demand: what is acknowledged, when, and what survives what.

No broker and no sleep: pauses are set to nothing, and every wait is for a condition.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import orjson
import pytest
from aiokafka import TopicPartition
from aiokafka.errors import (
    KafkaConnectionError,
    MessageSizeTooLargeError,
    TopicAuthorizationFailedError,
)

from skalds_streams.coordinator import journal as journal_module
from skalds_streams.coordinator import journals as journals_module
from skalds_streams.coordinator import omissions
from skalds_streams.coordinator.batch import Output, Secrecy
from skalds_streams.coordinator.journal import Delivery, Journal, JournalContext
from skalds_streams.coordinator.journals import Journals
from skalds_streams.coordinator.log import PartitionLog, Recovered
from skalds_streams.core.membership import Members
from skalds_streams.core.partition import partition_of
from skalds_streams.core.row import Row
from skalds_streams.errors import FencedError, JournalError, TopicRecreatedError, TopicResizedError
from skalds_streams.model.changelog import ChangelogState
from skalds_streams.model.codec import Limits
from skalds_streams.model.documents import Positions
from skalds_streams.model.record import Record
from skalds_streams.topics import POSITIONS_KEY, Topics

pytestmark = pytest.mark.anyio

TOPICS = Topics.named(app="x", partitions=1)
FOREIGN_TOPICS = Topics.named(app="x", partitions=6)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "_pause_s", lambda failures: 0.0)


async def until(condition: Callable[[], Any], what: str = "it happens") -> None:
    """For what needs turns of the loop, and no time."""
    for _ in range(2_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError(f"never: {what}")


async def in_time(condition: Callable[[], Any]) -> None:
    """For what a timer brings about."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0.001)


class FakeLog:
    """A partition's log. `refuse` is asked before each commit, `after` after it; both may raise."""

    def __init__(self) -> None:
        self.state = ChangelogState()
        self.committed: list[Sequence[Output]] = []
        self.writes = self.opens = self.closes = 0
        self.open_errors: deque[Exception] = deque()
        self.refuse: Callable[[Sequence[Output]], Awaitable[None] | None] = lambda outputs: None
        self.after: Callable[[Sequence[Output]], None] = lambda outputs: None
        self.hang_open: asyncio.Event | None = None
        self.inputs: dict[str, list[Record | None]] = {}
        """What is in the input topics, None for a transaction's marker."""
        self.reads: list[tuple[str, int, int]] = []

    async def open(self) -> Recovered:
        self.opens += 1
        await asyncio.sleep(0)
        if self.hang_open is not None:
            await self.hang_open.wait()
        if self.open_errors:
            raise self.open_errors.popleft()
        return Recovered(dict(self.state.rows), self.state.positions.get(0, Positions({})), 0)

    async def write(self, outputs: Sequence[Output]) -> None:
        self.writes += 1
        answer = self.refuse(outputs)
        if answer is not None:
            await answer
        before = self.state.positions.get(0, Positions({})).offsets
        self.committed.append(outputs)
        for output in outputs:
            if output.topic == TOPICS.changelog:
                self.state.apply(0, output.key, output.value)
        after = self.state.positions[0].offsets
        assert all(after[topic] >= offset for topic, offset in before.items()), "a position has gone back"
        self.after(outputs)

    async def read_input(self, topic: str, start: int, end: int, most: int) -> list[Record]:
        self.reads.append((topic, start, end))
        return [item for item in self.inputs.get(topic, [])[start:end] if item is not None][:most]

    async def close(self) -> None:
        self.closes += 1

    @property
    def letters(self) -> list[Output]:
        return [output for outputs in self.committed for output in outputs if output.topic == TOPICS.deadletter]


class Forwarder:
    def __init__(self) -> None:
        self.sent: list[str] = []
        self.errors: deque[Exception] = deque()

    async def send_reports(self, docs: Sequence[tuple[str, dict[str, Any]]]) -> None:
        if self.errors:
            raise self.errors.popleft()
        self.sent += [task_id for task_id, _ in docs]


class World:
    """One journal, its log, and who asks for what."""

    def __init__(self, topics: Topics = TOPICS, batch_max: int = 500) -> None:
        self.log = FakeLog()
        self.acked: list[int] = []
        self.dropped: list[int] = []
        self.asked = 0
        self.answers: deque[bool] = deque()
        self.on_ask: Callable[[], None] = lambda: None
        self.forwarder = Forwarder()
        self.topics = topics
        self.context = JournalContext(
            topics=topics,
            limits=Limits(),
            secrecy=Secrecy(),
            members=Members(),
            forwarder=self.forwarder,
            now_ms=lambda: 10_000,
            is_ours=self._is_ours,
            batch_max=batch_max,
        )
        self.journal = Journal(0, cast("PartitionLog", self.log), self.context)

    async def _is_ours(self, partition: int, positions: Positions) -> bool:
        self.asked += 1
        self.on_ask()
        return self.answers.popleft() if self.answers else True

    def delivery(self, offset: int, task_id: str | None = None, **event: Any) -> Delivery:
        task_id = task_id or f"t{offset}"
        doc = {"taskIds": [task_id], "tasks": [{"id": task_id, "className": "Cam", "source": "s"}], **event}
        return self.raw(Record(self.topics.assign, 0, offset, b"k", orjson.dumps(doc), 1_000 + offset))

    def raw(self, record: Record) -> Delivery:
        offset = record.offset
        return Delivery(record, lambda: self.acked.append(offset), lambda: self.dropped.append(offset))

    async def offer(self, *deliveries: Delivery) -> None:
        for delivery in deliveries:
            await self.journal.offer(delivery)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task(self.journal.run())
        try:
            yield task
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await self.journal.close()


def names(outputs: Sequence[Output]) -> set[str]:
    return {(output.key or b"").decode() for output in outputs if output.topic == TOPICS.changelog}


# -- the order of things


async def test_rows_and_acknowledgements_wait_for_the_commit_and_keep_their_order() -> None:
    world = World()
    may_commit = asyncio.Event()
    world.log.refuse = lambda outputs: may_commit.wait()  # type: ignore[assignment,return-value]  # an Awaitable
    await world.offer(*(world.delivery(offset) for offset in range(3)))
    async with world.running():
        await until(lambda: world.log.writes == 1, "the batch is written")
        await world.offer(world.delivery(3))
        for _ in range(20):
            await asyncio.sleep(0)
        assert (world.acked, dict(world.journal.rows), world.log.writes) == ([], {}, 1)
        may_commit.set()
        await until(lambda: world.acked == [0, 1, 2, 3], "all are acknowledged, in order")
    assert [names(outputs) for outputs in world.log.committed] == [
        {"t0", "t1", "t2", POSITIONS_KEY.decode()},
        {"t3", POSITIONS_KEY.decode()},
    ]


async def test_what_was_applied_before_is_acknowledged_without_a_write() -> None:
    world = World()
    async with world.running():
        await world.offer(world.delivery(0), world.delivery(1))
        await until(lambda: world.acked == [0, 1])
        await world.offer(world.delivery(0), world.delivery(1))
        await until(lambda: world.acked == [0, 1, 0, 1])
    assert (len(world.log.committed), world.journal.statistics.skipped) == (1, 2)


async def test_copies_for_others_are_with_the_broker_before_the_position_advances() -> None:
    world = World(FOREIGN_TOPICS)
    foreign = next(f"f{n}" for n in range(50) if partition_of(f"f{n}", 6) != 0)
    world.forwarder.errors.append(KafkaConnectionError())
    async with world.running():
        await world.offer(world.delivery(0, foreign))
        await until(lambda: world.acked == [0])
    assert world.forwarder.sent == [foreign]
    assert (world.log.opens, world.journal.statistics.reopened) == (2, 1)


# -- what is not delivered


def publish(world: World, count: int, *, markers: Sequence[int] = ()) -> list[Delivery]:
    """task.assign holds `count` records, but for the markers of transactions. Returns their deliveries, by offset."""
    deliveries = [world.delivery(offset) for offset in range(count)]
    world.log.inputs[TOPICS.assign] = [
        None if offset in markers else delivery.record for offset, delivery in enumerate(deliveries)
    ]
    return deliveries


def applied(world: World) -> list[str]:
    """Tasks in the order in which their rows were first written."""
    order = [name for outputs in world.log.committed for name in ordered(outputs)]
    return list(dict.fromkeys(order))


def ordered(outputs: Sequence[Output]) -> list[str]:
    keys = [(output.key or b"").decode() for output in outputs if output.topic == TOPICS.changelog]
    return [key for key in keys if key != POSITIONS_KEY.decode()]


async def test_what_faust_leaves_out_is_read_and_applied_in_its_place() -> None:
    """A rebalance that overlaps with another makes Faust drop what it has read and go on behind it."""
    world = World()
    deliveries = publish(world, 9)
    async with world.running():
        await world.offer(deliveries[0], deliveries[3], deliveries[4], deliveries[8])
        await until(lambda: 8 in world.acked)
        await world.offer(*deliveries[1:9])
        await until(lambda: len(world.acked) == 12, "what comes late is skipped")
    assert applied(world) == [f"t{n}" for n in range(9)]
    assert [row.revision for row in world.log.state.rows.values()] == [1] * 9
    assert world.journal.statistics.fetched == 5


async def test_a_later_record_that_comes_first_does_not_make_the_earlier_one_a_repetition() -> None:
    world = World()
    deliveries = publish(world, 3)
    async with world.running():
        await world.offer(deliveries[0])
        await until(lambda: world.acked == [0])
        await world.offer(deliveries[2], deliveries[1])
        await until(lambda: len(world.acked) == 3)
    assert applied(world) == ["t0", "t1", "t2"]


async def test_a_long_piece_is_read_in_batches() -> None:
    world = World(batch_max=4)
    deliveries = publish(world, 30)
    async with world.running():
        await world.offer(deliveries[29])
        await until(lambda: world.acked == [29])
    assert applied(world) == [f"t{n}" for n in range(30)]
    assert max(len(ordered(outputs)) for outputs in world.log.committed) <= 4


async def test_a_hole_in_the_log_is_looked_at_once() -> None:
    world = World()
    deliveries = publish(world, 6, markers=[1, 2, 4])
    async with world.running():
        await world.offer(deliveries[0], deliveries[3], deliveries[5], deliveries[3], deliveries[5])
        await until(lambda: world.acked == [0, 3, 5, 3, 5])
    assert applied(world) == ["t0", "t3", "t5"]
    assert world.log.reads == [(TOPICS.assign, 1, 3), (TOPICS.assign, 4, 5)]


class Ends:
    """The consumer of an InputWatch."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.asked: list[int] = []
        """How many ends were asked for, by question."""
        self.starts = self.stops = 0
        self.error: Exception | None = None
        self.answered: Callable[[], Awaitable[object]] | None = None
        """What happens once, just after an answer."""

    async def start(self) -> None:
        self.starts += 1

    async def stop(self) -> None:
        self.stops += 1

    async def end_offsets(self, tps: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        self.asked.append(len(tps))
        if self.error is not None:
            raise self.error
        ends = {tp: len(self._world.log.inputs.get(tp.topic, [])) for tp in tps}
        answered, self.answered = self.answered, None
        if answered is not None:
            await answered()
        return ends


@asynccontextmanager
async def watching(
    world: World, monkeypatch: pytest.MonkeyPatch, *, silent_s: float = 0.02, tick_s: float = 0.005
) -> AsyncIterator[Ends]:
    ends = Ends(world)
    monkeypatch.setattr(omissions, "log_consumer", lambda client, *, committed: ends)
    watch = omissions.InputWatch([world.journal], {}, silent_s=silent_s, tick_s=tick_s)
    async with world.running():
        task = asyncio.create_task(watch.run())
        try:
            yield ends
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
    assert ends.starts == ends.stops, "every connection is closed"


async def test_the_last_record_of_an_input_is_found_although_nothing_comes_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(batch_max=2)  # two fetches are needed
    deliveries = publish(world, 5, markers=[4])
    async with watching(world, monkeypatch) as ends:
        await world.offer(deliveries[0])
        await in_time(lambda: len(world.log.state.rows) == 4)
        # The marker at the end is looked at behind the records, and once more when those are applied.
        await in_time(lambda: world.log.reads.count((TOPICS.assign, 4, 5)) == 2)
        looked, asked = len(world.log.reads), len(ends.asked)
        await in_time(lambda: len(ends.asked) >= asked + 3)
    assert applied(world) == ["t0", "t1", "t2", "t3"]
    assert len(world.log.reads) == looked, "and never again"
    assert ends.starts == 1, "the connection stays"


async def test_what_is_on_its_way_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """An end that is seen a moment before the record is delivered."""
    world = World()
    deliveries = publish(world, 1)
    async with watching(world, monkeypatch) as ends:
        ends.answered = lambda: world.offer(deliveries[0])
        await in_time(lambda: world.acked == [0])
        asked = len(ends.asked)
        await in_time(lambda: len(ends.asked) >= asked + 3)
    assert (world.log.reads, world.journal.statistics.fetched) == ([], 0)


async def test_a_journal_that_is_not_open_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.log.hang_open = asyncio.Event()
    async with watching(world, monkeypatch, silent_s=0.0, tick_s=0.001) as ends:
        opened_before_it_asked: list[bool] = []

        async def note() -> None:
            opened_before_it_asked.append(world.journal.opened.is_set())

        ends.answered = note
        await in_time(lambda: world.log.opens == 1)
        for _ in range(20):  # of its ticks
            await asyncio.sleep(0.001)
        world.log.hang_open.set()
        await in_time(lambda: opened_before_it_asked == [True])


async def test_a_look_at_a_broker_that_is_away_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    async with watching(world, monkeypatch, tick_s=0.001) as ends:
        ends.error = KafkaConnectionError()
        await in_time(lambda: ends.stops == 3)  # a new connection each time
        ends.error = None
        await in_time(lambda: ends.starts == 4)
        assert (world.journal.opened.is_set(), world.log.opens) == (True, 1)


# -- an outcome that nobody knows


@pytest.mark.parametrize("error", [TimeoutError(), KafkaConnectionError(), JournalError("x"), OSError("x")])
async def test_after_an_unknown_outcome_positions_tell_that_it_was_committed(error: Exception) -> None:
    world = World()
    errors = deque([error])

    def lose_the_answer(outputs: Sequence[Output]) -> None:
        if errors:
            raise errors.popleft()

    world.log.after = lose_the_answer
    async with world.running():
        await world.offer(world.delivery(0), world.delivery(1))
        await until(lambda: world.acked == [0, 1])
        assert world.journal.rows["t0"].revision == 1
        await world.offer(world.delivery(2))
        await until(lambda: world.acked == [0, 1, 2])
    assert [sorted(names(outputs) - {POSITIONS_KEY.decode()}) for outputs in world.log.committed] == [
        ["t0", "t1"],
        ["t2"],
    ]
    assert (world.log.opens, world.asked) == (2, 1)


async def test_after_an_unknown_outcome_positions_tell_that_it_was_not() -> None:
    world = World()
    errors = deque([TimeoutError(), TimeoutError()])

    def refuse(outputs: Sequence[Output]) -> None:
        if errors:
            raise errors.popleft()

    world.log.refuse = refuse
    async with world.running():
        await world.offer(world.delivery(0))
        await until(lambda: world.acked == [0])
    assert [row.revision for row in world.log.state.rows.values()] == [1]
    assert (len(world.log.committed), world.log.opens) == (1, 3)


async def test_opening_is_tried_again_until_it_works() -> None:
    world = World()
    world.log.open_errors += [KafkaConnectionError(), TimeoutError(), FencedError("x"), OSError("x")]
    async with world.running():
        await until(world.journal.opened.is_set)
    assert (world.log.opens, world.asked) == (5, 4)


# -- fenced


async def test_fenced_and_not_ours_ends_it_and_gives_everything_back() -> None:
    world = World()
    world.answers.append(False)

    def refuse(outputs: Sequence[Output]) -> None:
        raise FencedError("another owner")

    world.log.refuse = refuse
    async with world.running() as task:
        await world.offer(*(world.delivery(offset) for offset in range(3)))
        await until(task.done, "it ends")
        await task
        assert (world.acked, sorted(world.dropped), dict(world.journal.rows)) == ([], [0, 1, 2], {})
        assert not world.journal.opened.is_set()
        await world.offer(world.delivery(3))
        assert sorted(world.dropped) == [0, 1, 2, 3], "what comes late is given back, too"


async def test_fenced_and_ours_is_opened_again() -> None:
    world = World()
    errors = deque([FencedError("a zombie")])

    def refuse(outputs: Sequence[Output]) -> None:
        if errors:
            raise errors.popleft()

    world.log.refuse = refuse
    async with world.running():
        await world.offer(world.delivery(0))
        await until(lambda: world.acked == [0])
    assert (world.asked, world.log.opens, world.dropped) == (1, 2, [])


async def test_an_answer_that_a_rebalance_has_overtaken_is_void() -> None:
    """The group gives us the partition anew while the answer about the generation before is on its way."""
    world = World()
    world.answers += [False, True]
    overtake = deque([world.journal.confirm])
    world.on_ask = lambda: overtake.popleft()() if overtake else None
    world.log.open_errors.append(TimeoutError())
    async with world.running():
        await world.offer(world.delivery(0))
        await until(lambda: world.acked == [0])
    assert world.asked == 2


# -- one record that can't be written


def refuses(*task_ids: str, error: Callable[[], Exception]) -> Callable[[Sequence[Output]], None]:
    def refuse(outputs: Sequence[Output]) -> None:
        if names(outputs) & set(task_ids):
            raise error()

    return refuse


async def test_a_record_that_cant_be_written_is_found_by_halving_and_becomes_a_dead_letter() -> None:
    world = World()
    world.log.refuse = refuses("t5", error=MessageSizeTooLargeError)
    long = "x" * 150_000
    async with world.running():
        await world.offer(*(world.delivery(offset, reason=long if offset == 5 else None) for offset in range(9)))
        await until(lambda: world.acked == list(range(9)), "all are done with, in order")
    assert sorted(world.log.state.rows) == [f"t{n}" for n in range(9) if n != 5]
    (letter,) = world.log.letters
    headers = dict(letter.headers)
    assert headers["reason"].decode() == "can't be written: MessageSizeTooLargeError(); cut to 100000 bytes"
    assert (headers["source.offset"], len(letter.value or b"")) == (b"5", 100_000)
    assert world.log.state.positions[0].offsets == {TOPICS.assign: 8}
    assert world.log.opens < 20


async def test_no_time_is_lost_in_finding_a_record_that_the_broker_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal is certain: only the last suspect is asked again, after a pause, before it is given up."""
    pauses: list[int] = []

    def pause_s(failures: int) -> float:
        pauses.append(failures)
        return 0.0

    monkeypatch.setattr(journal_module, "_pause_s", pause_s)
    world = World()
    world.log.refuse = refuses("t5", error=MessageSizeTooLargeError)
    async with world.running():
        await world.offer(*(world.delivery(offset) for offset in range(64)))
        await until(lambda: world.acked == list(range(64)))
    assert (len(world.log.letters), pauses) == (1, [1, 2])


async def test_a_condemned_record_surely_fits_whatever_its_key_and_headers_are() -> None:
    world = World()
    world.log.refuse = refuses("t0", error=MessageSizeTooLargeError)
    headers = [("small", b"x"), *((f"large{n}", b"x" * 100_000) for n in range(9)), ("null", cast("bytes", None))]
    record = world.delivery(0).record
    await world.offer(
        world.raw(Record(record.topic, 0, 0, b"k" * 900_000, record.value, 1_000, headers)),
    )
    async with world.running():
        await until(lambda: world.acked == [0])
    (letter,) = world.log.letters
    size = len(letter.key or b"") + len(letter.value or b"") + sum(len(n) + len(v or b"") for n, v in letter.headers)
    assert size < 10_000
    assert dict(letter.headers)["original.small"] == b"x"


async def test_a_record_that_can_be_read_but_not_encoded_is_found_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    real = journal_module.outputs

    def outputs(staged: Any, *rest: Any) -> Any:
        if "t1" in staged.rows:
            raise TypeError("Integer exceeds 64-bit range")
        return real(staged, *rest)

    monkeypatch.setattr(journal_module, "outputs", outputs)
    world = World()
    async with world.running():
        await world.offer(*(world.delivery(offset) for offset in range(3)))
        await until(lambda: world.acked == [0, 1, 2])
    assert [dict(letter.headers)["source.offset"] for letter in world.log.letters] == [b"1"]
    assert sorted(world.log.state.rows) == ["t0", "t2"]


@pytest.mark.parametrize("error", [TopicAuthorizationFailedError, TimeoutError, KafkaConnectionError])
async def test_no_record_is_given_up_for_what_is_not_its_own_fault(error: type[Exception]) -> None:
    world = World()
    refused = 0

    def refuse(outputs: Sequence[Output]) -> None:
        nonlocal refused
        refused += 1
        if refused < 30:
            raise error()

    world.log.refuse = refuse
    async with world.running():
        await world.offer(*(world.delivery(offset) for offset in range(4)))
        await until(lambda: world.acked == [0, 1, 2, 3])
    assert (world.log.letters, len(world.log.state.rows)) == ([], 4)


async def test_a_transaction_that_takes_too_long_is_halved_until_it_does_not() -> None:
    world = World()

    def refuse(outputs: Sequence[Output]) -> None:
        if len(names(outputs)) > 3:
            raise TimeoutError

    world.log.refuse = refuse
    async with world.running():
        await world.offer(*(world.delivery(offset) for offset in range(8)))
        await until(lambda: len(world.acked) == 8)
    assert (world.acked, world.log.letters) == (list(range(8)), [])


async def test_a_condemned_record_that_was_committed_after_all_is_only_skipped() -> None:
    """Else its position would go back, and what came after it would be applied twice."""
    world = World(batch_max=1)
    errors = deque(MessageSizeTooLargeError() for _ in range(3))

    def refuse(outputs: Sequence[Output]) -> None:
        if len(errors) > 1:
            raise errors.popleft()

    def lose_the_answer(outputs: Sequence[Output]) -> None:
        if errors:
            raise errors.popleft()

    world.log.refuse, world.log.after = refuse, lose_the_answer
    async with world.running():
        await world.offer(world.delivery(0), world.delivery(1))
        await until(lambda: world.acked == [0, 1])
    assert (world.log.letters, sorted(world.log.state.rows)) == ([], ["t0", "t1"])
    assert [row.revision for row in world.log.state.rows.values()] == [1, 1]


# -- the end


async def test_a_topic_that_was_made_anew_ends_it_with_the_reason() -> None:
    world = World()
    world.log.open_errors.append(TopicRecreatedError("topic task.assign was deleted and made anew"))
    with pytest.raises(TopicRecreatedError, match="made anew"):
        await world.journal.run()
    assert isinstance(world.journal.fatal, TopicRecreatedError)


async def test_closing_gives_back_what_waits_and_releases_who_waits() -> None:
    world = World()
    world.log.hang_open = asyncio.Event()
    world.journal._queue = asyncio.Queue(2)
    async with world.running():
        await world.offer(world.delivery(0), world.delivery(1))
        blocked = asyncio.create_task(world.offer(world.delivery(2)))
        await asyncio.sleep(0)
        assert not blocked.done()
    await blocked
    assert (world.acked, sorted(world.dropped), world.log.closes) == ([], [0, 1, 2], 1)


async def test_rows_of_a_closed_journal_are_gone() -> None:
    world = World()
    world.log.state.rows["old"] = Row("old")
    async with world.running():
        await until(world.journal.opened.is_set)
        assert list(world.journal.rows) == ["old"]
    assert (dict(world.journal.rows), world.journal.opened.is_set()) == ({}, False)


# -- all of a process


class Process:
    """The journals of one process, each with a fake log that is kept when the partition comes back."""

    def __init__(self) -> None:
        self.world = World(FOREIGN_TOPICS)
        self.logs: dict[int, FakeLog] = {}
        self.made: list[int] = []
        self.fatal: list[BaseException] = []
        self.journals = Journals(self.world.context, self._new_log, self.fatal.append)

    def _new_log(self, partition: int) -> PartitionLog:
        self.made.append(partition)
        return cast("PartitionLog", self.logs.setdefault(partition, FakeLog()))


@asynccontextmanager
async def process() -> AsyncIterator[Process]:
    made = Process()
    before = asyncio.all_tasks()
    try:
        yield made
    finally:
        await made.journals.close()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() <= before, "no task is left behind"


async def test_owning_is_idempotent_and_says_what_is_open() -> None:
    async with process() as made:
        assert not made.journals.all_open, "the group has not spoken yet"
        await made.journals.own({0, 1})
        await made.journals.own({0, 1})
        assert (sorted(made.made), made.journals.all_open) == ([0, 1], True)
        await made.journals.own({1, 2})
        assert made.journals.partitions == {1, 2}
        await until(lambda: made.logs[0].closes == 1, "the writer of the lost one is stopped")
        assert (made.logs[1].opens, made.logs[1].closes) == (1, 0), "a kept one is left alone"
        await made.journals.own({0})
        assert made.made.count(0) == 2


async def test_rows_of_lost_partitions_and_of_those_that_are_not_open_are_not_served() -> None:
    async with process() as made:
        for partition in (0, 1):
            made.logs[partition] = FakeLog()
            made.logs[partition].state.rows[f"t{partition}"] = Row(f"t{partition}")
        await made.journals.own({0, 1})
        assert sorted(row.task_id for row in made.journals.rows()) == ["t0", "t1"]
        await made.journals.own({1})
        assert [row.task_id for row in made.journals.rows()] == ["t1"]
        journal = made.journals.get(1)
        assert journal is not None
        journal.opened.clear()
        assert (list(made.journals.rows()), made.journals.row(1, "t1"), made.journals.end_offset(1)) == ([], None, None)


async def test_a_journal_that_opens_late_goes_on_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals_module, "OPEN_WAIT_S", 0.001)
    async with process() as made:
        made.logs[0] = FakeLog()
        made.logs[0].hang_open = asyncio.Event()
        await made.journals.own({0, 1})
        assert not made.journals.all_open
        await made.journals.offer(made.world.delivery(0))
        made.logs[0].hang_open.set()
        await until(lambda: made.world.acked == [0])
        assert made.journals.all_open


async def test_a_partition_that_goes_while_it_opens_is_closed_and_comes_back_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rebalances faster than opening: each superseded opening is cancelled and its writer stopped."""
    monkeypatch.setattr(journals_module, "OPEN_WAIT_S", 0.001)
    async with process() as made:
        made.logs[0] = FakeLog()
        made.logs[0].hang_open = asyncio.Event()
        for _ in range(5):
            await made.journals.own({0})
            await made.journals.offer(made.world.delivery(7))
            await made.journals.own(())
        await until(lambda: made.logs[0].closes == 5)
        assert (made.world.acked, made.world.dropped) == ([], [7] * 5)
        made.logs[0].hang_open = None
        await made.journals.own({0})
        await made.journals.offer(made.world.delivery(7))
        await until(lambda: made.world.acked == [7])


@pytest.mark.parametrize("steps", range(8))
async def test_a_delivery_that_comes_as_the_partition_goes_is_not_decided_without_rows(steps: int) -> None:
    """However far the loop is with it. What was decided on no rows would overwrite those that there are."""
    task_id = next(name for name in map(str, range(100)) if partition_of(name, FOREIGN_TOPICS.partitions) == 0)
    async with process() as made:
        made.logs[0] = FakeLog()
        await made.journals.own({0})
        await made.journals.offer(made.world.delivery(0, task_id))
        await until(lambda: made.world.acked == [0], "the first is applied")
        for _ in range(20):
            await asyncio.sleep(0)
        await made.journals.offer(made.world.delivery(1, task_id))
        for _ in range(steps):
            await asyncio.sleep(0)
        await made.journals.own(())
        await until(lambda: made.logs[0].closes == 1, "the writer is stopped")
        written = made.logs[0].writes
        assert made.world.dropped == ([1] if written == 1 else [])
        assert made.logs[0].state.rows[task_id].revision == written


@pytest.mark.parametrize("point", ["before_decide", "after_decide", "after_commit", "after_ack"])
async def test_a_journal_whose_cancellation_gets_lost_writes_nothing_more(
    point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client library may swallow it. Then being closed is what ends the loop, wherever it was."""
    world = World()
    seen: list[str] = []

    async def reach(name: str) -> None:
        seen.append(name)
        if name == point:
            world.journal.give_up()

    monkeypatch.setattr(journal_module, "reach", reach)
    await world.offer(world.delivery(0))
    task = asyncio.create_task(world.journal.run())
    await until(task.done, "it ends by itself")
    await task
    assert point in seen
    assert world.acked == ([0] if point == "after_ack" else [])
    assert world.log.writes == int(point in ("after_decide", "after_commit", "after_ack"))
    assert world.journal.rows == {}


async def test_a_journal_that_is_closed_while_it_asks_or_opens_takes_nothing_over() -> None:
    world = World()
    world.log.after = lambda outputs: _fence()
    world.on_ask = world.journal.give_up
    await world.offer(world.delivery(0))
    await asyncio.wait_for(world.journal.run(), 5)
    assert (world.asked, world.log.opens) == (1, 1)
    world = World()
    world.log.hang_open = asyncio.Event()
    task = asyncio.create_task(world.journal.run())
    await until(lambda: world.log.opens == 1)
    world.journal.give_up()
    world.log.hang_open.set()
    await asyncio.wait_for(task, 5)
    assert not world.journal.opened.is_set()


def _fence() -> None:
    raise FencedError("another owner")


async def test_no_rebalance_waits_for_a_writer_that_does_not_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """While Faust is in its callback no heartbeat goes to the group: 10 s of that, and we are expelled."""
    async with process() as made:
        made.logs[0] = FakeLog()
        await made.journals.own({0})
        may_stop = asyncio.Event()
        monkeypatch.setattr(made.logs[0], "close", may_stop.wait)
        await asyncio.wait_for(made.journals.own({1}), 1)
        assert made.journals.partitions == {1}
        may_stop.set()


async def test_a_cancelled_rebalance_leaves_nothing_behind() -> None:
    async with process() as made:
        made.logs[0] = FakeLog()
        made.logs[0].hang_open = asyncio.Event()
        owning = asyncio.create_task(made.journals.own({0}))
        await until(lambda: 0 in made.journals.partitions)
        await asyncio.sleep(0)
        owning.cancel()
        with suppress(asyncio.CancelledError):
            await owning


async def test_a_journal_that_gave_its_partition_up_begins_anew_with_the_next_rebalance() -> None:
    async with process() as made:
        await made.journals.own({0})
        made.world.answers.append(False)
        errors = deque([FencedError("x")])

        def refuse(outputs: Sequence[Output]) -> None:
            if errors:
                raise errors.popleft()

        made.logs[0].refuse = refuse
        await made.journals.offer(made.world.delivery(0))
        await until(lambda: made.world.dropped == [0])
        await made.journals.offer(made.world.delivery(1))
        assert made.world.dropped == [0, 1]
        await made.journals.own({0})
        await made.journals.offer(made.world.delivery(0))
        await until(lambda: made.world.acked == [0])
        assert made.made == [0, 0]


async def test_a_delivery_of_a_partition_that_is_not_ours_is_given_back() -> None:
    async with process() as made:
        await made.journals.offer(made.world.delivery(0))
        assert made.world.dropped == [0]


async def test_what_ends_a_journal_is_told_and_the_others_go_on() -> None:
    async with process() as made:
        made.logs[0] = FakeLog()
        made.logs[0].open_errors.append(TopicRecreatedError("made anew"))
        owning = asyncio.create_task(made.journals.own({0, 1}))
        await until(lambda: made.fatal)
        assert [type(error) for error in made.fatal] == [TopicRecreatedError]
        journal = made.journals.get(1)
        assert journal is not None
        await until(journal.opened.is_set)
        owning.cancel()


async def test_a_changelog_written_under_another_number_ends_the_other_journals_too() -> None:
    async with process() as made:
        made.logs[0] = FakeLog()
        made.logs[0].open_errors.append(TopicResizedError("written when there were 5"))
        await made.journals.own({0, 1})
        await until(lambda: made.fatal)
        assert ([type(error) for error in made.fatal], list(made.journals)) == ([TopicResizedError], [])


@pytest.mark.parametrize("told", ["by the watch", "by the group"])
async def test_another_number_of_partitions_ends_every_journal_and_the_process(told: str) -> None:
    async with process() as made:
        await made.journals.own({0, 1})
        if told == "by the watch":
            made.journals.halt(TopicResizedError("has 7 partitions now"))
        else:
            await made.journals.own({0, 1, 6})
        assert [type(error) for error in made.fatal] == [TopicResizedError]
        assert (list(made.journals), made.journals.next_offset("any", 0)) == ([], None)
        assert not made.journals.all_open, "it is not ready for anything any more"
        await made.journals.offer(made.world.delivery(0))
        assert (made.world.acked, made.world.dropped) == ([], [0])
        await made.journals.own({0, 1})
        assert (list(made.journals), sorted(made.made)) == ([], [0, 1]), "whatever the group says later"
        made.journals.halt(TopicResizedError("again"))
        assert len(made.fatal) == 1
