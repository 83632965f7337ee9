"""Parameters of updates that are under way: what a refusal would bring back. Pure.

Rules: kept by version, while an update is not answered; those that run always, of the later ones the newest that fit.
"""

from __future__ import annotations

from typing import Any

from skalds_streams.core.row import Row, Status

UNANSWERED_MOST = 64
UNANSWERED_CHARS = 300_000
"""Updates of one task that can be under way and still be undone by a refusal: so many, and so much text of them, as the
row must fit into a record."""


def kept_for_a_refusal(row: Row) -> dict[str, Any]:
    """The parameters that a refusal would bring back: those that run, and those that were sent after them."""
    kept: dict[str, Any] = dict(row.unanswered)
    began = row.applied_version if row.status is Status.RUNNING else row.attachments_version
    kept[str(row.attachments_version if kept else began)] = row.attachments
    runs, *later = sorted(kept, key=int)
    left = UNANSWERED_CHARS - len(repr(kept[runs]))
    fitting: list[str] = []
    for version in reversed(later[-UNANSWERED_MOST:]):
        left -= len(repr(kept[version]))
        if left < 0:
            break
        fitting.append(version)
    return {version: kept[version] for version in [runs, *reversed(fitting)]}


def still_unanswered(row: Row, version: int) -> dict[str, Any]:
    """What is still under way once `version` is what runs."""
    if version >= row.attachments_version:
        return {}
    return {number: value for number, value in row.unanswered.items() if int(number) >= version}
