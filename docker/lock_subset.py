"""Prints the part of requirements/dev.lock that the image needs: same versions, same hashes, no test tools.

`lock_subset.py LOCK` prints what the project needs to run, `lock_subset.py LOCK NAME…` these packages with theirs.
It follows the lock's own "# via" comments; `pip check` on the result finds what a broken comment would lose.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

_NAME = re.compile(r"^([a-z0-9][a-z0-9._-]*)==")
_VIA = re.compile(r"^ +#(?: via)? +(.+)$")
_PROJECT = "(pyproject.toml)"
"""End of the source of a run-time dependency; a development one ends in "(pyproject.toml:dev)"."""


def subset(lock: str, roots: list[str]) -> str:
    """The blocks of the lock that `roots` need, in its order. No roots: the project. Raises KeyError."""
    blocks: dict[str, list[str]] = {}
    block: list[str] = []
    for line in lock.splitlines():
        if found := _NAME.match(line):
            block = blocks.setdefault(found[1], [])
        block.append(line)
    sources = {name: {found[1] for line in lines if (found := _VIA.match(line))} for name, lines in blocks.items()}
    wanted = {name for name, by in sources.items() if not roots and any(source.endswith(_PROJECT) for source in by)}
    for root in roots:
        if root not in blocks:
            raise KeyError(root)
        wanted.add(root)
    while more := {name for name, by in sources.items() if name not in wanted and by & wanted}:
        wanted |= more
    return "".join(f"{line}\n" for name, lines in blocks.items() if name in wanted for line in lines)


if __name__ == "__main__":
    sys.stdout.write(subset(Path(sys.argv[1]).read_text(), sys.argv[2:]))
