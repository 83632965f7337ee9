"""Rows without their secrets: parameters masked by name, and texts (errors, notes, reasons) cleaned of the values
that were masked.

A user's exception likes to quote what it was given: `core.redact` masks names and URLs, this also takes the masked
values out of the texts of the same row. What lives elsewhere: which names are secret (`settings.secret_words`) and
the masking of names itself (`core.redact`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from skalds_streams.core.redact import MASK, redact, redact_text
from skalds_streams.core.row import Json, Row

SECRET_MIN_CHARS = 4
"""Shorter secret values are left in texts: masking every "1" would tell nothing and spoil the text."""
_PASSWORD_IN_URL = re.compile(r"://[^/\s@\"':]*:([^/\s@\"']+)@")


def masked_parameters(row: Row, words: frozenset[str]) -> Any:
    """The row's attachments with secrets masked; None when it has none."""
    return redact(row.attachments, words)


def text_cleaner(row: Row, words: frozenset[str]) -> Callable[[Any], Any]:
    """A function that masks secrets in any JSON value that talks about this row: an error, a note, a reason."""
    values = sorted(set(_secret_values(row.attachments, words)), key=len, reverse=True)

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            text = redact_text(value)
            for secret in values:
                text = text.replace(secret, MASK)
            return text
        if isinstance(value, dict):
            return {key: clean(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [clean(item) for item in value]
        return value

    return clean


def error_text(error: Json | None) -> str:
    """An error document as one sentence: "ValueError: no such camera (field url)"; "" for none. Clean it before."""
    if not error:
        return ""
    parts = [str(error[name]) for name in ("type", "message") if error.get(name)]
    field = f" (field {error['field']})" if error.get("field") else ""
    return (": ".join(parts) or "unknown error") + field


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


def _secret_values(value: Any, words: frozenset[str], *, inside: bool = False) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _secret_values(item, words, inside=inside or is_secret_name(str(key), words))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _secret_values(item, words, inside=inside)
    elif isinstance(value, str):
        yield from (found for found in _PASSWORD_IN_URL.findall(value) if len(found) >= SECRET_MIN_CHARS)
        if inside and len(value) >= SECRET_MIN_CHARS:
            yield value
    elif (
        inside
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and len(str(value)) >= SECRET_MIN_CHARS
    ):
        yield str(value)
