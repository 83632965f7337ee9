"""What of the host needs no process: the log file that stays small."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from skalds_streams.worker import host


def test_a_log_that_has_grown_too_large_begins_anew_for_all_that_write_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "LOG_MOST_BYTES", 1_000)
    monkeypatch.setattr(host, "LOG_ROTATE_BYTES", 10)
    log = tmp_path / "t.log"
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(fd, b"x" * 990 + b"0123456789")
        host.cap_log(str(log))
        assert log.stat().st_size == 1_000, "it may be that large"
        os.write(fd, b"abcdefghij")
        host.cap_log(str(log))
        os.write(fd, b"next")
    finally:
        os.close(fd)
    assert log.read_bytes() == b"next"
    assert (tmp_path / "t.log.1").read_bytes() == b"abcdefghij"


def test_a_log_that_is_not_there_is_nothing_to_shorten(tmp_path: Path) -> None:
    host.cap_log("")
    host.cap_log(str(tmp_path / "none.log"))
    assert list(tmp_path.iterdir()) == []
