"""A move: a task that is wanted is to run elsewhere, once. It says where, never whether.

Rules: one that comes late, or twice, starts no task that is not wanted any more; the holder stops first; a skald that
is named is preferred for the next placement only, and pins nothing; without one, or when it can't, anybody takes the
task but the one who had it, and that one rather than nobody.
"""

from __future__ import annotations

from dataclasses import replace

from skalds_streams.core.row import Release, Row, Wanted

NOT_MOVED = "not moved: "
"""How the note begins of a row whose cause was a move that could not be."""


def moved(row: Row, to: str | None) -> Row:
    """The row once a move was asked; unchanged but for a note when there is nothing to move."""
    held = row.holder.skald_id if row.holder is not None else None
    if row.wanted is not Wanted.RUN or row.is_terminal:
        return replace(row, note=NOT_MOVED + "it is not wanted")
    if held is None:
        return replace(row, move_to=to, moved_from=row.last_skald, last_skald=None, retry_at_ms=0)
    if row.recipient == held:
        return replace(row, note=NOT_MOVED + f"it is pinned to {held}")
    if to == held:
        return replace(row, note=NOT_MOVED + f"{held} has it already")
    return replace(row, release=row.release or Release.MOVE, move_to=to)


def let_go(row: Row) -> Row:
    """The row as the next placement sees it when its holder was asked to leave and has ended."""
    held = row.holder.skald_id if row.holder is not None else None
    return replace(row, holder=None, release=None, last_skald=None, moved_from=held)


def settled(row: Row) -> Row:
    """Without what was said for the next placement, when there is none to come."""
    if row.release is not None or row.is_waiting or (row.move_to is None and row.moved_from is None):
        return row
    return replace(row, move_to=None, moved_from=None)
