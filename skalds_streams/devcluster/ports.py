"""Free TCP ports on 127.0.0.1: which one a server gets, and whether it is the one that was wanted.

A port is found free by binding it as the server will (with SO_REUSEADDR, so that connections in TIME_WAIT don't
count). Between this look and the server's own bind another process may take it; the server then says so and does not
start.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Collection

from skalds_streams.errors import DevClusterError

HOST = "127.0.0.1"
FREE_PORTS = range(20_000, 32_000)
"""Below Linux's range of outgoing ports (32768 and up): a client that keeps reconnecting to a dead server there may
connect to itself, and then the server can't have its port back.
"""
TRIES_MAX = 200


def is_free(port: int) -> bool:
    """Whether a server could listen on 127.0.0.1:port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:  # busy, or a privileged port
            return False
    return True


def free_port(avoid: Collection[int] = ()) -> int:
    """Any free port that is not in `avoid`. Raises `DevClusterError` after `TRIES_MAX` busy ones."""
    for _ in range(TRIES_MAX):
        port = FREE_PORTS[secrets.randbelow(len(FREE_PORTS))]
        if port not in avoid and is_free(port):
            return port
    raise DevClusterError(f"no free port on {HOST} in {FREE_PORTS.start}-{FREE_PORTS.stop - 1} ({TRIES_MAX} tried)")


def choose_port(wanted: int, *, service: str, strict: bool, avoid: Collection[int] = ()) -> int:
    """`wanted` when it is free, else any free port; 0 means any.

    Raises `DevClusterError` when `strict` and `wanted` is busy.
    """
    if wanted and wanted not in avoid and is_free(wanted):
        return wanted
    if wanted and strict:
        raise DevClusterError(f"{service}: port {wanted} on {HOST} is taken by another process")
    return free_port(avoid)
