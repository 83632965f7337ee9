"""What a journal writes and others read back: rows and positions on the changelog, states on taskworker.update.

A secret never leaves in a state: parameters are masked here, once. What comes in is in `codec`.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from skalds_streams.core.redact import cleaner, redact
from skalds_streams.core.row import Row
from skalds_streams.errors import WireError


def encode_row(row: Row) -> bytes:
    """The changelog's value of a row."""
    return orjson.dumps(row.to_doc())


def decode_row(value: bytes) -> Row:
    """Raises WireError for what is no row or a newer format."""
    try:
        return Row.from_doc(orjson.loads(value))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise WireError(f"not an ownership row: {error}") from None


@dataclass(frozen=True, slots=True)
class Positions:
    """How far a partition's inputs are applied, and what was ever used there.

    `offsets`: topic → last applied offset; `partitions`: how many there were when this was written, 0 for not known.
    """

    offsets: Mapping[str, int]
    epoch_floor: int = 0
    revision_floor: int = 0
    partitions: int = 0


def encode_positions(positions: Positions) -> bytes:
    """The changelog's value under POSITIONS_KEY."""
    return orjson.dumps(
        {
            "v": 1,
            "positions": dict(positions.offsets),
            "epoch_floor": positions.epoch_floor,
            "revision_floor": positions.revision_floor,
            "partitions": positions.partitions,
        }
    )


def decode_positions(value: bytes) -> Positions:
    """Raises WireError."""
    try:
        doc = orjson.loads(value)
        if doc["v"] > 1:
            raise WireError(f"positions of format {doc['v']} are newer than 1")
        return Positions(
            {str(k): int(v) for k, v in doc["positions"].items()},
            doc["epoch_floor"],
            doc["revision_floor"],
            doc.get("partitions", 0),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise WireError(f"not a positions record: {error}") from None


def history_doc(
    row: Row, *, words: Collection[str], paths: Collection[str] = (), digest_key: bytes, members_offset: int = -1
) -> dict[str, Any]:
    """The row as the world may see it. words, paths: what is secret (`core.redact`).

    Parameters are masked, with a keyed digest so that replay can compare what it may not read.
    """
    doc = row.public_doc()
    doc["attachments_masked"] = redact(row.attachments, words, paths)
    doc["attachments_digest"] = digest(row.attachments, digest_key)
    if doc["error"] or doc["refused"] or doc["why"]["reason"]:
        clean = cleaner(row.attachments, words, paths)
        doc["error"] = clean(redact(doc["error"], words))
        doc["refused"] = clean(redact(doc["refused"], words))
        doc["why"]["reason"] = clean(doc["why"]["reason"])
    doc["members_offset"] = members_offset
    return doc


def digest(value: Any, key: bytes) -> str | None:
    """Keyed digest of a JSON value, 32 hex digits; None for None."""
    if value is None:
        return None
    return hmac.new(key, orjson.dumps(value, option=orjson.OPT_SORT_KEYS), hashlib.sha256).hexdigest()[:32]
