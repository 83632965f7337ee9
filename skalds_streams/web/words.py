"""What a row means, in words for people: one sentence on what it waits for or what went wrong, and what became of the
last update.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from skalds_streams.core.control import CANCEL, PAUSE
from skalds_streams.core.membership import Member
from skalds_streams.core.options import DEFAULT, ClassOptions, of_class
from skalds_streams.core.placement import BY_CLASS, EXPECTED_BACK
from skalds_streams.core.row import Control, Release, Row, Status, Wanted
from skalds_streams.projections.masking import error_text

Clean = Callable[[Any], Any]
UpdateState = Literal["applied", "pending", "refused"]

_SUPERSEDED = re.compile(r"(superseded by \w+) at (\d{12,14})")

NOT_READY: Mapping[str, str] = {
    "view_caught_up": "This node is still reading the changelog: what you see is not complete yet.",
    "journals_open": "This node has not opened all of its journals yet: commands for its partitions wait.",
    "heartbeat_acknowledged": "No heartbeat of this node was acknowledged yet: it gets no tasks.",
    "workers_loaded": "The worker classes of this node are not loaded yet.",
}
WANTED: Mapping[Wanted, str] = {
    Wanted.RUN: "It should run",
    Wanted.PAUSE: "It should be paused",
    Wanted.CANCEL: "It should not run",
}


@dataclass(frozen=True, slots=True)
class Situation:
    """What the status alone does not say. `at_ms`: the moment that ends the sentence, 0 for none."""

    text: str = ""
    at_ms: int = 0
    tone: Literal["", "wait", "bad"] = ""


def situation(row: Row, clean: Clean) -> Situation:
    """clean: masks secrets in any text of this row (`projections.masking.text_cleaner`)."""
    if row.holder is not None:
        return _held(row, row.holder.skald_id, clean)
    if row.is_waiting:
        return _waiting(row, clean)
    if row.status is Status.FAILED:
        failure = error_text(clean(row.error)) or "failed without a word"
        says_more = row.note is not None and row.note not in failure
        return Situation(f"{failure} ({clean(row.note)})" if says_more else failure, tone="bad")
    return _noted(row, clean)


def _held(row: Row, skald_id: str, clean: Clean) -> Situation:
    if row.wanted is Wanted.CANCEL:
        return Situation(f"Cancel was asked; {skald_id} is stopping it", tone="wait")
    if row.wanted is Wanted.PAUSE:
        return Situation(f"Pause was asked; {skald_id} is stopping it", tone="wait")
    if row.release is Release.RESTART:
        return Situation(f"Restarting; {skald_id} is stopping the present run", tone="wait")
    if row.release is Release.MOVE:
        to = f" to {row.move_to}" if row.move_to is not None else ""
        return Situation(f"Moving{to}; {skald_id} is stopping the present run", tone="wait")
    if row.status is Status.ASSIGNING:
        return Situation(f"Starting on {skald_id}", tone="wait")
    if row.attempt:
        return Situation(
            f"Runs again after {crashes(row.attempt)}; the last was {error_text(clean(row.error)) or 'unknown'}"
        )
    return _noted(row, clean)


def _waiting(row: Row, clean: Clean) -> Situation:
    if row.retry_at_ms:
        text = f"{error_text(clean(row.error)) or 'crashed'} ({crashes(row.attempt)}). Next try"
        return Situation(text, at_ms=row.retry_at_ms, tone="bad")
    if row.waiting and set(row.waiting.values()) == {EXPECTED_BACK}:
        return Situation("Waits for " + ", ".join(f"{skald_id}, which {EXPECTED_BACK}" for skald_id in row.waiting))
    if row.waiting:
        return Situation("No skald can take it: " + "; ".join(waiting_reasons(row, clean)), tone="wait")
    return Situation("Waits for a skald", tone="wait")


def waiting_reasons(row: Row, clean: Clean) -> list[str]:
    """One reason a skald: "a: full 8/8"."""
    reasons = clean(dict(row.waiting or {}))
    return [reason if skald_id == "*" else f"{skald_id}: {reason}" for skald_id, reason in sorted(reasons.items())]


def policy_words(row: Row, members: Iterable[Member]) -> Mapping[str, str]:
    """What placement and restarts go by: {"labels", "weight", "restarts", "pauses"}, "" for what needs no word."""
    said = _by_class(row, members)
    options = of_class(row.of_class) if row.holder is not None or row.attempt else _common(said)
    labels, weight, most = row.requires, row.weight, row.max_restarts
    return {
        "labels": label_words(labels) if labels is not None else _labels_of_classes(said),
        "weight": str(weight or options.weight) + (BY_CLASS if weight is None and options.weight > 1 else ""),
        "restarts": restart_words(options.max_restarts if most is None else most)
        + (BY_CLASS if most is None and options.max_restarts is not None else ""),
        "pauses": pause_words(options) + BY_CLASS if pause_words(options) != pause_words(DEFAULT) else "",
    }


def label_words(labels: Mapping[str, str]) -> str:
    """ "gpu=yes, zone=a"."""
    return ", ".join(f"{name}={value}" for name, value in sorted(labels.items()))


def restart_words(most: int | None) -> str:
    """ "at most 3"."""
    return "for ever" if most is None else f"at most {most}"


def pause_words(options: ClassOptions) -> str:
    """ "1 s to 60 s"."""
    return f"{options.backoff_first_ms / 1000:g} s to {options.backoff_most_ms / 1000:g} s"


def _by_class(row: Row, members: Iterable[Member]) -> list[tuple[ClassOptions, list[str]]]:
    """What the skalds that have the row's class say of it, alike ones together."""
    found: list[tuple[ClassOptions, list[str]]] = []
    for member in sorted(members, key=lambda member: member.skald_id):
        if row.class_name in member.classes:
            options = member.options_of(row.class_name)
            known = next((names for other, names in found if other == options), None)
            if known is None:
                found.append((options, [member.skald_id]))
            else:
                known.append(member.skald_id)
    return found


def _common(said: Sequence[tuple[ClassOptions, list[str]]]) -> ClassOptions:
    return said[0][0] if len(said) == 1 else DEFAULT


def _labels_of_classes(said: Sequence[tuple[ClassOptions, list[str]]]) -> str:
    if len({label_words(options.requires) for options, _ in said}) <= 1:
        return label_words(said[0][0].requires) + BY_CLASS if said and said[0][0].requires else ""
    told = [f"{label_words(options.requires) or 'none'} on {', '.join(names)}" for options, names in said]
    return "; ".join(told) + BY_CLASS


def _noted(row: Row, clean: Clean) -> Situation:
    """The note, its time as a time."""
    superseded = _SUPERSEDED.fullmatch(row.note or "")
    return Situation(superseded[1], int(superseded[2])) if superseded else Situation(clean(row.note) or "")


def crashes(attempt: int) -> str:
    """The number in words: "1 crash", "2 crashes"."""
    return "1 crash" if attempt == 1 else f"{attempt} crashes"


def update_state(row: Row) -> UpdateState | None:
    """What became of the newest parameters; None when the task never had any."""
    if row.attachments_version == 0:
        return None
    if row.applied_version >= row.attachments_version:
        return "applied"
    if row.refused is not None and row.refused.get("version") == row.attachments_version:
        return "refused"
    return "pending"


@dataclass(frozen=True, slots=True)
class ControlTold:
    """A cancel, pause, resume or restart in words: `by` is the record that asked. Open while `run` and `superseded` are
    empty. `took`: from asked to applied; `run`: what it was applied to. `superseded`: by what, with the time of that
    where its place is not known.
    """

    name: str
    asked_at_ms: int
    by: str
    applied_at_ms: int = 0
    took: str = ""
    run: str = ""
    superseded: str = ""
    superseded_at_ms: int = 0


def controls_told(row: Row) -> list[ControlTold]:
    """The last of each kind, in the order in which they were asked."""
    by_time = sorted(row.controls.items(), key=lambda item: item[1].asked_at_ms)
    return [_control_told(name, control) for name, control in by_time]


def _control_told(name: str, control: Control) -> ControlTold:
    told = ControlTold(name, control.asked_at_ms, place_words(*control.place))
    if control.took_ms is not None:
        took = f"{control.took_ms / 1000:.3f} s"
        return replace(told, applied_at_ms=control.applied_at_ms, took=took, run=_run_words(name, control))
    winner = control.superseded_by
    if winner is None:
        return told
    if winner.topic:
        at = place_words(winner.topic, winner.partition, winner.offset)
        return replace(told, superseded=f"{winner.kind} {at}")
    return replace(told, superseded=f"an earlier {winner.kind}", superseded_at_ms=winner.at_ms)


def _run_words(name: str, control: Control) -> str:
    if not control.epoch:
        return "nothing had run"
    version = f" with version {control.version} of the parameters" if control.version else ""
    return f"epoch {control.epoch}{version} " + ("has ended" if name in (CANCEL, PAUSE) else "runs")


def place_words(topic: str, partition: int, offset: int) -> str:
    """ "task.assign/3@17"."""
    return f"{topic}/{partition}@{offset}"


def cause_words(row: Row, clean: Clean) -> str:
    """ "Pause from task.assign, partition 3, offset 17: reason"; without the reason where `note_words` has it."""
    cause = row.why
    if not cause.topic:
        return "not known"
    return f"{action_words(row)} from {cause.topic}, partition {cause.partition}, offset {cause.offset}" + _reason(
        row, clean
    )


def why_words(row: Row, clean: Clean) -> str:
    """The same in short: "Pause task.assign/3@17: reason"."""
    cause = row.why
    return f"{action_words(row)} {place_words(cause.topic, cause.partition, cause.offset)}{_reason(row, clean)}"


def action_words(row: Row) -> str:
    """What the row's cause asked for or said: "Pause", "Resume" and "Restart" are assign events, too."""
    place = (row.why.topic, row.why.partition, row.why.offset)
    asked = next((name for name, control in row.controls.items() if control.place == place), None)
    return asked.capitalize() if asked is not None else row.why.kind


def note_words(row: Row, clean: Clean) -> str:
    """The row's note, or the reason of its cause when that says the same and more; "" for none."""
    note, reason = row.note or "", row.why.reason or ""
    return str(clean(reason if note in reason else note)) if note else ""


def outcome_words(row: Row, clean: Clean) -> str:
    """What became of the row's cause: what was refused or what it failed with, and the note; "" for nothing."""
    return "; ".join(said for said in (_failure(row, clean), note_words(row, clean)) if said)


def _failure(row: Row, clean: Clean) -> str:
    if row.why.kind == "Failed":
        return error_text(clean(row.error))
    if row.why.kind != "Refused" or row.refused is None:
        return ""
    error = clean(row.refused.get("error"))
    told = error_text(error) if isinstance(error, dict) else str(error or "no reason given")
    return f"version {row.refused.get('version')}: {told}"


def _reason(row: Row, clean: Clean) -> str:
    reason, note = row.why.reason, row.note
    is_in_note = reason and note and (reason in note or note in reason)
    return f": {clean(reason)}" if reason and not is_in_note else ""


def not_ready(readiness: Mapping[str, bool]) -> list[str]:
    """A sentence for each thing that is not so yet."""
    return [
        NOT_READY.get(name, f"This node is not ready: {name.replace('_', ' ')}.")
        for name, is_so in readiness.items()
        if not is_so
    ]


def relative(at_ms: int, now_ms: int) -> str:
    """ "12 s ago", "in 3 min"; the same words as static/common.js."""
    seconds = abs(now_ms - at_ms) // 1000
    if seconds < 1:
        return "now"
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")):
        if seconds >= size:
            text = f"{seconds // size} {unit}"
            break
    return f"in {text}" if at_ms > now_ms else f"{text} ago"
