"""Rows for a terminal: masked documents and the few words of `ps`. The sentences are those of the status page."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from skalds_streams.cli.output import duration, one_line
from skalds_streams.core.control import CANCEL, PAUSE, RESTART
from skalds_streams.core.membership import Members
from skalds_streams.core.placement import is_not_loadable
from skalds_streams.core.row import Release, Row, Wanted
from skalds_streams.projections.masking import masked_parameters
from skalds_streams.web.documents import class_docs, compact_json, is_crash_looping, since_ms, task_doc
from skalds_streams.web.words import crashes, update_state

PARAMETERS_MOST = 60


def full_doc(row: Row, members: Members, words: frozenset[str], now_ms: int) -> dict[str, Any]:
    """For `-o json`: the document of the web API, with what the heartbeats say of the holder."""
    doc = task_doc(row, words, now_ms, members.secret_paths(row.class_name))
    return {**doc, "holder_state": holder_state(row, members)}


def holder_state(row: Row, members: Members) -> str | None:
    """What is known of the holder: up, silent, dead, unknown, or what it says of itself; None without a holder."""
    if row.holder is None:
        return None
    if members.is_dead(row.holder.incarnation, row.holder.seen):
        return "dead"
    member = members.get(row.holder.incarnation)
    if member is None:
        return "unknown"
    return "silent" if members.is_silent(member) else member.state


def status_suffix(row: Row, now_ms: int = 0) -> str:
    """What is asked of a holder that has not done it yet; with now_ms also for how long: " (pausing, 3s)"."""
    if row.holder is None:
        return ""
    by_wish, by_release = _ASKED.get(row.wanted), _RELEASED.get(row.release) if row.release is not None else None
    if (told := by_wish or by_release) is None:
        return ""
    asked, doing = told
    control = row.controls.get(asked)
    since = f", {duration(now_ms - control.asked_at_ms)}" if now_ms and control is not None and control.is_open else ""
    return f" ({doing}{since})"


_ASKED = {Wanted.CANCEL: (CANCEL, "cancelling"), Wanted.PAUSE: (PAUSE, "pausing")}
_RELEASED = {Release.RESTART: (RESTART, "restarting"), Release.MOVE: ("", "moving")}


def tries_words(row: Row, now_ms: int) -> str:
    """Crashes and what follows from them: "crash looping (5), next try in 12s"; "" when there were none."""
    if not row.attempt:
        return ""
    words = f"crash looping ({row.attempt})" if is_crash_looping(row, now_ms) else crashes(row.attempt)
    if row.is_waiting and row.retry_at_ms:
        words += f", next try in {duration(row.retry_at_ms - now_ms)}"
    return words


def applied_words(row: Row) -> str:
    """What became of the newest parameters: "v3", "v4 refused, v3 runs", "v4 pending", "v4 kept" for the next start."""
    state = update_state(row)
    if state is None:
        return ""
    newest = f"v{row.attachments_version}"
    if state == "applied":
        return newest
    if state == "pending" and row.holder is None and not row.is_waiting:
        return f"{newest} kept"
    runs = f", v{row.applied_version} runs" if row.applied_version and row.holder is not None else ""
    return f"{newest} {state}{runs}"


def parameters_words(row: Row, words: frozenset[str], paths: Collection[str] = (), most: int = PARAMETERS_MOST) -> str:
    """The masked parameters on one line: fps=30 url=rtsp://***@camera."""
    masked = masked_parameters(row, words, paths)
    if not isinstance(masked, dict):
        return one_line(compact_json(masked), most)
    parts = [
        f"{name}={value if isinstance(value, str) else compact_json(value) or 'null'}" for name, value in masked.items()
    ]
    return one_line(" ".join(parts), most)


def age_words(row: Row, now_ms: int) -> str:
    """How long the row has been as it is."""
    return duration(now_ms - since_ms(row))


def who_has_what(members: Members, name: str) -> str:
    """What helps who asked for a class that nobody has: where it is broken, and the classes there are."""
    known = ", ".join(doc["name"] for doc in class_docs(members)) or "none"
    broken = sorted(member.skald_id for member in members if is_not_loadable(name, member))
    where = f"it is not loadable on {', '.join(broken)}, whose status page says why; " if broken else ""
    return f"{where}there are: {known}"
