"""Which of several states counts, whatever order they came in and whatever compaction has left of them."""

from __future__ import annotations

import pytest

from skalds_streams.core.row import Row
from skalds_streams.errors import StateError
from skalds_streams.model.record import Record
from skalds_streams.model.saved import RESET, Saved, StateIndex, StateKey, StateRecord, read_saved


def record(key: StateKey, offset: int, value: bytes | None = b"{}", seq: int = 1) -> Record:
    made = StateRecord.of(key, value or b"", seq=seq, skald_id="a")
    return Record("task.state", 0, offset, made.key.encode(), value, 1_000 + offset, made.headers)


def index_of(*records: Record) -> StateIndex:
    index = StateIndex()
    for item in records:
        index.apply(item)
    return index


def newest(index: StateIndex, task_id: str = "t", first_epoch: int = 0) -> tuple[int, bool, int] | None:
    spot = index.newest(task_id, first_epoch)
    return (*spot.key.rank, spot.offset) if spot is not None else None


@pytest.mark.parametrize("key", [StateKey("t", 1), StateKey("a@b+", 12, by_hand=True), StateKey("任務@1", 3)])
def test_a_key_is_read_as_it_was_written(key: StateKey) -> None:
    assert StateKey.parse(key.encode()) == key


@pytest.mark.parametrize(
    "key", [None, b"", b"t", b"t@", b"t@x", b"@1", b"t@-1", b"t@1++", b"t@\xb2", b"t@" + b"9" * 30]
)
def test_keys_that_none_of_us_wrote_are_passed_over(key: bytes | None) -> None:
    assert StateKey.parse(key) is None
    index_of(Record("task.state", 0, 1, key, b"{}", 0))


def test_what_a_run_writes_that_is_long_over_takes_nobodys_place() -> None:
    late, late_key = index_of(record(StateKey("t", 5), 10), record(StateKey("t", 4), 11, seq=99)), StateKey("t", 4)
    assert newest(late) == (5, False, 10)
    assert late_key.encode() != StateKey("t", 5).encode(), "so compaction keeps both"


def test_within_a_run_the_highest_sequence_number_counts_and_of_equals_the_last() -> None:
    key = StateKey("t", 5)
    assert newest(index_of(record(key, 1, seq=1), record(key, 2, seq=2), record(key, 3, seq=1))) == (5, False, 2)
    assert newest(index_of(record(key, 1, seq=2), record(key, 2, seq=2))) == (5, False, 2), "sent twice"


def test_what_a_person_sets_comes_after_the_run_and_before_the_next() -> None:
    run, by_hand, following = StateKey("t", 5), StateKey("t", 5, by_hand=True), StateKey("t", 6)
    assert newest(index_of(record(by_hand, 1), record(run, 2, seq=50))) == (5, True, 1)
    assert newest(index_of(record(by_hand, 1), record(following, 2))) == (6, False, 2)


def test_what_former_assigns_left_does_not_count() -> None:
    index = index_of(record(StateKey("t", 5), 1), record(StateKey("other", 9), 2))
    assert (newest(index, first_epoch=5), newest(index, first_epoch=6)) == ((5, False, 1), None)


def test_a_tombstone_takes_away_its_own_key_only() -> None:
    old, new = StateKey("t", 4), StateKey("t", 5)
    assert newest(index_of(record(old, 1), record(new, 2), record(new, 3, None))) == (4, False, 1)
    emptied = index_of(record(old, 1), record(old, 2, None), record(old, 3, None))
    assert (newest(emptied), emptied.keys("t")) == (None, [])


def test_a_state_is_read_with_what_is_known_of_it() -> None:
    assert read_saved(record(StateKey("t", 5), 7, b'{"n":1}', seq=3)) == Saved(
        StateKey("t", 5), 3, 1_007, "a", '{"n":1}'
    )
    assert read_saved(record(StateKey("t", 5, by_hand=True), 7, RESET)).text is None


def test_a_newer_format_or_a_foreign_record_is_not_taken_for_a_state() -> None:
    newer = Record("task.state", 0, 7, b"t@5", b"{}", 0, (("v", b"2"),))
    with pytest.raises(StateError, match=r"task\.state/0@7 has format 2; this version knows 1"):
        read_saved(newer)
    with pytest.raises(StateError, match="no saved state of ours"):
        read_saved(Record("task.state", 0, 7, b"t@5", b"{}", 0))
    with pytest.raises(StateError, match="not UTF-8"):
        read_saved(record(StateKey("t", 5), 7, b"\xff"))


def test_garbage_is_what_can_never_count_again() -> None:
    index = index_of(
        record(StateKey("gone", 1), 1),
        record(StateKey("t", 3), 2),
        record(StateKey("t", 5), 3),
        record(StateKey("t", 5, by_hand=True), 4),
        record(StateKey("anew", 7), 5),
        record(StateKey("kept", 2), 6),
    )
    rows = {name: Row(name, epoch=9, first_epoch=first) for name, first in (("t", 4), ("anew", 8), ("kept", 1))}
    assert set(index.garbage(rows)) == {StateKey("gone", 1), StateKey("t", 3), StateKey("t", 5), StateKey("anew", 7)}
