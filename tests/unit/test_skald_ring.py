"""The log files of tasks: how large they get, where they are cut, what a crash leaves, what is read back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from skalds_streams.skald import ring as ring_module
from skalds_streams.skald.ring import LogFiles, Position, Ring, file_name, older

STAMP = "2026-11-25T15:40:01.123Z"


def line(number: int, width: int = 40) -> bytes:
    return f"{STAMP} {number:06}".encode().ljust(width, b".")


def text(*numbers: int) -> bytes:
    return b"".join(line(number) + b"\n" for number in numbers)


def files_of(tmp_path: Path, max_bytes: int = 2_000, most: int = 10) -> LogFiles:
    return LogFiles(tmp_path, max_bytes=max_bytes, most=most)


def size_of(files: LogFiles, task_id: str) -> int:
    return sum(half.stat().st_size for half in (files.path(task_id), older(files.path(task_id))) if half.exists())


def test_a_log_never_outgrows_its_share_and_keeps_the_newest_whole_lines(tmp_path: Path) -> None:
    files = files_of(tmp_path)
    ring = files.ring("t")
    for number in range(0, 300, 3):
        ring.append(text(number, number + 1, number + 2))
        assert size_of(files, "t") <= 2_000
    for half in (files.path("t"), older(files.path("t"))):
        data = half.read_bytes()
        assert data.startswith(STAMP.encode())
        assert data.endswith(b"\n")
    kept = files.tail("t", 1_000).lines
    assert kept == [line(number) for number in range(300 - len(kept), 300)]
    assert len(kept) * 41 > 1_000, "at least a half is kept"


def test_more_at_once_than_the_ring_takes_leaves_its_end(tmp_path: Path) -> None:
    files = files_of(tmp_path)
    files.ring("t").append(text(*range(500)))
    kept = files.tail("t", 1_000).lines
    assert (kept[-1], size_of(files, "t") <= 2_000) == (line(499), True)
    assert kept == [line(number) for number in range(500 - len(kept), 500)]


def test_the_next_run_goes_on_behind_the_former(tmp_path: Path) -> None:
    files = files_of(tmp_path)
    files.ring("t").append(text(1))
    files.ring("t").append(text(2))
    assert files.tail("t", 10).lines == [line(1), line(2)]


def test_a_line_that_a_crash_cut_off_stays_one_and_the_next_is_whole(tmp_path: Path) -> None:
    files = files_of(tmp_path)
    files.ring("t").append(text(1))
    with files.path("t").open("ab") as file:
        file.write(line(2)[:30])
    assert files.tail("t", 10).lines == [line(1)], "half a line is not shown"
    files.ring("t").append(text(3))
    assert files.tail("t", 10).lines == [line(1), line(2)[:30], line(3)]


def test_a_full_disk_in_the_middle_of_a_line_is_an_error_and_spoils_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = files_of(tmp_path)
    ring = files.ring("t")
    ring.append(text(1))
    write = os.write
    is_full = False

    def short(fd: int, data: bytes) -> int:
        nonlocal is_full
        if is_full:
            raise OSError(28, "No space left on device")
        is_full = True
        return write(fd, bytes(data)[:30])

    monkeypatch.setattr(ring_module.os, "write", short)
    with pytest.raises(OSError, match="No space"):
        ring.append(text(2, 3))
    monkeypatch.undo()
    ring.append(text(4))
    assert files.tail("t", 10).lines == [line(1), line(2)[:30], line(4)]


def test_a_line_larger_than_a_half_is_written(tmp_path: Path) -> None:
    files = files_of(tmp_path, max_bytes=100)
    files.ring("t").append(text(1) + line(2, 200) + b"\n" + text(3))
    assert files.tail("t", 10).lines == [line(2, 200), line(3)]


@pytest.mark.parametrize("most", [1, 7, 20, 33, 10_000])
def test_the_tail_has_so_many_lines_over_both_halves(
    most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ring_module, "BLOCK_BYTES", 64)
    files = files_of(tmp_path)
    files.ring("t").append(text(*range(100)))
    every = [line(number) for number in range(100)]
    kept = files.tail("t", 10_000).lines
    assert files.tail("t", most).lines == every[-min(most, len(kept)) :]


def test_a_tail_is_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring_module, "BLOCK_BYTES", 64)
    monkeypatch.setattr(ring_module, "TAIL_MOST_BYTES", 300)
    files = files_of(tmp_path, max_bytes=100_000)
    files.ring("t").append(text(*range(100)))
    lines = files.tail("t", 10_000).lines
    assert 5 <= len(lines) <= 8
    assert lines[-1] == line(99)


def test_who_follows_misses_nothing_over_a_change_of_halves(tmp_path: Path) -> None:
    files = files_of(tmp_path)
    ring = files.ring("t")
    ring.append(text(0))
    read = files.tail("t", 1)
    seen = list(read.lines)
    for number in range(1, 200):
        ring.append(text(number))
        if number % 7 == 0 or number == 199:
            more = True
            while more:
                read = files.read_on("t", Position.parse(str(read.position)) or Position(), 100)
                assert not read.missed
                seen += read.lines
                more = read.more
    assert seen == [line(number) for number in range(200)]


def test_who_is_overtaken_is_told_and_goes_on_with_whole_lines(tmp_path: Path) -> None:
    files = files_of(tmp_path)
    ring = files.ring("t")
    ring.append(text(0))
    position = files.tail("t", 1).position
    ring.append(text(*range(1, 300)).replace(b"15:40", b"15:41"))
    read = files.read_on("t", position, 1 << 20)
    assert read.missed
    assert {len(item) for item in read.lines} == {40}


def test_half_a_line_is_not_followed_before_its_end_is_there(tmp_path: Path) -> None:
    files = files_of(tmp_path)
    ring = files.ring("t")
    ring.append(text(1))
    position = files.tail("t", 10).position
    with files.path("t").open("ab") as file:
        file.write(line(2)[:30])
        file.flush()
        read = files.read_on("t", position)
        assert (read.lines, read.position) == ([], position)
        file.write(line(2)[30:] + b"\n")
    assert files.read_on("t", position).lines == [line(2)]


def test_a_log_that_is_not_there_is_empty_and_is_followed_from_its_beginning(tmp_path: Path) -> None:
    files = files_of(tmp_path / "later")
    read = files.tail("t", 10)
    assert (read.lines, read.position, files.exists("t")) == ([], Position(), False)
    assert not files.read_on("t", read.position).missed
    files.ring("t").append(text(1))
    assert files.read_on("t", read.position).lines == [line(1)]


@pytest.mark.parametrize("given", ["", "1", "1/2", "a/b/c", "1/x/-2", "1/x/²", "../../etc/passwd"])
def test_what_is_no_position_is_none(given: str) -> None:
    assert Position.parse(given) is None


def test_names_are_safe_and_differ() -> None:
    ids = ["a", "A", "a/b", "a%2Fb", "..", "../x", "ü", "x" * 400, "x" * 399 + "y", "x.log.1", ""]
    names = [file_name(task_id) for task_id in ids]
    assert len(set(names)) == len(ids)
    assert not [name for name in names if "/" in name or len(name) > 240]


def test_logs_of_tasks_that_are_gone_are_deleted_and_their_number_is_bounded(tmp_path: Path) -> None:
    files = files_of(tmp_path, max_bytes=100, most=3)
    long = "l" * 300
    for at, task_id in enumerate(["old", "runs", "gone", long, "new", "newer", "long-gone" * 40]):
        files.ring(task_id).append(text(1, 2))
        for half in (files.path(task_id), older(files.path(task_id))):
            os.utime(half, (at, at))
    wanted = {"old", "runs", long, "new", "newer"}
    (tmp_path / "something else").touch()
    assert files.sweep(wanted.__contains__, lambda: wanted, {"runs"}) == 4
    left = {item for item in [*wanted, "gone"] if files.exists(item)}
    assert left == {"runs", "newer", "new"}
    assert len(list(tmp_path.iterdir())) == 7


def test_the_log_of_a_run_is_not_deleted_whatever_else(tmp_path: Path) -> None:
    files = files_of(tmp_path, most=1)
    for task_id in ("a", "b"):
        files.ring(task_id).append(text(1))
    assert files.sweep(lambda _: False, tuple, {"a", "b"}) == 0


def test_a_link_in_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "t.log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        Ring(tmp_path / "logs" / "t.log", 1_000).append(text(1))
