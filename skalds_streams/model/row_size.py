"""How large a row can become, and that its record always takes it: the arithmetic, once.

Every field of a row has a bound, and their sum fits into a record of the changelog and, masked, into one of
taskworker.update. So no report is ever lost because the row of its task has no room for it: a crash with its traceback
fits in when everything else is as large as it can be.

Whatever sends more is refused before it is in a row: parameters above `attachments_bytes`, also those that a merged
update would make (`specs.check_merged`), documents by `specs.check_spec`. What a run says of itself is cut instead, as
its end must never go unheard (`codec`); so are reasons why a task waits (`core.placement`). With the largest
`attachments_bytes` that settings allow (4 MiB) and 1,000 partitions a row has 8.4 MB of parameters and up to 1.8 MB of
all else, its masked document in the history up to 14.7 MB, and a record takes 16.8 MB.
"""

from __future__ import annotations

from collections.abc import Mapping

from skalds_streams.core.control import KINDS
from skalds_streams.core.options import LABEL_MAX_CHARS, LABELS_MOST
from skalds_streams.core.placement import REASON_MAX_CHARS, REASONS_MOST
from skalds_streams.core.row import NAME_MAX_CHARS
from skalds_streams.core.unanswered import UNANSWERED_CHARS, UNANSWERED_MOST
from skalds_streams.model.codec import MAX_ERROR_BYTES, MAX_STEPS, MAX_TASK_ID_BYTES, MAX_TEXT

CHAR_BYTES = 6
"""Most bytes of a character in JSON: a control character as \\u0001. Others have up to 4 in UTF-8."""
REPR_BYTES = 4
"""Most bytes in JSON for a character of what `repr` writes of a value."""
NUMBER_BYTES = 20
WORD_BYTES = 16
"""A status, what is wanted, true, null."""
TOPIC_BYTES = 96
"""A prefix of 64 characters and the name of an input."""
FIELD_BYTES = 32
"""The name of a field, with what stands around it."""
MASK_GROWTH = 3
"""Times that masking can make JSON longer: of a list of digits, "1," becomes "\\"***\\",". A secret that is looked for
in texts is longer than its mask, and the user of a URL grows by 4/3 at most."""
ENVELOPE_BYTES = 8_192
"""What a record has beside its value: its key, and what a batch and its transaction add."""


def field_bytes_most(attachments_bytes: int, partitions: int) -> Mapping[str, int]:
    """Field of a row's document → the most bytes of its value as JSON.

    attachments_bytes: the limit of parameters, as JSON; partitions: of each topic.
    """
    name, number, word = _text(NAME_MAX_CHARS), NUMBER_BYTES, WORD_BYTES
    label = 2 * _text(LABEL_MAX_CHARS) + 2
    error = MAX_ERROR_BYTES + FIELD_BYTES
    waiting = (REASONS_MOST + 1) * (name + _text(REASON_MAX_CHARS) + 2)
    under_way = max(attachments_bytes, REPR_BYTES * UNANSWERED_CHARS) + (UNANSWERED_MOST + 1) * FIELD_BYTES
    place = TOPIC_BYTES + 3 * number + 3 * FIELD_BYTES
    control = place + 3 * (number + FIELD_BYTES) + place + 3 * (word + FIELD_BYTES)
    kept = {
        "task_id": _text(MAX_TASK_ID_BYTES),
        "class_name": name,
        "recipient": name,
        "requires": LABELS_MOST * label + 2,
        "of_class": 4 * (number + FIELD_BYTES),
        "holder": 2 * name + 2 * number + 4 * FIELD_BYTES,
        "attachments": max(attachments_bytes, word),
        "unanswered": under_way + 2,
        "refused": error + 2 * (number + FIELD_BYTES),
        "last_skald": name,
        "move_to": name,
        "moved_from": name,
        "error": error,
        "waiting": waiting,
        "controls": KINDS * (control + FIELD_BYTES) + 2,
        "forwarded": 3 * partitions * (TOPIC_BYTES + number + 2) + 2,
        "why": _text(MAX_TEXT) + TOPIC_BYTES + word + 3 * number + 6 * FIELD_BYTES,
        "note": _text(MAX_STEPS * (MAX_TEXT + 2)),
    }
    words = dict.fromkeys(("wanted", "status", "release"), word)
    return {**kept, **words, **dict.fromkeys(_NUMBERS, number)}


def row_bytes_most(attachments_bytes: int, partitions: int) -> int:
    """The most bytes of a row on the changelog."""
    return sum(size + FIELD_BYTES for size in field_bytes_most(attachments_bytes, partitions).values())


def history_bytes_most(attachments_bytes: int, partitions: int) -> int:
    """The most bytes of a row's record on taskworker.update, masked."""
    fields = field_bytes_most(attachments_bytes, partitions)
    masked = sum(fields[name] for name in ("attachments", "error", "refused", "why"))
    rest = row_bytes_most(attachments_bytes, partitions) - masked - fields["unanswered"]
    return MASK_GROWTH * masked + rest + 3 * FIELD_BYTES + 2 * NUMBER_BYTES


def _text(chars: int) -> int:
    return chars * CHAR_BYTES + 2


_NUMBERS = (
    "v",
    "weight",
    "priority",
    "max_restarts",
    "epoch",
    "first_epoch",
    "revision",
    "attachments_version",
    "applied_version",
    "applied_at_ms",
    "assign_at_ms",
    "cancel_at_ms",
    "update_at_ms",
    "cancel_applied_at_ms",
    "attempt",
    "retry_at_ms",
    "deadline_at_ms",
    "running_since_ms",
    "updated_at_ms",
)
