"""Where two JSON documents differ, and what of it may be shown. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from skalds_streams.coordinator.batch import Secrecy
from skalds_streams.core.redact import MASK, redact
from skalds_streams.core.row import Row
from skalds_streams.model.documents import digest, history_doc
from skalds_streams.replay.recording import Entry

QUIET_FIELDS = frozenset(
    {"v", "task_id", "revision", "why", "updated_at_ms", "members_offset", "attachments_digest", "forwarded"}
)
"""Fields that say nothing to people; left out where a change is shown, never where rows are compared."""


@dataclass(frozen=True, slots=True)
class Change:
    """One field of a document, before and after. `field` is a path such as "holder.epoch"."""

    field: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class Difference:
    """One field that is not what the inputs lead to. Secrets are masked."""

    field: str
    rebuilt: Any
    recorded: Any


def plain(doc: Any) -> Any:
    """The document as it would be read back from the wire."""
    return orjson.loads(orjson.dumps(doc))


def changes(before: Any, after: Any, path: str = "") -> Iterator[Change]:
    """The fields that differ, objects taken apart. A field that is missing counts as null."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in dict.fromkeys((*before, *after)):
            yield from changes(before.get(key), after.get(key), f"{path}.{key}" if path else str(key))
    elif type(before) is not type(after) or before != after:
        yield Change(path, before, after)


def shown_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """What an event changed, for people: from documents of rows whose secrets are masked, without QUIET_FIELDS."""
    return [
        change for name in after if name not in QUIET_FIELDS for change in changes(before.get(name), after[name], name)
    ]


def history_differences(
    row: Row, members_offset: int, entry: Entry, secrecy: Secrecy, *, parameters: bool
) -> list[Difference]:
    """Rebuilt row against a history record. parameters=False: they are not known and not compared."""
    doc = history_doc(row, words=secrecy.words, digest_key=secrecy.digest_key, members_offset=members_offset)
    recorded = entry.to_doc()
    if not parameters:
        for name in ("attachments_masked", "attachments_digest"):
            doc[name] = recorded[name]
    if _same(doc, recorded):
        return []
    found = changes(plain(doc), plain(recorded))
    return [Difference(item.field, item.before, item.after) for item in found if not hides(item.after, item.before)]


def table_differences(
    row: Row, live: Row, secrecy: Secrecy, *, digest_known: str | None, parameters: bool, under_way: bool
) -> list[Difference]:
    """Rebuilt row against the live one. parameters=False: only their digest, `digest_known`, is compared.
    under_way=False: which updates are under way is not known.
    """
    rebuilt, recorded = plain(row.to_doc()), plain(live.to_doc())
    for doc in (rebuilt, recorded):
        # Which versions are under way. What each holds was compared when it was what is wanted.
        doc["unanswered"] = sorted(doc["unanswered"])
    if not parameters:
        for doc in (rebuilt, recorded):
            del doc["attachments"]
        rebuilt["attachments_digest"] = digest_known
        recorded["attachments_digest"] = digest(live.attachments, secrecy.digest_key)
    if not (parameters and under_way):
        for doc in (rebuilt, recorded):
            del doc["unanswered"]
    found = changes(rebuilt, recorded)
    masked_rebuilt, masked_recorded = redact(rebuilt, secrecy.words), redact(recorded, secrecy.words)
    return [
        Difference(item.field, _at(masked_rebuilt, item), _at(masked_recorded, item))
        for item in found
        if item.field.startswith("attachments") or not hides(item.before, item.after)
    ]


def hides(masked: Any, value: Any) -> bool:
    """Whether `masked` is `value` with secrets masked in it. Who wrote it may have known of more secrets than we do."""
    if masked == MASK:
        return True
    if isinstance(masked, str) and isinstance(value, str):
        pieces = [re.escape(piece) for piece in masked.split(MASK)]
        return re.fullmatch(".*".join(pieces), value, re.DOTALL) is not None
    if isinstance(masked, list) and isinstance(value, list):
        return len(masked) == len(value) and all(map(hides, masked, value))
    return type(masked) is type(value) and bool(masked == value)


def _same(doc: Any, other: Any) -> bool:
    """Whether both are the same on the wire: what `changes` finds, many times faster when there is nothing to find."""
    return orjson.dumps(doc, option=orjson.OPT_SORT_KEYS) == orjson.dumps(other, option=orjson.OPT_SORT_KEYS)


def _at(doc: Any, change: Change) -> Any:
    """The masked value at a change's path; a path below something masked ends at the mask."""
    rest = change.field
    while rest and isinstance(doc, dict):
        key = max((name for name in doc if rest == name or rest.startswith(f"{name}.")), key=len, default=None)
        if key is None:
            return None
        doc, rest = doc[key], rest[len(key) + 1 :]
    return doc
