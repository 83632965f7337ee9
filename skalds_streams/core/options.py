"""What a worker class asks of placement and of the restart policy: the default where a task's document says nothing.

Rules: a skald describes its classes in its heartbeats, and is judged by its own description, so that two versions of a
class can be in the cluster at a time; what a run was placed with (`of_run`) is kept in its row and decides what becomes
of its crash, so a decision rests on the row alone and can be replayed without the heartbeats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from skalds_streams.core.row import Json

LABELS_MOST = 64
LABEL_MAX_CHARS = 512
"""Of its name, and of its value."""
WEIGHT_MOST = 10_000
"""The largest capacity that a skald can have."""
RESTARTS_MOST = 2**53
BACKOFF_FIRST_MS = 1_000
BACKOFF_MOST_MS = 60_000
PAUSE_LEAST_MS = 100
PAUSE_MOST_MS = 24 * 3600 * 1000
"""Bounds of a back-off's pauses."""


@dataclass(frozen=True, slots=True)
class ClassOptions:
    """The options of one class as one skald describes it. `max_restarts` None: for ever."""

    requires: Mapping[str, str] = field(default_factory=dict)
    """Labels that a skald must have."""
    weight: int = 1
    """Units of a skald's capacity."""
    max_restarts: int | None = None
    backoff_first_ms: int = BACKOFF_FIRST_MS
    backoff_most_ms: int = BACKOFF_MOST_MS

    def to_doc(self) -> dict[str, Any]:
        """What is not the default, as JSON. Inverse of `from_doc`."""
        doc: dict[str, Any] = {}
        if self.requires:
            doc["requires"] = dict(self.requires)
        for name in _NUMBERS:
            value = getattr(self, name)
            if value != getattr(DEFAULT, name):
                doc[name] = value
        return doc

    @property
    def of_run(self) -> dict[str, Any] | None:
        """What the row keeps while a run is placed: not the labels, which matter before it only. None: the default."""
        doc = self.to_doc()
        doc.pop("requires", None)
        return doc or None

    @classmethod
    def from_doc(cls, doc: object) -> ClassOptions:
        """Read a description; fields that are not known are left alone. Raises ValueError."""
        if not isinstance(doc, Mapping):
            raise ValueError("options must be an object")  # noqa: TRY004  # as for all that a heartbeat says wrongly
        options = cls(**{name: doc[name] for name in ("requires", *_NUMBERS) if name in doc})
        wrong = options.problem
        if wrong is not None:
            raise ValueError(f"options: {wrong[0]}: {wrong[1]}")
        return options

    @property
    def problem(self) -> tuple[str, str] | None:
        """(the option that can't be as it is, what it must be); None when all can."""
        if not are_labels(self.requires):
            bounds = f"at most {LABELS_MOST}, with texts of at most {LABEL_MAX_CHARS} characters"
            return "requires", f'it must be a dict of labels such as {{"gpu": "yes"}}, {bounds}'
        if not _is_within(self.weight, 1, WEIGHT_MOST):
            return "weight", f"it must be a whole number from 1 to {WEIGHT_MOST}"
        if self.max_restarts is not None and not _is_within(self.max_restarts, 0, RESTARTS_MOST):
            return "max_restarts", "it must be a whole number, 0 or more, or None for no limit"
        first, most = self.backoff_first_ms, self.backoff_most_ms
        if not _is_within(first, PAUSE_LEAST_MS, PAUSE_MOST_MS) or not _is_within(most, first, PAUSE_MOST_MS):
            least_s, most_s = PAUSE_LEAST_MS / 1000, PAUSE_MOST_MS // 1000
            return "backoff", f"its first pause must be {least_s:g} s or more, its longest no shorter, up to {most_s} s"
        return None


_NUMBERS = ("weight", "max_restarts", "backoff_first_ms", "backoff_most_ms")
DEFAULT = ClassOptions()
"""Of a class that says nothing, and of a skald that describes no options."""


def are_labels(value: object) -> bool:
    """Whether it maps texts to texts, within the bounds."""
    return (
        isinstance(value, Mapping)
        and len(value) <= LABELS_MOST
        and all(isinstance(text, str) and len(text) <= LABEL_MAX_CHARS for pair in value.items() for text in pair)
    )


def _is_within(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def of_class(json: Json | None) -> ClassOptions:
    """The options that a row keeps of its last run's class. They were checked before they came there."""
    return ClassOptions(**{name: json[name] for name in _NUMBERS if name in json}) if json else DEFAULT
