"""The options of a class that decide where it runs and how it is tried again: as users write them, and checked.

They are the defaults of its tasks, used by coordinators (`core.options`); what limits a run is in `registry`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from skalds_streams.core.options import ClassOptions, are_labels

if TYPE_CHECKING:
    from skalds_streams.worker.baseclass import BaseTaskWorker


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses before a run that crashed is tried again, in seconds: the first, then doubled each time up to the longest.

    `Backoff(5, 600)`: 5 s, 10 s, 20 s … 10 min. A minute without a crash begins again with the first.
    """

    first_s: float = 1.0
    longest_s: float = 60.0


class WrongOptionError(ValueError):
    """An option that can't be; the text names it, its value, and what it must be."""


def policy_of(worker_type: type[BaseTaskWorker[Any]]) -> ClassOptions:
    """The options of a class. Raises WrongOptionError."""
    name, backoff = worker_type.__name__, worker_type.backoff
    if not isinstance(backoff, Backoff):
        raise WrongOptionError(f"{name}.backoff is {backoff!r}: it must be a Backoff, such as Backoff(5, 600)")
    if not _is_number(backoff.first_s) or not _is_number(backoff.longest_s):
        raise WrongOptionError(f"{name}.backoff is {backoff!r}: its pauses must be numbers of seconds")
    options = ClassOptions(
        requires=dict(worker_type.requires) if are_labels(worker_type.requires) else worker_type.requires,
        weight=worker_type.weight,
        max_restarts=worker_type.max_restarts,
        backoff_first_ms=round(backoff.first_s * 1000),
        backoff_most_ms=round(backoff.longest_s * 1000),
    )
    wrong = options.problem
    if wrong is not None:
        field, what = wrong
        raise WrongOptionError(f"{name}.{field} is {getattr(worker_type, field)!r}: {what}")
    return options


def _is_number(value: object) -> bool:
    """A finite one that fits into milliseconds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9
