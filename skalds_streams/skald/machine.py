"""Which machine this is, for one question: may the holder of a lock say that the lock's former owner has ended?

A lock (flock) is kept by one kernel. It proves that a predecessor and its workers are gone only if they ran under this
kernel, or under one that has ended since because this very machine was started again. A volume that moved to another
node brings the lock's file along and not the lock: there the predecessor may still run. When in doubt the answer is
another machine, and the tasks wait until the predecessor's end is known in another way; two runs of one task are
worse. A host name is no identity: a StatefulSet's pod keeps its name wherever it goes.
"""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path

MACHINE_ID = "/etc/machine-id"
BOOT_ID = "/proc/sys/kernel/random/boot_id"
MOUNTS = "/proc/self/mountinfo"
NAMESPACES = "/proc/self/ns"
INITIAL_NAMESPACES = {"pid": 0xEFFFFFFC, "ipc": 0xEFFFFFFF, "uts": 0xEFFFFFFE, "cgroup": 0xEFFFFFFB}
"""Their numbers on every Linux (include/linux/proc_ns.h). A container has at least one of its own."""


def machine_id() -> str:
    """Two processes get the same answer only if they run on one machine.

    /etc/machine-id, where it is the machine's own: outside of containers, or mounted into one. It outlives a reboot, so
    that a process may say `replaces` for a predecessor of an earlier boot: nothing of that can run any more. In a
    container it may come from the image, and be the same on every node; it is not asked then.

    Else the boot id: one kernel from its start to its end, the same in all of its containers. A container that starts
    again on its node may say `replaces`; after a reboot of the node, or on another one, it may not, and the tasks of
    its predecessor wait.

    Else a name that nobody has: nothing is ever replaced.
    """
    if _is_the_machines_own():
        text = _read(MACHINE_ID)
        if text and text != "uninitialized":  # what systemd writes into an image that is to be booted
            return text
    boot = boot_id()
    return f"boot:{boot}" if boot else f"unknown:{secrets.token_hex(16)}"


def boot_id() -> str:
    """Identity of this boot of the kernel; empty where there is none."""
    return _read(BOOT_ID)


def host_name() -> str:
    """For people only."""
    return socket.gethostname()


def _is_the_machines_own() -> bool:
    return _is_mounted(MACHINE_ID) or all(
        _namespace(name) == f"{name}:[{number}]" for name, number in INITIAL_NAMESPACES.items()
    )


def _is_mounted(path: str) -> bool:
    """Whether somebody has put exactly this file here."""
    return any(line.split()[4:5] == [path] for line in _read(MOUNTS).splitlines())


def _namespace(name: str) -> str:
    try:
        return os.readlink(f"{NAMESPACES}/{name}")
    except OSError:
        return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
