"""How a bug is planted: a context manager that exchanges a piece of the product, entered in `PLANTED` by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Planted = Callable[[], AbstractContextManager[None]]
PLANTED: dict[str, Planted] = {}


def planted(function: Callable[[], Iterator[None]]) -> Planted:
    made = contextmanager(function)
    PLANTED[function.__name__] = made
    return made
