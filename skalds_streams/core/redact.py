"""Masking of secrets in parameters and texts before they leave a worker's host:

listed words in names, userinfo in URLs.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

MASK = "***"
_USERINFO = re.compile(r"([a-zA-Z][a-zA-Z0-9+.\-]*://)[^/\s@\"']+@")


def redact(value: Any, words: Collection[str]) -> Any:
    """A copy of a JSON value with secrets masked.

    words: lower-case words; a field whose name contains one (case and underscores ignored) is masked whole, whatever
    it holds.
    """
    if isinstance(value, dict):
        return {
            key: MASK if _names_secret(str(key), words) and item not in (None, "") else redact(item, words)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact(item, words) for item in value]
    if isinstance(value, str):
        return redact_text(value)
    return value


def redact_text(text: str) -> str:
    """`text` with the userinfo of every URL in it masked."""
    return _USERINFO.sub(rf"\1{MASK}@", text) if "://" in text else text


def _names_secret(name: str, words: Collection[str]) -> bool:
    plain = name.lower().replace("_", "").replace("-", "")
    return any(word.replace("_", "") in plain for word in words)
