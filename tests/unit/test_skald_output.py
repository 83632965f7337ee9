"""From printed bytes to lines of a log: cut, labelled, masked, and never too many."""

from __future__ import annotations

import re

import orjson
import pytest

from skalds_streams.core.redact import secret_values
from skalds_streams.skald import output
from skalds_streams.skald.output import Secrets, Shaper, time_text

AT_MS = 1_795_600_000_123
PREFIX = f"{time_text(AT_MS)} t@3 "


class Printed:
    """A shaper with a clock."""

    def __init__(self, *secrets: str) -> None:
        self.shaper = Shaper("t", 3, Secrets(secrets))
        self.now_s = 100.0
        self.written = b""

    def print(self, data: bytes) -> None:
        self.written += self.shaper.feed(data, self.now_s, AT_MS)

    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.written += self.shaper.settle(self.now_s, AT_MS)

    def close(self) -> None:
        self.written += self.shaper.close(self.now_s, AT_MS)

    @property
    def lines(self) -> list[str]:
        assert not self.written or self.written.endswith(b"\n")
        texts = self.written.decode(errors="replace").split("\n")[:-1]
        assert all(text.startswith(PREFIX) for text in texts)
        return [text.removeprefix(PREFIX) for text in texts]


def test_every_line_has_time_task_and_epoch() -> None:
    assert PREFIX == "2026-11-25T09:46:40.123Z t@3 "
    printed = Printed()
    printed.print(b"one\ntwo\r\nthree\rfour\n\nhalf a ")
    assert printed.lines == ["one", "two", "three", "four", ""]
    printed.print(b"line\n")
    assert printed.lines[-1] == "half a line"
    printed.shaper.take_epoch(4)
    assert printed.shaper.feed(b"x\n", 101.0, AT_MS) == f"{time_text(AT_MS)} t@4 x\n".encode()


def test_ids_are_one_word_in_a_line() -> None:
    shaper = Shaper("a b\nc" + "x" * 200, 1)
    (label, rest) = shaper.feed(b"said\n", 0.0, AT_MS).decode().split(" ", 1)[1].split(" ", 1)
    assert (label.startswith("a%20b%0Acxxx"), len(label) < 110, rest) == (True, True, "said\n")


def test_a_line_without_an_end_is_written_after_a_while_and_at_the_end() -> None:
    printed = Printed()
    printed.print(b"50 %")
    printed.wait(0.1)
    assert printed.lines == []
    printed.wait(output.PARTIAL_S)
    assert printed.lines == ["50 %"]
    printed.print(b"last words")
    printed.close()
    assert printed.lines == ["50 %", "last words"]


def test_a_line_that_never_ends_goes_on_in_the_next() -> None:
    printed = Printed()
    for _ in range(10):
        printed.print(b"x" * 10_000)
    printed.close()
    assert sum(map(len, printed.lines)) == 100_000
    assert max(map(len, printed.lines)) <= output.LINE_MOST_BYTES


def test_bytes_that_are_no_text_stay_and_none_is_nul() -> None:
    printed = Printed()
    printed.print(b"\xff\xfe\0\n")
    assert printed.written.endswith(b" \xff\xfe\\0\n")


SECRETS = ("hunter2", "hunter2-longer", "p@ss/wörd%", 'quo"te\\d', "pin-4711", "-----BEGIN KEY-----\nAAAAbbbb\nzz\n")


@pytest.mark.parametrize(
    "said",
    [
        "login with hunter2",
        "hunter2-longer and hunter2",
        "GET /?key=p%40ss%2Fw%C3%B6rd%25",
        repr({"password": SECRETS[3]}),
        orjson.dumps({"password": SECRETS[2]}).decode(),
        SECRETS[5],
        "rtsp://viewer:some-password@camera.example/1",
    ],
)
def test_secrets_are_masked_in_every_spelling(said: str) -> None:
    printed = Printed(*SECRETS)
    printed.print(said.encode() + b"\n")
    text = "\n".join(printed.lines + printed.shaper.tail)
    assert "***" in text
    for told in ("hunter2", "longer", "p%40ss", "w\\u00f6rd", "wörd", 'quo"te', "AAAAbbbb", "some-password"):
        assert told not in text


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1_000])
def test_a_secret_in_pieces_is_masked_however_slowly_it_comes(size: int) -> None:
    printed = Printed("hunter2", "hunter2-longer")
    data = b"x" * 40_000 + b"hunter2-longer" + b"y" * 40_000 + b"hunter2"
    for at in range(0, len(data), size):
        printed.print(data[at : at + size])
        if 39_980 < at < 40_040:
            printed.wait(2 * output.PARTIAL_S)
    printed.wait(2 * output.PARTIAL_S)
    printed.close()
    text = "".join(printed.lines)
    assert text.replace("*", "") == "x" * 40_000 + "y" * 40_000
    assert "hunt" not in "".join(printed.shaper.tail)


def test_the_beginning_of_a_secret_at_the_very_end_is_masked_too() -> None:
    printed = Printed("hunter2")
    printed.print(b"my word is hunte")
    printed.close()
    assert printed.lines == ["my word is ", "***"]
    printed = Printed("hunter2")
    printed.print(b"the h")
    printed.close()
    assert printed.lines == ["the ", "h"]


def test_secrets_that_come_later_are_masked_beside_the_former() -> None:
    printed = Printed("hunter2")
    printed.shaper.secrets = Secrets({*printed.shaper.secrets.values, "swordfish"})
    printed.print(b"hunter2 swordfish\n")
    assert printed.lines == ["*** ***"]


def test_notes_are_masked() -> None:
    shaper = Shaper("t", 3, Secrets(["hunter2"]))
    assert (
        shaper.note("no login with hunter2\n== over", AT_MS).decode() == f"{PREFIX}no login with ***\n{PREFIX}== over\n"
    )


def test_a_great_many_secrets_are_found_quickly_and_too_many_let_nothing_through() -> None:
    printed = Printed(*(f"secret-{number:04}" for number in range(1_500)))
    printed.print(b"it is secret-1499, not secret-9999\n")
    assert printed.lines == ["it is ***, not secret-9999"]
    for values in ((f"secret-{number:05}" for number in range(5_000)), ("a" * size for size in range(4, 1_500))):
        printed = Printed(*values)
        printed.print(b"secret-00001 aaaaa\n" * 100)
        printed.wait(1)
        printed.close()
        assert printed.lines == ["… 1900 bytes are left out: the task has more secrets than can be masked"]
        assert printed.shaper.tail == []


def test_values_of_secret_parameters_are_found_by_name_path_and_url() -> None:
    parameters = {
        "password": "by-name",
        "login": {"pin": "by-path"},
        "url": "rtsp://me:in-url@host",
        "fps": 30,
        "tokens": ["first-one", 12345, "x"],
    }
    assert secret_values(parameters, {"password", "token"}, ["login.pin"]) == {
        *("by-name", "by-path", "in-url", "first-one", "12345")
    }
    assert secret_values(None, {"password"}) == frozenset()


def test_who_prints_without_end_is_cut_to_the_rate_and_the_end_is_kept() -> None:
    printed = Printed()
    number, seconds = 0, 20
    for _ in range(seconds * 100):
        printed.print(b"".join(b"%099d\n" % (number + at) for at in range(1_000)))
        number += 1_000
        printed.wait(0.01)
        assert len(printed.shaper._raw) <= output.HELD_BYTES
    before = len(printed.written)
    labels = 1 + len(PREFIX) / 100
    assert before <= labels * (output.BURST_BYTES + seconds * output.RATE_BYTES_S) * 1.05
    assert before >= seconds * output.RATE_BYTES_S / 2
    printed.close()
    assert printed.lines[-1] == f"{number - 1:099}"
    assert printed.shaper.tail[-1].endswith(str(number - 1))
    left_out = [re.match(r"… (\d+) bytes are left out: more than 512 KiB a second", text) for text in printed.lines]
    told = sum(int(found[1]) for found in left_out if found)
    assert told + 100 * sum(text.isdigit() for text in printed.lines) == 100 * number, "each byte is shown or counted"


def test_what_was_held_back_comes_when_there_is_room_again() -> None:
    printed = Printed()
    printed.print(b"x" * 99 + b"\n")
    printed.print((b"y" * 99 + b"\n") * 20_000)
    assert "left out" not in printed.lines[-1]
    printed.print(b"the last line\n")
    printed.wait(5)
    assert printed.lines[-1] == "the last line"
    assert sum("left out" in text for text in printed.lines) == 1


def test_a_cut_in_the_middle_of_a_line_shows_nothing_of_it() -> None:
    """Its rest could be the rest of a secret."""
    printed = Printed("hunter2" * 30)
    printed.print(b"x" * 2_000_000 + b"hunter2" * 5)
    printed.print(b"hunter2" * 25 + b"\nnext\n")
    printed.wait(10)
    assert [text for text in printed.lines if "left out" not in text] == ["next"]


def test_the_last_lines_are_bounded_in_number_and_bytes() -> None:
    printed = Printed()
    printed.print(b"".join(b"line %d\n" % number for number in range(200)))
    assert printed.shaper.tail == [f"line {number}" for number in range(150, 200)]
    printed.print((b"\x1b" * 3_000 + b"\n") * 60)
    tail = printed.shaper.tail
    assert 1 <= len(tail) <= 50
    assert len(orjson.dumps(tail)) <= output.TAIL_BYTES + 2
