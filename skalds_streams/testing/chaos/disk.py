"""A small disk for each node's data directory, which a fault can fill: a tmpfs in a mount namespace of this process.

The namespace goes with the process and its children, so nothing stays mounted, however they end. It needs the right to
mount (root); where that is missing the fault is left out, and the verdict says so.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

DISK_BYTES = 64 * 1024 * 1024
BALLAST = "ballast"
_CLONE_NEWNS = 0x20000
_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18


def private_mounts() -> bool:
    """Let this process and its children have mounts of their own. Before any thread is started. False: not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0:
        return False
    return bool(libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None) == 0)


def mount(path: Path) -> bool:
    """A disk of DISK_BYTES at `path`. False: not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"size={DISK_BYTES},mode=0755".encode()
    return bool(libc.mount(b"tmpfs", str(path).encode(), b"tmpfs", 0, options) == 0)


def unmount(path: Path) -> None:
    """What is in use stays until it is not."""
    ctypes.CDLL(None).umount2(str(path).encode(), 2)


def fill(path: Path) -> None:
    """Leave no byte. Raises RuntimeError where no disk of ours is: that would be everybody's."""
    if not path.is_mount():
        raise RuntimeError(f"{path} is no disk of its own")
    with (path / BALLAST).open("ab", buffering=0) as file:
        piece = 1 << 20
        while piece:
            try:
                file.write(b"\0" * piece)
            except OSError:
                piece //= 2


def empty(path: Path) -> None:
    """Take away what `fill` brought."""
    (path / BALLAST).unlink(missing_ok=True)
