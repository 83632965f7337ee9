"""What must hold of decide whatever happens, in whatever order, at whatever times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from skalds_streams.core import events
from skalds_streams.core.control import CANCEL, PAUSE, RESTART, RESUME, SUPERSEDED, broken_controls
from skalds_streams.core.decide import AHEAD_MS, NOTHING_CHANGED, Context, decide
from skalds_streams.core.invariants import check_step
from skalds_streams.core.placement import Choice
from skalds_streams.core.row import NO_CAUSE, Cause, Release, Row, Wanted
from skalds_streams.model.changelog import ChangelogState
from skalds_streams.model.documents import Positions, decode_positions, decode_row, encode_positions, encode_row
from tests.fuzz.wire import placeless
from tests.property.strategies import (
    COMMAND_MOVES,
    COMMANDS,
    EPOCH_FLOOR,
    HISTORIES,
    LONG_HISTORIES,
    MOVES,
    OURS,
    PARAMETERS,
    REVISION_FLOOR,
    Move,
)


def play(moves: Sequence[Move], row: Row | None = None) -> list[Row]:
    """Every row of a history, those that are forgotten included. The invariants are checked at each step."""
    rows: list[Row] = []
    floors = (row.epoch, row.revision) if row else (EPOCH_FLOOR, REVISION_FLOOR)
    for offset, move in enumerate(moves):
        decision = decide(row, move.event(row, offset), move.context(*floors))
        assert (decision.row is None) == (decision.ignored is not None)
        if decision.row is None:
            continue
        check_step(row, decision.row)
        assert not list(broken_controls(row, decision.row))
        rows.append(decision.row)
        row = None if decision.forget else decision.row
        if row is None:
            floors = (max(floors[0], rows[-1].epoch), max(floors[1], rows[-1].revision))
    return rows


# -- every history


@given(LONG_HISTORIES | HISTORIES)
def test_decide_never_raises_and_every_step_keeps_the_invariants(moves: list[Move]) -> None:
    rows = play(moves)
    for before, after in pairwise(rows):
        assert after.epoch >= before.epoch
        assert after.revision > before.revision
        if after.holder is not None and after.holder != before.holder:
            assert before.holder is None or after.epoch == before.epoch + 1
    if rows:
        assert rows[0].epoch >= EPOCH_FLOOR
        assert rows[0].revision == REVISION_FLOOR + 1


@given(HISTORIES)
def test_a_task_that_waits_is_placed_as_soon_as_somebody_can_take_it(moves: list[Move]) -> None:
    for row in play([replace(move, to=move.to or "a") for move in moves]):
        assert not row.is_waiting or row.retry_at_ms > 0, "waits although a could take it, and no back-off runs"


@given(HISTORIES)
def test_a_command_that_is_not_a_copy_is_always_recorded(moves: list[Move]) -> None:
    row: Row | None = None
    for offset, move in enumerate(moves):
        decision = decide(row, move.event(row, offset), move.context())
        if move.kind in COMMANDS and decision.row is None:
            assert decision.ignored == "forwarded twice"
        row = None if decision.forget else decision.row or row


@given(HISTORIES, COMMAND_MOVES, st.sampled_from([CANCEL, PAUSE, RESUME, RESTART]))
def test_what_a_command_asks_for_can_be_followed_to_its_end(moves: list[Move], move: Move, asked: str) -> None:
    """Open, applied or superseded, by the record that asked. Once nothing is to come any more, none is open."""
    move = replace(move, kind="cancel" if asked == CANCEL else "assign", resume=asked == RESUME, origin=None)
    release = Release.RESTART if asked == RESTART else None
    move = replace(move, release=release, then=Wanted.PAUSE if asked == PAUSE else Wanted.RUN)
    rows = play(moves)
    row = rows[-1] if rows else None
    told = decide(row, move.event(row, 99), move.context()).row
    assert told is not None
    control = told.controls[asked]
    note = row.note if row is not None and told.note == NOTHING_CHANGED else told.note
    lost = (note or "").startswith(SUPERSEDED)
    if lost and control.place != (f"task.{move.kind}", 0, 99):
        assert row is not None
        assert control == row.controls[asked], "a later one of its kind stands there"
        return
    assert (control.place, lost) == ((f"task.{move.kind}", 0, 99), control.superseded_by is not None)
    kinds = ("stopped", "retry", "running", "stopped", "running")
    ends = [Move(kind, now_ms=9_000) for kind in kinds]
    last = play(ends, told)
    assert not any(item.is_open for item in (last[-1] if last else told).controls.values())


@given(HISTORIES, MOVES)
def test_a_report_of_another_run_changes_nothing(moves: list[Move], move: Move) -> None:
    rows = play(moves)
    row = rows[-1] if rows else None
    if move.kind in (*COMMANDS, *OURS):
        return
    for other in (replace(move, mine=False), replace(move, epoch=move.epoch or -1)):
        assert decide(row, other.event(row, 0), other.context()).row is None


@given(HISTORIES)
def test_a_cancelled_task_is_never_placed_again_without_an_assign(moves: list[Move]) -> None:
    rows = play([*moves, Move("cancel", at_ms=10_000, now_ms=10_000)])
    last = rows[-1]
    assert last.wanted is Wanted.CANCEL
    after = play([replace(move, kind="lost") if move.kind == "assign" else move for move in moves], last)
    assert all(row.holder is None or row.holder == last.holder for row in after)
    assert all(row.wanted is Wanted.CANCEL for row in after)


@given(HISTORIES)
def test_rows_are_the_same_after_dump_and_load(moves: list[Move]) -> None:
    for row in play(moves):
        assert decode_row(encode_row(row)) == row
        state = ChangelogState()
        assert state.apply(0, b"t", encode_row(row)) == "t"
        assert state.rows == {"t": row}
        assert orjson.loads(encode_row(row)) == orjson.loads(orjson.dumps(row.to_doc()))


@given(st.text(max_size=8), st.binary(max_size=64), st.integers(0, 2**31), st.integers(0, 2**31))
def test_positions_are_the_same_after_dump_and_load(name: str, data: bytes, epoch: int, revision: int) -> None:
    sizes = [int.from_bytes(data[at : at + 8], "big") >> 1 for at in range(0, len(data), 8)]
    positions = Positions({f"{name}{at}": size - 1 for at, size in enumerate(sizes)}, epoch, revision)
    assert decode_positions(encode_positions(positions)) == positions


# -- forwarded commands


@given(HISTORIES, COMMAND_MOVES)
def test_a_forwarded_command_ends_as_the_direct_one_would(moves: list[Move], move: Move) -> None:
    """When it comes in its turn: not before what its topic has brought already."""
    rows = play(moves)
    row = rows[-1] if rows else None
    latest = max((row.assign_at_ms, row.cancel_at_ms, row.update_at_ms), default=0) if row else 0
    move = replace(move, at_ms=max(move.at_ms, latest), now_ms=max(move.now_ms, latest), origin=None)
    direct = decide(row, move.event(row, 99), move.context()).row
    forwarded = replace(move, origin="task.any/5", origin_offset=3)
    copy = decide(row, forwarded.event(row, 99), forwarded.context()).row
    assert direct is not None
    assert copy is not None
    assert placeless(copy) == placeless(direct)
    assert copy.why == direct.why
    assert decide(copy, forwarded.event(copy, 100), forwarded.context()).ignored == "forwarded twice"


# -- the last command wins


def command(kind: str, number: int, at_ms: int, offset: int, *, forwarded: bool = False) -> events.Command:
    """The number is in what an assign or an update says, so that the winner can be told."""
    cause = Cause(kind, f"task.{kind}", 0, offset, at_ms)
    origin: dict[str, Any] = {"origin": f"task.{kind}/9", "origin_offset": offset} if forwarded else {}
    if kind == "Assign":
        spec = events.TaskSpec(
            class_name=f"C{number}",
            attachments={"n": number},
            recipient=f"r{number}",
            requires={},
            weight=number + 1,
            priority=number,
            max_restarts=number,
        )
        return events.Assign("t", cause, spec=spec, **origin)
    if kind == "Cancel":
        return events.Cancel("t", cause, **origin)
    return events.Update("t", cause, attachments={"n": number}, **origin)


def outcome(commands: Sequence[events.Command], now_ms: int = 10_000) -> Row:
    row = Row("t")
    for event in commands:
        context = Context(now_ms=now_ms, choose=lambda row: Choice(waiting={"a": "full"}))
        decision = decide(row if row.revision else None, event, context)
        row = decision.row or row
    return row


@given(st.binary(min_size=2, max_size=16), st.sampled_from(["Assign", "Update"]))
def test_inside_a_topic_the_last_offset_wins_whatever_the_times_say(data: bytes, kind: str) -> None:
    times = [int.from_bytes(data[at : at + 2], "big") % 20_050 - 50 for at in range(0, len(data), 2)]
    row = outcome([command(kind, number, at_ms, number) for number, at_ms in enumerate(times)])
    last = len(times) - 1
    assert row.attachments == {"n": last}
    if kind == "Assign":
        assert (row.class_name, row.recipient, row.weight) == (f"C{last}", f"r{last}", last + 1)


def _timed(data: bytes) -> list[tuple[str, int]]:
    """One to eight commands, no two at one time."""
    times: dict[int, str] = {}
    for at in range(0, len(data) - 2, 3):
        times.setdefault(1 + int.from_bytes(data[at + 1 : at + 3], "big") % 9_000, KINDS[data[at] % 3])
    return [(kind, at_ms) for at_ms, kind in times.items()]


KINDS = ("Assign", "Cancel", "Update")
TIMED = st.binary(min_size=3, max_size=24).map(_timed)


def in_topic_order(timed: list[tuple[str, int]], picks: bytes) -> list[tuple[str, int]]:
    """The commands as three topics would give them: each in its own order, mixed at will."""
    queues = [[item for item in sorted(timed, key=lambda item: item[1]) if item[0] == kind] for kind in KINDS]
    mixed = []
    for pick in picks:
        waiting = [queue for queue in queues if queue]
        if waiting:
            mixed.append(waiting[pick % len(waiting)].pop(0))
    return mixed + [item for queue in queues for item in queue]


@given(TIMED, st.binary(max_size=8))
def test_between_topics_the_times_decide(timed: list[tuple[str, int]], picks: bytes) -> None:
    numbers = {item: number for number, item in enumerate(timed)}
    mixed = in_topic_order(timed, picks)
    row = outcome([command(kind, numbers[kind, at], at, at) for kind, at in mixed])
    _check_winner(row, timed, numbers)


@given(TIMED)
def test_forwarded_commands_of_any_order_end_as_their_times_say(mixed: list[tuple[str, int]]) -> None:
    """Each from another partition, so that nothing but the times orders them. They are drawn in any order."""
    timed = sorted(mixed)
    numbers = {item: number for number, item in enumerate(timed)}
    forwarded = [
        replace(command(kind, numbers[kind, at], at, at, forwarded=True), origin=f"task.{kind}/{numbers[kind, at]}")
        for kind, at in mixed
    ]
    _check_winner(outcome(forwarded), timed, numbers)


def _check_winner(row: Row, timed: list[tuple[str, int]], numbers: dict[tuple[str, int], int]) -> None:
    orders = [item for item in timed if item[0] != "Update"]
    if orders:
        last = max(orders, key=lambda item: item[1])
        assert row.wanted is (Wanted.RUN if last[0] == "Assign" else Wanted.CANCEL)
    sayings = [item for item in timed if item[0] != "Cancel"]
    if sayings:
        last = max(sayings, key=lambda item: item[1])
        assert row.attachments == {"n": numbers[last]}
    assigns = [item for item in timed if item[0] == "Assign"]
    if assigns:
        last = max(assigns, key=lambda item: item[1])
        assert (row.class_name, row.recipient) == (f"C{numbers[last]}", f"r{numbers[last]}")


def _last_command(moves: Sequence[Move]) -> Wanted:
    """What design's order makes of the commands, reckoned from all of them together.

    A topic's own commands count with the greatest time so far; a copy with its own, and only if no later one of its
    kind has come. A time ahead of the clock counts as now, unless the row has counted one that is ahead, too. The
    greatest time wins, a cancel at a tie.
    """
    latest = {"assign": 0, "cancel": 0}
    won = [(0, 1, -1, Wanted.CANCEL)]
    after: Row | None = None
    for at, move in enumerate(moves):
        before = after
        after = decide(before, move.event(before, at), move.context(EPOCH_FLOOR, REVISION_FLOOR)).row or before
        only_moves = move.kind == "assign" and move.release is Release.MOVE and move.spec == events.TaskSpec()
        if move.kind not in latest or only_moves:
            continue
        counted = max(before.assign_at_ms, before.cancel_at_ms, before.update_at_ms) if before else 0
        is_told = move.at_ms <= move.now_ms + AHEAD_MS or counted > move.now_ms + AHEAD_MS
        sent = max(move.at_ms if is_told else move.now_ms, 0)
        if move.origin is not None and sent < latest[move.kind]:
            continue
        latest[move.kind] = max(latest[move.kind], sent)
        cancels = move.kind == "cancel"
        won.append((latest[move.kind], int(cancels), at, Wanted.CANCEL if cancels else move.then))
    return max(won)[-1]


@given(LONG_HISTORIES | HISTORIES)
def test_the_last_command_by_the_order_of_design_wins(moves: list[Move]) -> None:
    """Among reports, copies, clocks that are off and ties, and whatever has become of the task in between."""
    moves = [move for move in moves if move.kind not in ("deadline", "expired")]
    # A copy comes from another partition: what is sent to this one, 0, is not copied to it.
    moves = [replace(move, origin=move.origin and f"task.{move.kind}/{at}") for at, move in enumerate(moves, 1)]
    rows = play(moves)
    if rows:
        assert rows[-1].wanted is _last_command(moves)


@given(st.integers(1, 9_000), st.booleans())
def test_a_cancel_wins_a_tie_whichever_comes_first(at_ms: int, cancel_first: bool) -> None:
    pair = [command("Assign", 0, at_ms, 0), command("Cancel", 0, at_ms, 0)]
    assert outcome(pair[::-1] if cancel_first else pair).wanted is Wanted.CANCEL


@given(st.integers(0, 2**40), st.integers(0, 10_000))
def test_a_time_far_ahead_of_our_clock_counts_as_now(ahead_ms: int, now_ms: int) -> None:
    row = outcome([command("Assign", 0, now_ms + ahead_ms, 0)], now_ms)
    assert row.assign_at_ms == now_ms + (ahead_ms if ahead_ms <= AHEAD_MS else 0)


@given(PARAMETERS, PARAMETERS)
def test_an_update_replaces_all_parameters(before: dict[str, Any], after: dict[str, Any]) -> None:
    context = Context(now_ms=10, choose=lambda row: Choice(waiting={}))
    row = Row("t", attachments=before, attachments_version=1)
    changed = decide(row, events.Update("t", NO_CAUSE, attachments=after), context).row
    assert changed is not None
    assert changed.attachments == after
    assert changed.attachments_version == (1 if before == after else 2)
