"""Who this process is: a skald id, an incarnation, and the lock that proves that nobody else on this machine is it.

Rules: the lock (flock) is on a file in the data directory, on a local file system; its descriptor is sent to every
worker host and nobody ever calls LOCK_UN, so whoever gets the lock knows that the former process and all its workers
are gone, and may say `replaces`. The file says whose lock it was, and whom that one had to replace and may not have
said yet: a process that ends before its first heartbeat is in the log must not take the news of its predecessors' end
along. It also says which file it is: the lock of a copied data directory proves nothing of the process that has the
original. An unset id is drawn once and kept as the name of the file; a second process in the same directory takes
another.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from skalds_streams.errors import ConfigError
from skalds_streams.skald.machine import boot_id, machine_id

WAIT_S = 30.0
PREDECESSORS_MOST = 1_000
"""Predecessors that the file keeps while no heartbeat gets through; the oldest is never dropped."""
POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Identity:
    """`lock_fd` stays open as long as the process lives.

    `replaces`: the incarnations whose end the lock proves, oldest first. `lapses`: how many of the last of them were
    this process itself, before its lease lapsed.
    """

    skald_id: str
    incarnation: str
    lock_fd: int
    replaces: tuple[str, ...]
    lapses: int = 0


def claim_identity(
    data_dir: Path,
    skald_id: str | None,
    *,
    wait_s: float = WAIT_S,
    on_wait: Callable[[str], object] = lambda holder: None,
    sleep: Callable[[float], None] = time.sleep,
) -> Identity:
    """Take the lock of an id. A given id is waited for, `wait_s` at most; an unset one is any free kept one, or a new
    one.

    Raises ConfigError when another process on this machine keeps the id, or when the directory can't be used.
    """
    locks = data_dir / "skalds"
    try:
        locks.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"SKALDS_DATA_DIR={data_dir} can't be used: {error}") from None
    if skald_id is None:
        return _any_free(locks)
    deadline = time.monotonic() + wait_s
    path = locks / f"{_file_name(skald_id)}.lock"
    while True:
        identity = _try(path, skald_id)
        if identity is not None:
            return identity
        if time.monotonic() >= deadline:
            raise ConfigError(
                f"another process on this machine runs as skald {skald_id!r} (lock {path})."
                " Stop it, or set another SKALD_ID."
            )
        on_wait(str(path))
        sleep(POLL_S)


def _any_free(locks: Path) -> Identity:
    for path in sorted(locks.glob("skalds-*.lock")):
        identity = _try(path, path.stem)
        if identity is not None:
            return identity
    while True:
        drawn = f"skalds-{secrets.token_hex(3)[:5]}"
        identity = _try(locks / f"{drawn}.lock", drawn)
        if identity is not None:
            return identity


def _try(path: Path, skald_id: str) -> Identity | None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"the lock {path} can't be opened: {error}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    former = _read(descriptor)
    replaces = _predecessors(former, skald_id) if former.get("inode") == os.fstat(descriptor).st_ino else ()
    identity = Identity(skald_id, secrets.token_hex(8), descriptor, replaces)
    _write(identity, identity.replaces)
    return identity


def renewed(identity: Identity) -> Identity:
    """The next incarnation of a process whose lease has lapsed, and whose workers are all gone."""
    replaces = _bounded((*identity.replaces, identity.incarnation))
    lapses = identity.lapses + 1
    successor = Identity(identity.skald_id, secrets.token_hex(8), identity.lock_fd, replaces, lapses)
    _write(successor, replaces)
    return successor


def forget_predecessors(identity: Identity) -> None:
    """The log has a heartbeat of ours, which names them: a successor need not."""
    _write(identity, ())


def _predecessors(former: dict[str, Any], skald_id: str) -> tuple[str, ...]:
    if former.get("machine_id") != machine_id() or former.get("skald_id") != skald_id:
        return ()
    return _bounded((*former.get("replaces", ()), former["incarnation"]))


def _bounded(names: Sequence[str]) -> tuple[str, ...]:
    return (*names[:1], *names[1:][1 - PREDECESSORS_MOST :])


def _write(identity: Identity, replaces: tuple[str, ...]) -> None:
    document = {
        "machine_id": machine_id(),
        "boot_id": boot_id(),
        "skald_id": identity.skald_id,
        "incarnation": identity.incarnation,
        "replaces": replaces,
        "inode": os.fstat(identity.lock_fd).st_ino,
        "pid": os.getpid(),
    }
    text = orjson.dumps(document)
    # One write, blanks over what was longer: a process that is killed here leaves the former text or this one.
    os.pwrite(identity.lock_fd, text.ljust(os.fstat(identity.lock_fd).st_size), 0)
    os.ftruncate(identity.lock_fd, len(text))
    os.fsync(identity.lock_fd)


def _read(descriptor: int) -> dict[str, Any]:
    try:
        document = orjson.loads(os.pread(descriptor, 1_000_000, 0))
    except orjson.JSONDecodeError:
        return {}
    return document if isinstance(document, dict) else {}


def _file_name(skald_id: str) -> str:
    return "".join(char if char.isalnum() or char in "-_." else f"%{ord(char):x}" for char in skald_id)[:200]
