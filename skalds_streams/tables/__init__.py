"""The ownership table. Reached as skalds_streams.tables; the top-level link of the same name is for readers only."""

from ..topics import POSITIONS_KEY as POSITIONS_KEY  # fails loudly when imported as a top-level package
