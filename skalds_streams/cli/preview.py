"""Bytes from elsewhere for a person's eyes: JSON with its secrets masked, anything else as a hex dump of its beginning.

What is no JSON has no field names to go by, so `starred` looks for what reads like `name: value` and stars out the
values of secret names; it rather hides too much than too little.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import orjson

from skalds_streams.core.redact import redact
from skalds_streams.projections.masking import is_secret_name

HEX_BYTES = 256
HEX_WIDTH = 16
JSON_CHARS = 64 * 1024
LOOK_BEHIND_BYTES = 4_096

_NAME = re.compile(r"""(?<![\w\-])([\w\-]++)[\\"'\s]*[:=]\s*""")
"""A name, and what may stand between it and its value."""
_VALUE = re.compile(
    r"""\\+"(?:(?!\\+").)*    # a string inside of a string, an open one to the end
      | "(?:\\.|[^"\\])*
      | '(?:\\.|[^'\\])*
      | [\[{].*               # an object or a list: where it ends nobody knows
      | [^\s,&;}\]]+""",
    re.VERBOSE | re.DOTALL,
)
_USERINFO = re.compile(r"://([^/\s@\"']+)@")


def preview(value: bytes | None, words: frozenset[str]) -> tuple[str, list[str]]:
    """(what it is, lines). words: of names whose values are secret."""
    if value is None:
        return "no value", []
    if not value:
        return "an empty value", []
    try:
        doc = orjson.loads(value)
    except orjson.JSONDecodeError:
        shown = value[:HEX_BYTES]
        part = f"the first {len(shown)} of {len(value):,} bytes" if len(shown) < len(value) else f"{len(value)} bytes"
        return f"no JSON, {part}", list(hex_lines(starred(value[: HEX_BYTES + LOOK_BEHIND_BYTES], words)[:HEX_BYTES]))
    text = orjson.dumps(redact(doc, words), option=orjson.OPT_INDENT_2).decode()
    if len(text) > JSON_CHARS:
        return f"JSON, secrets masked, cut to {JSON_CHARS:,} characters", [*text[:JSON_CHARS].splitlines(), "…"]
    return "JSON, secrets masked", text.splitlines()


def starred(value: bytes, words: frozenset[str]) -> bytes:
    """The bytes, as many, with `*` for each byte of what looks like a secret."""
    text = value.decode("latin-1")
    text = _USERINFO.sub(lambda found: "://" + "*" * len(found[1]) + "@", text)
    at = 0
    while (named := _NAME.search(text, at)) is not None:
        at = named.end()
        value_found = _VALUE.match(text, at) if is_secret_name(named[1], words) else None
        if value_found is not None:
            text = text[:at] + "*" * len(value_found[0]) + text[value_found.end() :]
            at = value_found.end()
    return text.encode("latin-1")


def hex_lines(value: bytes) -> Iterator[str]:
    """Offset, 16 bytes in hex, the same as text."""
    for at in range(0, len(value), HEX_WIDTH):
        piece = value[at : at + HEX_WIDTH]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in piece)
        yield f"{at:08x}  {piece.hex(' '):<{HEX_WIDTH * 3}} {text}"
