"""What a run may not leave: processes, sockets, files, descriptors of ours."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from skalds_streams.devcluster.ports import is_free
from skalds_streams.skald.ring import HOSTS_NAME
from skalds_streams.testing.chaos import processes
from skalds_streams.testing.chaos.cluster import ChaosCluster

OWN_DESCRIPTORS_MORE = 3
"""What the interpreter may open for itself meanwhile."""
KNOWN_SUFFIXES = (".lock", ".log", ".log.1", HOSTS_NAME, f"{HOSTS_NAME}.1")
"""Files that a node keeps in its data directory."""
PREFIX = "skalds-chaos-"
"""Of the directories of runs."""
LOG_BYTES_MOST = 2_500_001
"""A half of SKALDS_LOG_MAX_BYTES, for each of the two files of a task's log, and the end of a line that was torn."""


def places() -> set[str]:
    """Names of the files where programs leave things."""
    return {str(path) for root in (tempfile.gettempdir(), "/dev/shm") for path in Path(root).glob("*")}  # noqa: S108


class Leaks:
    """Look before and after: `Leaks()` when nothing of the run exists, `found` when nothing may be left of it."""

    def __init__(self) -> None:
        self._places = places()
        self._descriptors = processes.descriptors(os.getpid())

    def found(self, cluster: ChaosCluster) -> list[str]:
        """One sentence a leak."""
        return [*self._running(cluster), *self._sockets(cluster), *self._files(cluster)]

    def _running(self, cluster: ChaosCluster) -> Iterator[str]:
        for process in processes.marked(cluster.mark):
            yield f"process {process.pid} ({process.name})"

    def _sockets(self, cluster: ChaosCluster) -> Iterator[str]:
        for node in cluster.nodes:
            for port in (node.port, node.link.port):
                if not is_free(port):
                    yield f"port {port} of {node.name}"
        if cluster.socket_path.exists():
            yield f"socket {cluster.socket_path}"
        more = processes.descriptors(os.getpid()) - self._descriptors
        if more > OWN_DESCRIPTORS_MORE:
            yield f"{more} descriptors of this process"

    def _files(self, cluster: ChaosCluster) -> Iterator[str]:
        for node in cluster.nodes:
            for path in node.data_dir.rglob("*"):
                if path.is_file() and not path.name.endswith(KNOWN_SUFFIXES):
                    yield f"file {path}"
                elif path.is_file() and path.stat().st_size > LOG_BYTES_MOST:
                    yield f"{path.stat().st_size} bytes in {path}"
        for name in sorted(places() - self._places):
            if "skald" in name and PREFIX not in name:  # another run's
                yield f"file {name}"
