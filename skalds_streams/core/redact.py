"""Masking of secrets in parameters and texts before they leave a worker's host: listed words in names, fields that a
class declares as secret, userinfo in URLs, and the values of all of these wherever a text quotes them.

A reference to a secret (`core.references`) is no secret, and stays.

A *path* names a field that a class declares as secret: names joined by dots, `*` for every element of a list or object
("login.pin", "cameras.*.key").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from typing import Any

from skalds_streams.core.references import is_reference

MASK = "***"
EVERYTHING = ("*",)
"""The paths of a class that nobody has described yet: any parameter may be a secret."""
SECRET_MIN_CHARS = 4
"""Shorter secret values are left in texts: masking every "1" would tell nothing and spoil the text."""
_USERINFO = re.compile(r"([a-zA-Z][a-zA-Z0-9+.\-]*://)[^/\s@\"']+@")
_PASSWORD_IN_URL = re.compile(r"://[^/\s@\"':]*:([^/\s@\"']+)@")


def redact(value: Any, words: Collection[str], paths: Collection[str] = ()) -> Any:
    """A copy of a JSON value with secrets masked.

    words: lower-case words; a field whose name contains one (case and underscores ignored) is masked whole, whatever
    it holds. paths: see the module.
    """
    masked = _redact(value, words)
    for path in paths:
        masked = _mask_at(masked, path.split("."))
    return masked


def redact_text(text: str) -> str:
    """`text` with the userinfo of every URL in it masked."""
    return _USERINFO.sub(rf"\1{MASK}@", text) if "://" in text else text


def cleaner(parameters: Any, words: Collection[str], paths: Collection[str] = ()) -> Callable[[Any], Any]:
    """A function that masks secrets in any JSON value that talks about a task with these parameters: an error, a note.

    A user's exception likes to quote what it was given, so the secret values themselves are looked for.
    """
    hide = hider(secret_values(parameters, words, paths))

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            return hide(value)
        if isinstance(value, dict):
            return {key: clean(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [clean(item) for item in value]
        return value

    return clean


def secret_values(parameters: Any, words: Collection[str], paths: Collection[str] = ()) -> frozenset[str]:
    """The texts that masking these parameters hides, each at least SECRET_MIN_CHARS long."""
    return frozenset(_secret_values(parameters, redact(parameters, words, paths)))


def hider(values: Collection[str]) -> Callable[[str], str]:
    """A function that masks in a text these values, also as `repr` spells them, and the userinfo of URLs."""
    spelled = {spelling for value in values for spelling in (value, repr(value)[1:-1])}
    longest_first = sorted(spelled, key=len, reverse=True)

    def hide(text: str) -> str:
        text = redact_text(text)
        for secret in longest_first:
            text = text.replace(secret, MASK)
        return text

    return hide


def _redact(value: Any, words: Collection[str]) -> Any:
    if isinstance(value, dict):
        return {
            key: MASK
            if _names_secret(str(key), words) and item not in (None, "") and not is_reference(item)
            else _redact(item, words)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_redact(item, words) for item in value]
    if isinstance(value, str):
        return redact_text(value)
    return value


def _names_secret(name: str, words: Collection[str]) -> bool:
    plain = name.lower().replace("_", "").replace("-", "")
    return any(word.replace("_", "") in plain for word in words)


def _mask_at(value: Any, names: list[str]) -> Any:
    """Mask what is at a path. In a document of another shape than its class wants more is masked, not less."""
    if value in (None, "") or is_reference(value):
        return value
    if not names:
        return MASK
    name, rest = names[0], names[1:]
    if isinstance(value, dict):
        return {key: _mask_at(item, rest) if name in ("*", key) else item for key, item in value.items()}
    if isinstance(value, list):
        return [_mask_at(item, rest if name == "*" else names) for item in value]
    return MASK


def _secret_values(value: Any, masked: Any) -> Iterator[str]:
    """What a mask hides, and the passwords in URLs: each long enough to be looked for."""
    if masked == MASK and value != MASK:
        yield from _texts(value)
    elif isinstance(value, dict) and isinstance(masked, dict):
        for key, item in value.items():
            yield from _secret_values(item, masked[key])
    elif isinstance(value, list | tuple) and isinstance(masked, list):
        for item, hidden in zip(value, masked, strict=True):
            yield from _secret_values(item, hidden)
    elif isinstance(value, str):
        yield from (found for found in _PASSWORD_IN_URL.findall(value) if len(found) >= SECRET_MIN_CHARS)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
    elif isinstance(value, str | int | float) and not isinstance(value, bool) and len(str(value)) >= SECRET_MIN_CHARS:
        yield str(value)
        if isinstance(value, str):
            yield from (found for found in _PASSWORD_IN_URL.findall(value) if len(found) >= SECRET_MIN_CHARS)
