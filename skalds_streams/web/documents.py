"""Rows and members as JSON documents of the API. The only place where a row leaves for the web; everything is masked
here.

`task_doc` is the whole row, `brief_doc` what the status page's table shows of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

import orjson

from skalds_streams.core.membership import WAITING, Member, Members
from skalds_streams.core.redact import redact
from skalds_streams.core.restarts import CRASH_LOOPING_ATTEMPTS, STABLE_MS
from skalds_streams.core.row import Row, Status
from skalds_streams.projections.masking import error_text, masked_doc, masked_parameters, text_cleaner
from skalds_streams.settings import Settings
from skalds_streams.view.cluster import ClusterView
from skalds_streams.web.words import situation, update_state

PARAMETERS_MAX_CHARS = 240
SITUATION_MAX_CHARS = 400
STATE_SILENT = "silent"


def task_doc(row: Row, words: frozenset[str], now_ms: int, paths: Collection[str] = ()) -> dict[str, Any]:
    """The row's masked document, and what follows from it for people."""
    doc = masked_doc(row, words, paths)
    doc["skald"] = row.holder.skald_id if row.holder else None
    doc["crash_looping"] = is_crash_looping(row, now_ms)
    doc["update_state"] = update_state(row)
    return doc


def brief_doc(row: Row, words: frozenset[str], now_ms: int, paths: Collection[str] = ()) -> dict[str, Any]:
    """What the table of the status page needs, texts cut. Depends on the row and on whether its run is stable yet."""
    clean = text_cleaner(row, words, paths)
    told = situation(row, clean)
    refused = error_text(_error_of(clean(redact(row.refused, words)))) if update_state(row) == "refused" else ""
    return {
        "task_id": row.task_id,
        "href": task_href(row.task_id),
        "revision": row.revision,
        "class_name": row.class_name,
        "status": row.status.value,
        "skald": row.holder.skald_id if row.holder else None,
        "epoch": row.epoch,
        "attempt": row.attempt,
        "parameters": compact_json(masked_parameters(row, words, paths)),
        "update_state": update_state(row),
        "update_version": row.attachments_version,
        "update_at_ms": row.applied_at_ms if update_state(row) == "applied" else row.update_at_ms,
        "update_refused": cut(refused, SITUATION_MAX_CHARS),
        "situation": cut(told.text, SITUATION_MAX_CHARS),
        "situation_at_ms": told.at_ms,
        "tone": told.tone,
        "since_ms": since_ms(row),
        "crash_looping": is_crash_looping(row, now_ms),
        "stable_at_ms": row.running_since_ms + STABLE_MS
        if row.status is Status.RUNNING and row.running_since_ms
        else 0,
    }


def member_doc(member: Member, view: ClusterView, settings: Settings, own_incarnation: str) -> dict[str, Any]:
    """A living skald. `state` is what it says of itself, or "silent" when its heartbeats have stopped.

    `load` is counted from the rows, `running` is what its last heartbeat said, up to a beat old.
    """
    members = view.members
    return {
        "skald_id": member.skald_id,
        "incarnation": member.incarnation,
        "state": _state(member, members),
        "load": view.load(member.incarnation),
        "running": member.running,
        "capacity": member.capacity,
        "classes": dict(member.classes),
        "not_loadable": list(member.not_loadable),
        "labels": dict(member.labels),
        "role": member.role,
        "version": member.version,
        "cluster": member.cluster,
        "web": web_link(member.web),
        "settings_hash": member.settings_hash,
        "settings_differ": bool(member.settings_hash) and member.settings_hash != settings.agreed_hash,
        "host": member.host,
        "beat": member.n,
        "beat_at_ms": member.at_ms,
        "beats_missed": members.beats_missed(member),
        "is_this": member.incarnation == own_incarnation,
    }


def _state(member: Member, members: Members) -> str:
    if members.is_silent(member):
        return STATE_SILENT
    return member.state if members.stands(member) else WAITING


def member_docs(view: ClusterView, settings: Settings, own_incarnation: str) -> list[dict[str, Any]]:
    """All living skalds, by id."""
    docs = [member_doc(member, view, settings, own_incarnation) for member in view.members]
    return sorted(docs, key=lambda doc: (doc["skald_id"], doc["incarnation"]))


def class_docs(members: Iterable[Member]) -> list[dict[str, Any]]:
    """The worker classes of living skalds, by name, and who runs each. `digest` is that of the parameters' schema, None
    when the skalds have different ones.
    """
    holders: dict[str, list[dict[str, Any]]] = {}
    for member in sorted(members, key=lambda member: member.skald_id):
        for name, digest in member.classes.items():
            there = {"skald_id": member.skald_id, "web": web_link(member.web), "digest": digest}
            holders.setdefault(name, []).append({**there, "options": member.options_of(name).to_doc()})
    docs = []
    for name, run_by in sorted(holders.items()):
        digests = {there["digest"] for there in run_by}
        docs.append({"name": name, "digest": digests.pop() if len(digests) == 1 else None, "run_by": run_by})
    return docs


def is_crash_looping(row: Row, now_ms: int) -> bool:
    """Whether it crashed again and again without a stable run since."""
    stable = row.status is Status.RUNNING and row.running_since_ms > 0 and now_ms - row.running_since_ms >= STABLE_MS
    return row.attempt >= CRASH_LOOPING_ATTEMPTS and not row.is_terminal and not stable


def since_ms(row: Row) -> int:
    """Since when the row is as it is, as far as it tells; 0 when it does not."""
    if row.status is Status.RUNNING and row.running_since_ms:
        return row.running_since_ms
    if row.status is Status.CANCELLED and row.cancel_applied_at_ms:
        return row.cancel_applied_at_ms
    return row.updated_at_ms


def task_href(task_id: str) -> str:
    """Path of the task's page on any node."""
    return "/tasks/" + quote(task_id, safe="")


def web_link(address: str) -> str | None:
    """The address when it is a plain web address: it comes from another process and becomes a link."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return None
    return address if parts.scheme in ("http", "https") and parts.hostname and not parts.username else None


def compact_json(value: Any, most: int = PARAMETERS_MAX_CHARS) -> str:
    """A JSON value on one line, cut; "" for None."""
    return "" if value is None else cut(orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode(), most)


def cut(text: str, most: int) -> str:
    """The text, its end replaced by "…" when it has more than `most` characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _error_of(refused: Any) -> Mapping[str, Any] | None:
    error = refused.get("error") if isinstance(refused, dict) else None
    return error if isinstance(error, dict) else {"message": str(error)} if error else None
