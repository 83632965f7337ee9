"""Rows without their secrets: what leaves for pages, the command line and Redis.

words: words in names of secret parameters (`settings.secret_words`); paths: the fields that a row's class declares as
secret (`Members.secret_paths`). The masking itself is `core.redact`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import Any

from skalds_streams.core.redact import MASK, cleaner, redact
from skalds_streams.core.row import Json, Row


def masked_parameters(row: Row, words: frozenset[str], paths: Collection[str] = ()) -> Any:
    """The row's attachments with secrets masked; None when it has none."""
    return redact(row.attachments, words, paths)


def text_cleaner(row: Row, words: frozenset[str], paths: Collection[str] = ()) -> Callable[[Any], Any]:
    """A function that masks secrets in any JSON value that talks about this row: an error, a note, a reason."""
    return cleaner(row.attachments, words, paths)


def masked_doc(row: Row, words: frozenset[str], paths: Collection[str] = ()) -> dict[str, Any]:
    """The row's document for people: `attachments_masked` in place of the parameters, every text cleaned."""
    clean = text_cleaner(row, words, paths)
    doc = row.public_doc()
    doc["attachments_masked"] = masked_parameters(row, words, paths)
    for name in ("error", "refused"):
        doc[name] = clean(redact(doc[name], words))
    for name in ("waiting", "why", "note"):
        doc[name] = clean(doc[name])
    return doc


def error_text(error: Json | None) -> str:
    """An error document as one sentence: "ValueError: no such camera (field url)"; "" for none. Clean it before."""
    if not error:
        return ""
    parts = [str(error[name]) for name in ("type", "message") if error.get(name)]
    field = f" (field {error['field']})" if error.get("field") else ""
    return (": ".join(parts) or "unknown error") + field


REASONS = {
    "exception": "an exception",
    "parameters": "its parameters",
    "exit_code": "its process left",
    "signal": "a signal",
    "lease": "its lease",
    "stall": "a stall",
    "memory": "out of memory",
    "node": "its node",
}


def error_reason(error: Mapping[str, Any] | None) -> str:
    """What kind of end an error document tells of, in words; "" when it does not say."""
    reason = (error or {}).get("reason")
    return REASONS.get(reason, reason) if isinstance(reason, str) else ""


def mask_schema(value: Any, words: frozenset[str]) -> Any:
    """A JSON schema without the values that it would give to secret fields (default, examples, const, enum)."""
    if isinstance(value, list):
        return [mask_schema(item, words) for item in value]
    if not isinstance(value, dict):
        return redact(value, words)
    masked: dict[str, Any] = {}
    for key, item in value.items():
        if key == "properties" and isinstance(item, dict):
            masked[key] = {name: _mask_field(name, field, words) for name, field in item.items()}
        elif key in ("default", "examples", "const"):
            masked[key] = redact(item, words)
        else:
            masked[key] = mask_schema(item, words)
    return masked


def _mask_field(name: str, field: Any, words: frozenset[str]) -> Any:
    field = mask_schema(field, words)
    if not isinstance(field, dict) or not is_secret_name(name, words):
        return field
    return {key: MASK if key in ("default", "examples", "const", "enum") else item for key, item in field.items()}


@lru_cache(maxsize=4096)
def is_secret_name(name: str, words: frozenset[str]) -> bool:
    """Whether a parameter of this name is masked whole."""
    return bool(redact({name: "value"}, words)[name] == MASK)
