"""Sizes of memory as people write them."""

from __future__ import annotations

import pytest

from skalds_streams.worker.memory import parse_size, size_text, used_bytes


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (1, 1),
        (4096, 4096),
        ("4096", 4096),
        ("1k", 1024),
        ("512M", 512 << 20),
        ("512 MB", 512 << 20),
        ("1.5GiB", 3 << 29),
        (" 1T ", 1 << 40),
    ],
)
def test_sizes(value: object, size: int) -> None:
    assert parse_size(value) == size


@pytest.mark.parametrize("value", [0, -1, True, 1.5, None, "", "M", "-1M", "0", "0.0G", "12X", "1e9", "1 2M", b"1M"])
def test_what_is_no_size(value: object) -> None:
    assert parse_size(value) is None


def test_sizes_for_people() -> None:
    assert [size_text(size) for size in (2048, 512 << 20, 3 << 29)] == ["2 KiB", "512 MiB", "1.5 GiB"]


def test_this_process_has_some() -> None:
    assert used_bytes() > 1 << 20
