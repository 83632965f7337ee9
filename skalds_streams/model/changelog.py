"""What the ownership changelog adds up to: one function applies a record, whoever reads it (recovery, view, replay)."""

from __future__ import annotations

from dataclasses import dataclass, field

from skalds_streams.core.invariants import check_row
from skalds_streams.core.row import Row
from skalds_streams.errors import WireError
from skalds_streams.model.documents import Positions, decode_positions, decode_row
from skalds_streams.topics import POSITIONS_KEY


@dataclass(slots=True)
class ChangelogState:
    """Rows by task id, and positions by partition."""

    rows: dict[str, Row] = field(default_factory=dict)
    positions: dict[int, Positions] = field(default_factory=dict)

    def apply(self, partition: int, key: bytes | None, value: bytes | None) -> str | None:
        """Apply one record. Returns the id of the task that changed, None for positions.

        Raises WireError, InvariantError.
        """
        if key is None:
            return None
        if key == POSITIONS_KEY:
            if value is not None:
                self.positions[partition] = decode_positions(value)
            return None
        try:
            task_id = key.decode()
        except UnicodeDecodeError:
            raise WireError("a changelog key that is not UTF-8") from None
        if value is None:
            self.rows.pop(task_id, None)
            return task_id
        row = decode_row(value)
        check_row(row)
        self.rows[task_id] = row
        return task_id
