"""The memory that a class allows its workers: `memory_max`, kept by the kernel as RLIMIT_DATA of the host.

RLIMIT_DATA counts private writable memory, which is what programs mean by theirs. RLIMIT_AS counts address space: the
files that a library maps, and the hundreds of GB that CUDA and sanitizers reserve and never touch. Up to RESERVE_BYTES
above the limit are for saying that it was reached.
"""

from __future__ import annotations

import re
import resource
from contextlib import suppress
from pathlib import Path

RESERVE_BYTES = 16 << 20
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_size(value: object) -> int | None:
    """Bytes, from a number of them or a text like "512M" (K, M, G, T: powers of 1024). None: neither, or nothing."""
    if isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        size = int(float(match[1]) * 1024 ** _POWERS[match[2].upper()])
    elif isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        return None
    return size if size > 0 else None


def size_text(size: int) -> str:
    """For people: "512 MiB"."""
    for unit, power in (("GiB", 3), ("MiB", 2)):
        if size >= 1024**power:
            return f"{size / 1024**power:.4g} {unit}"
    return f"{size // 1024} KiB"


def used_bytes() -> int:
    """What the limit counts of this process; 0 when the kernel does not say."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    return 0


def limit(size: int) -> None:
    """Let this process and those that it starts have no more than `size` bytes each."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = size + RESERVE_BYTES
    if hard != resource.RLIM_INFINITY:
        size, most = min(size, hard), min(most, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (size, most))


def use_reserve() -> None:
    """The limit was reached: take what is needed to say so."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
