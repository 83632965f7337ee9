"""What a worker saves: checked and turned into text at once, so that it may go on changing what it has saved.

Sending it, at most once a second, is the host's (`host`, `shared`); which of several states counts is `model.saved`'s.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from typing import Any

from pydantic import BaseModel

STATE_MAX_BYTES = 64 * 1024
"""Most bytes of a saved state, as JSON in UTF-8."""
SAVE_EVERY_S = 1.0
"""Time between two states that are sent of what a worker saves."""


class Saving:
    """What `save` returns: nothing to wait for, but `async` methods may say `await`, and let others run meanwhile."""

    __slots__ = ()

    def __await__(self) -> Generator[None, None, None]:
        yield


def encode_state(state: Mapping[str, Any] | BaseModel) -> str:
    """The state as JSON text; a model's fields by alias, as its `model_validate` takes them.

    Raises TypeError for what is no JSON object, ValueError for one of more than STATE_MAX_BYTES, both in words.
    """
    found = state.model_dump(mode="json", by_alias=True) if isinstance(state, BaseModel) else state
    if not isinstance(found, dict):
        raise TypeError(f"a state is a dict or a pydantic model that dumps to one, not {type(state).__name__}")
    _check_keys(found, "state")
    try:
        text = json.dumps(found, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ValueError("the state has text that is not Unicode (half of a surrogate pair)") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"the state can't be written as JSON: {error}") from None
    if size > STATE_MAX_BYTES:
        raise ValueError(
            f"the state has {size} bytes as JSON, the limit is {STATE_MAX_BYTES}: keep large things elsewhere, and save"
            " where they are"
        )
    return text


def decode_state(text: str) -> dict[str, Any]:
    """The state that was saved. Raises ValueError for what is no JSON, TypeError for what is no object."""
    found = json.loads(text)
    if not isinstance(found, dict):
        raise TypeError(f"not a JSON object but {type(found).__name__}")
    return found


def _check_keys(value: Any, path: str) -> None:
    """JSON has text as keys only; others would come back as text, and not be found again."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{path} has the key {key!r}: the keys of a state are text")
            if isinstance(item, dict | list | tuple):
                _check_keys(item, f"{path}[{key!r}]")
    elif isinstance(value, list | tuple):
        for at, item in enumerate(value):
            if isinstance(item, dict | list | tuple):
                _check_keys(item, f"{path}[{at}]")
