"""Fuzz the wire parser with libFuzzer: `python -m tests.fuzz [libFuzzer's options] [corpus folders]`.

What raises is kept as tests/histories/fuzz-*.bin and played by the property tests from then on. Without a folder the
corpus grows in build/fuzz, so that the next run goes on where this one ended.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from pathlib import Path
from typing import Any

import atheris
import orjson

with atheris.instrument_imports(include=["skalds_streams"]):
    from tests.fuzz.wire import MOST_BYTES, check
    from tests.property.world import JUNK, paths

HERE = Path(__file__).parent
HISTORIES = HERE.parent / "histories"
CORPUS = HERE.parents[1] / "build" / "fuzz"
HANGS_S = 20


def check_and_keep(data: bytes) -> None:
    """One try. What raises is kept before the process ends."""
    try:
        check(data)
    except BaseException:
        HISTORIES.mkdir(exist_ok=True)
        path = HISTORIES / f"fuzz-{hashlib.sha256(data).hexdigest()[:12]}.bin"
        path.write_bytes(data)
        print(f"kept as {path}", file=sys.stderr)
        raise


def mutated(data: bytes, most: int, seed: int) -> bytes:
    """Another input: by libFuzzer's mutations of bytes, or with one value of its document replaced."""
    dice = random.Random(seed)
    if dice.random() < 0.4:
        return bytes(atheris.Mutate(data, most))
    try:
        doc = orjson.loads(data[2:])
    except orjson.JSONDecodeError:
        return bytes(atheris.Mutate(data, most))
    places = paths(doc)
    if not places:
        return bytes(atheris.Mutate(data, most))
    head = data[:2] if dice.random() < 0.5 else bytes([data[0], dice.randrange(256)])
    try:
        _change(doc, places, dice)
        changed = head + json.dumps(doc, separators=(",", ":")).encode()
    except (RecursionError, orjson.JSONEncodeError):  # nested deeper than either writes
        return bytes(atheris.Mutate(data, most))
    return changed if len(changed) <= most else bytes(atheris.Mutate(data, most))


def _change(doc: Any, places: list[tuple[Any, ...]], dice: random.Random) -> None:
    """Replace, remove, or copy one value of a JSON document."""
    *way, last = dice.choice(places)
    inner = doc
    for step in way:
        inner = inner[step]
    what = dice.random()
    if what < 0.5:
        inner[last] = dice.choice(JUNK)
    elif what < 0.7 and isinstance(inner, dict):
        del inner[last]
    elif what < 0.85:
        value = doc
        for step in dice.choice(places):
            value = value[step]
        inner[last] = orjson.loads(orjson.dumps(value))
    else:
        inner[last] = dice.choice((1, 2, 40, -1, "a1", "task_123", "t", True))


def main() -> None:
    """Run until the options say so, or until something raises."""
    options = [f"-dict={HERE / 'wire.dict'}", f"-max_len={MOST_BYTES}", f"-timeout={HANGS_S}", "-print_final_stats=1"]
    given = sys.argv[1:]
    CORPUS.mkdir(parents=True, exist_ok=True)
    options.append(f"-artifact_prefix={CORPUS.parent}/")
    folders = [] if any(not item.startswith("-") for item in given) else [str(CORPUS)]
    atheris.Setup(
        [sys.argv[0], *options, *given, *folders, str(HERE / "seeds")], check_and_keep, custom_mutator=mutated
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
