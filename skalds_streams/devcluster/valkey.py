"""A Valkey server, which speaks Redis's protocol, and its settings.

Its data survives a restart and a kill -9 (append-only file), at most the last second being lost when the machine
itself goes down.
"""

from __future__ import annotations

from pathlib import Path

from skalds_streams.devcluster.extra import valkey_path
from skalds_streams.devcluster.ports import HOST
from skalds_streams.devcluster.probe import valkey_answers
from skalds_streams.devcluster.process import ServerProcess

LOG_BYTES_MAX = 1024 * 1024
"""A longer log is put aside, as `valkey.log.1`, at the next start."""
SETTINGS = {
    "bind": HOST,
    "protected-mode": "yes",
    "daemonize": "no",
    "dir": ".",
    "save": '""',
    "appendonly": "yes",
    "appendfsync": "everysec",
    "maxmemory": "256mb",
    "maxmemory-policy": "noeviction",
    "loglevel": "notice",
}


class ValkeyServer(ServerProcess):
    """One Valkey server in `directory`; `port` 0 takes a free one at the first start."""

    name = "Valkey"
    start_timeout_s = 20.0
    stop_grace_s = 3.0

    def __init__(self, directory: Path, port: int) -> None:
        super().__init__(directory, port, directory / "valkey.log")

    def answers(self) -> bool:
        """Whether our own process answers and has loaded its data."""
        return self.running and valkey_answers(self.port, self.pid)

    def _prepare(self) -> None:
        if self.log_path.exists() and self.log_path.stat().st_size > LOG_BYTES_MAX:
            self.log_path.replace(self.log_path.with_suffix(".log.1"))
        lines = [f"{name} {value}\n" for name, value in {"port": str(self.port), **SETTINGS}.items()]
        (self.directory / "valkey.conf").write_text("".join(lines))

    def _command(self) -> list[str]:
        return [str(valkey_path()), "valkey.conf"]
