"""Dead letters: what can be known of one, what is shown of one, and which may be sent again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

import click
import orjson
import pytest
import structlog
from click.testing import CliRunner, Result
from rich.console import Console

from skalds_streams.cli import deadletter, letters, main, redrive
from skalds_streams.cli.deadletter import Filter, SinceType, SpotType
from skalds_streams.cli.kafka import Cluster, Sent
from skalds_streams.cli.letters import Copies, Copy, cleaned, find_copies, read_letters
from skalds_streams.cli.preview import preview, starred
from skalds_streams.cli.redrive import Item, Plan, judge, objection, question, result, result_words
from skalds_streams.coordinator import batch
from skalds_streams.core.events import Event
from skalds_streams.core.partition import partition_of
from skalds_streams.errors import SkaldsError
from skalds_streams.model.codec import Limits, parse
from skalds_streams.model.deadletter import NO_REASON, Letter, Source, read_letter, redrive_headers
from skalds_streams.model.record import Record
from skalds_streams.settings import Settings
from skalds_streams.topics import Topics

TOPICS = Topics.named(app="t", partitions=4)
WORDS = frozenset({"password", "token"})
NONE = Copies()

Headers = Sequence[tuple[str, bytes]]


@pytest.fixture(autouse=True)
def _as_on_any_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    for name in ("KAFKA_HOST", "KAFKA_PORT", "KAFKA_TOPIC_PARTITIONS", "SKALDS_TOPIC_PREFIX"):
        monkeypatch.delenv(name, raising=False)
    yield
    structlog.reset_defaults()


def input_record(value: bytes | None = b"{oops", offset: int = 10, headers: Headers = ()) -> Record:
    return Record(TOPICS.assign, 3, offset, b"cam-1", value, 1_000, headers)


def dead(record: Record, reason: str = "not JSON: oops", offset: int = 17) -> Record:
    """The record as the coordinator puts it among the dead letters."""
    output = batch.deadletter(record, reason, TOPICS)
    return Record(output.topic, record.partition, offset, output.key, output.value, 2_000, output.headers)


def letter(**fields: Any) -> Letter:
    return read_letter(dead(input_record(**fields)))


def cluster(**settings: Any) -> Cluster:
    return Cluster(Settings.load(**settings, secret_names="password,token", _env_file=None), TOPICS, {})


# -- what stands in one ------------------------------------------------------------------------------------------------


def test_a_letter_says_what_the_coordinator_wrote() -> None:
    assert letter() == Letter(
        TOPICS.deadletter, 3, 17, 2_000, b"cam-1", 5, "not JSON: oops", Source(TOPICS.assign, 3, 10)
    )
    assert letter().where == "task.deadletter/3@17"


def test_sent_again_it_has_its_own_headers_back_and_two_more() -> None:
    own = [("trace", b"\xff1"), ("trace", b"2"), ("original.x", b"3")]
    assert redrive_headers(dead(input_record(headers=own)), 1) == [
        *own,
        ("redrive.of", b"task.deadletter/3@17"),
        ("redrive.count", b"1"),
    ]


def test_one_that_comes_back_again_counts_on() -> None:
    first = redrive_headers(dead(input_record(headers=[("trace", b"1")])), 1)
    again = dead(input_record(headers=first, offset=30), offset=18)
    found = read_letter(again)
    assert (found.redrives, judge(found, NONE, TOPICS, again=False, is_mended=False).count) == (1, 2)
    assert redrive_headers(again, 2) == [
        ("trace", b"1"),
        ("redrive.of", b"task.deadletter/3@18"),
        ("redrive.count", b"2"),
    ]


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("source.topic", b"task.assign")],
        [("source.topic", b"x"), ("source.partition", b"-1"), ("source.offset", b"1")],
        [("source.topic", b"x"), ("source.partition", b"1"), ("source.offset", b"9" * 30)],
        [("reason", b""), ("source.topic", b""), ("source.partition", b"1"), ("source.offset", b"1")],
    ],
)
def test_what_somebody_else_wrote_there_is_a_letter_without_source(headers: Headers) -> None:
    found = read_letter(Record(TOPICS.deadletter, 0, 0, None, None, 5, headers))
    assert (found.source, found.reason, found.size, found.key) == (None, NO_REASON, 0, None)


def test_a_letter_that_was_cut_is_known() -> None:
    record = input_record(b"x" * 100)
    assert read_letter(dead(record, "can't be written: E; cut to 100 bytes")).is_cut
    assert not read_letter(dead(record, "can't be written: E; cut to 1 bytes")).is_cut


def test_a_reason_does_not_tell_the_secrets_of_its_value() -> None:
    record = input_record(orjson.dumps({"taskIds": ["a"], "tasks": [{"attachments": {"password": "hunter2"}}]}))
    told = "no camera at rtsp://u:p4ss@c/1 with hunter2"
    assert cleaned(dead(record, told), WORDS).reason == "no camera at rtsp://***@c/1 with ***"


# -- a redrive is a cause ----------------------------------------------------------------------------------------------


def parsed(value: bytes, headers: Headers, topic: str = TOPICS.cancel) -> Event:
    (event,) = parse(Record(topic, partition_of("a", 4), 5, b"a", value, 1, headers), TOPICS, Limits()).events
    return event


REDRIVEN: Headers = [("trace", b"1"), ("redrive.of", b"task.deadletter/3@17"), ("redrive.count", b"1")]


@pytest.mark.parametrize(
    ("document", "headers", "reason"),
    [
        ({}, REDRIVEN, "redrive of task.deadletter/3@17"),
        ({"reason": "street closed"}, REDRIVEN, "street closed"),
        ({}, [("redrive.of", b"\xff")], "redrive of \ufffd"),
        ({}, [("redrive.of", b"")], None),
        ({}, [("trace", b"1")], None),
    ],
)
def test_the_cause_says_that_it_was_a_redrive(document: dict[str, Any], headers: Headers, reason: str | None) -> None:
    event = parsed(orjson.dumps({"taskIds": ["a"], **document}), headers)
    assert event.cause.reason == reason


def test_so_do_forwarded_ones_and_reports() -> None:
    other = next(name for name in "bcdefgh" if partition_of(name, 4) != partition_of("a", 4))
    record = Record(TOPICS.cancel, partition_of("a", 4), 5, b"a", orjson.dumps({"taskIds": [other]}), 1, REDRIVEN)
    ((task_id, document),) = parse(record, TOPICS, Limits()).forwards
    forwarded = Record(TOPICS.report, partition_of(task_id, 4), 8, task_id.encode(), orjson.dumps(document), 2)
    (event,) = parse(forwarded, TOPICS, Limits()).events
    assert event.cause.reason == "redrive of task.deadletter/3@17"
    report = orjson.dumps({"v": 1, "kind": "Stopped", "task_id": "a", "epoch": 1, "incarnation": "i"})
    assert parsed(report, REDRIVEN, TOPICS.report).cause.reason == "redrive of task.deadletter/3@17"


# -- which were sent again ---------------------------------------------------------------------------------------------


class Logs:
    """Stands for the broker: records by place, and what of each place was removed."""

    def __init__(self, *records: Record, begins: Mapping[tuple[str, int], int] | None = None) -> None:
        self.records, self.removed = records, begins or {}

    async def begins(self, places: Collection[tuple[str, int]]) -> dict[tuple[str, int], int]:
        return {place: self.removed.get(place, 0) for place in places}

    async def ends(self, places: Collection[tuple[str, int]], **_: Any) -> dict[tuple[str, int], int]:
        return {place: max((r.offset + 1 for r in self._at(place)), default=0) for place in places}

    async def whole(self, topic: str, partitions: Collection[int]) -> dict[tuple[str, int], tuple[int, int]]:
        places = [(topic, number) for number in partitions]
        begins, ends = await self.begins(places), await self.ends(places)
        return {place: (begins[place], ends[place]) for place in places}

    def _at(self, place: tuple[str, int]) -> list[Record]:
        return [record for record in self.records if (record.topic, record.partition) == place]

    async def read(
        self, ranges: Mapping[tuple[str, int], tuple[int, int]], on_progress: Any = None
    ) -> AsyncIterator[list[Record]]:
        for place, (begin, end) in ranges.items():
            yield [record for record in self._at(place) if begin <= record.offset < end]
            if on_progress is not None:
                on_progress(place[0], end, end)


async def look(logs: Any, *some: Letter, after: Mapping[tuple[str, int], int] | None = None) -> Copies:
    return await find_copies(logs, TOPICS, some or [letter()], after=after)


def sent_again(offset: int, of: str = "task.deadletter/3@17", partition: int = 3) -> Record:
    headers = [("redrive.of", of.encode()), ("redrive.count", b"1")]
    return Record(TOPICS.assign, partition, offset, b"cam-1", b"{}", 3_000, headers)


@pytest.mark.anyio
async def test_one_is_found_behind_its_input_by_its_header() -> None:
    copies = await look(Logs(input_record(), sent_again(12)))
    assert copies.found == {(3, 17): [Copy(Sent(TOPICS.assign, 3, 12), 3_000)]}
    assert (copies.unsure, copies.ends) == (frozenset(), {(TOPICS.assign, 3): 13})


@pytest.mark.anyio
@pytest.mark.parametrize(
    "record",
    [
        sent_again(12, of="task.deadletter/3@18"),
        sent_again(12, of="t9.task.deadletter/3@17"),
        sent_again(9),
        Record(TOPICS.assign, 3, 12, b"cam-1", b"{}", 3_000, [("original.redrive.of", b"task.deadletter/3@17")]),
    ],
    ids=["of another", "of another system", "before its input", "quoted"],
)
async def test_others_are_not_taken_for_it(record: Record) -> None:
    copies = await look(Logs(input_record(), record, input_record(offset=13)))
    assert (copies.found, copies.unsure) == ({}, frozenset())


@pytest.mark.anyio
async def test_a_copy_of_another_letter_that_is_looked_for_too_must_be_behind_its_own_input() -> None:
    """Its letter's topic was deleted and made anew meanwhile, so that a place there means another letter now."""
    old, new = letter(), read_letter(dead(input_record(offset=40), offset=18))
    copies = await look(Logs(input_record(), sent_again(20, of=new.where), input_record(offset=40)), old, new)
    assert copies.found == {}


@pytest.mark.anyio
@pytest.mark.parametrize(
    "logs",
    [Logs(sent_again(50), begins={(TOPICS.assign, 3): 45}), Logs(sent_again(2))],
    ids=["removed by retention", "deleted and made anew"],
)
async def test_where_the_source_does_not_reach_back_nobody_can_tell(logs: Logs) -> None:
    copies = await look(logs)
    assert copies.unsure == {(3, 17)}
    assert list(copies.found) == [(3, 17)], "what is there is found all the same"
    assert (await look(Logs(input_record(), begins={(TOPICS.assign, 3): 11}))).unsure == frozenset()


@pytest.mark.anyio
async def test_a_second_look_reads_on_from_the_first() -> None:
    logs = Logs(input_record(), sent_again(12), sent_again(14))
    copies = await look(logs, after={(TOPICS.assign, 3): 13})
    assert [copy.place.offset for copy in copies.found[3, 17]] == [14]
    assert (await look(logs, after={(TOPICS.assign, 3): 15})).found == {}


# -- what is to be done with each --------------------------------------------------------------------------------------

FOUND = Copies({(3, 17): [Copy(Sent(TOPICS.assign, 3, 12), 3_000)]})
UNSURE = Copies({}, frozenset({(3, 17)}))
FOREIGN = Letter(TOPICS.deadletter, 3, 17, 0, None, 0, NO_REASON, None)
ELSEWHERE = Letter(TOPICS.deadletter, 3, 17, 0, None, 0, "r", Source("other.topic", 3, 1))
CUT = Letter(TOPICS.deadletter, 3, 17, 0, None, 9, "r", Source(TOPICS.assign, 3, 1), is_cut=True)


@pytest.mark.parametrize(
    ("some", "copies", "options", "verdict", "words"),
    [
        (letter(), NONE, {}, "send", ""),
        (letter(), FOUND, {}, "skip", "sent again before, as task.assign/3@12 at "),
        (letter(), FOUND, {"again": True}, "send", ""),
        (letter(), UNSURE, {}, "refuse", "nobody can tell whether it was sent again before; --again"),
        (letter(), UNSURE, {"again": True}, "send", ""),
        (FOREIGN, NONE, {"again": True}, "refuse", "it does not say where it came from"),
        (ELSEWHERE, NONE, {"again": True}, "refuse", "other.topic/3@1 is no input of this application"),
        (CUT, NONE, {"again": True}, "refuse", "only the beginning of its value was kept"),
        (CUT, NONE, {"is_mended": True}, "send", ""),
    ],
)
def test_judgement(some: Letter, copies: Copies, options: dict[str, bool], verdict: str, words: str) -> None:
    item = judge(some, copies, TOPICS, **{"again": False, "is_mended": False, **options})
    assert (item.verdict, words in item.words) == (verdict, True)


def test_again_counts_the_copies_that_are_known() -> None:
    assert judge(letter(), FOUND, TOPICS, again=True, is_mended=False).count == 2


def test_what_a_coordinator_would_say_of_a_value() -> None:
    record = dead(input_record())
    assert objection(cluster(), letter(), record, b"{oops").startswith("not JSON")
    assert objection(cluster(), letter(), record, orjson.dumps({"taskIds": ["a"]})) == ""
    long = orjson.dumps({"taskIds": ["a"], "reason": "x" * 2_000})
    assert "SKALDS_MAX_RECORD_BYTES" in objection(cluster(max_record_bytes=1_000), letter(), record, long)
    assert objection(cluster(), letter(), record, None) == "the value is empty"


def test_the_question_counts_by_topic() -> None:
    items = [Item(letter(), "send"), Item(letter(), "send"), Item(letter(), "skip", "x")]
    plan = Plan(cluster(), items, NONE)
    assert question(plan) == "Send 2 events again: 2 to task.assign? They count as sent now."


@pytest.mark.parametrize(
    ("item", "answer", "dry_run", "outcome", "words"),
    [
        (Item(letter(), "send"), Sent("task.assign", 3, 40), False, "sent", "sent again as task.assign/3@40"),
        (Item(letter(), "send"), "not accepted: E", False, "failed", "failed: not accepted: E"),
        (Item(letter(), "skip", "before"), "", False, "skipped", "skipped: before"),
        (Item(letter(), "refuse", "cut"), "", True, "refused", "refused: cut"),
        (
            *(Item(letter(), "send"), "", True, "would send"),
            "would be sent to task.assign/3, key cam-1, 5 bytes",
        ),
        (
            *(Item(letter(), "send"), "not JSON", True, "would send"),
            "would be sent to task.assign/3, key cam-1, 5 bytes; it will come back: not JSON",
        ),
    ],
)
def test_what_became_of_one(item: Item, answer: Any, dry_run: bool, outcome: str, words: str) -> None:
    doc = result(item, answer, dry_run=dry_run)
    assert doc["result"] == outcome
    assert result_words(item, doc) == words
    assert orjson.dumps(doc)


# -- what is shown -----------------------------------------------------------------------------------------------------


def test_the_list_shows_everything_but_the_value() -> None:
    console = Console(file=StringIO(), width=200)
    records = [dead(input_record(b'{"password": "hunter2"}')), dead(input_record(headers=REDRIVEN), offset=18)]
    some = [cleaned(record, WORDS) for record in records]
    console.print(deadletter.table([*some, FOREIGN], None))
    file: Any = console.file
    lines = file.getvalue().splitlines()
    assert lines[0].split() == ["LETTER", "WHEN", "SOURCE", "KEY", "BYTES", "REASON"]
    assert lines[1].split()[0] == "3/17"
    assert lines[1].split()[3:] == ["task.assign/3@10", "cam-1", "23", "not", "JSON:", "oops"]
    assert lines[3].split()[:3] == ["3/17", "–", "–"]
    assert "hunter2" not in file.getvalue()
    console.print(deadletter.table(some, Copies(FOUND.found, frozenset({(3, 18)}))))
    assert [line.split()[6:8] for line in file.getvalue().splitlines()[-2:]] == [
        ["task.assign/3@12", "not"],
        ["?", "not"],
    ]


def test_a_letter_as_json() -> None:
    doc = letters.letter_doc(letter(), FOUND)
    assert doc["source"] == {"topic": "task.assign", "partition": 3, "offset": 10}
    assert doc["redriven"] == [{"topic": "task.assign", "partition": 3, "offset": 12, "at_ms": 3_000}]
    assert (doc["key"], doc["size"], doc["redrives"], doc["redriven_unsure"]) == ("cam-1", 5, 0, False)
    assert letters.letter_doc(FOREIGN)["source"] is None
    assert "redriven" not in letters.letter_doc(FOREIGN)
    assert [letters.key_words(key) for key in (None, b"", b"\xff\x01")] == ["–", "", "0xff01"]


@pytest.mark.parametrize(
    ("value", "kind", "line"),
    [
        (None, "no value", None),
        (b"", "an empty value", None),
        (b'{"a": {"password": "hunter2"}}', "JSON, secrets masked", '    "password": "***"'),
        (b"\x00\x01abc", "no JSON, 5 bytes", f"00000000  {'00 01 61 62 63':<48} ..abc"),
        (b"x" * 1_000, "no JSON, the first 256 of 1,000 bytes", f"000000f0  {'78 ' * 16} {'x' * 16}"),
    ],
)
def test_preview(value: bytes | None, kind: str, line: str | None) -> None:
    found, lines = preview(value, WORDS)
    assert found == kind
    assert line is None or line in lines


def test_a_large_json_is_cut() -> None:
    kind, lines = preview(orjson.dumps(["x" * 100] * 10_000), WORDS)
    assert kind == "JSON, secrets masked, cut to 65,536 characters"
    assert lines[-1] == "…"


@pytest.mark.parametrize(
    "text",
    [
        '{"password": "canary", "fps": 3,}',
        "{'password': 'canary\\'s', 'fps': 3}",
        '{"password": "a \\"canary\\" inside", "fps": 3,}',
        '{"value": "{\\"password\\": \\"canary\\", \\"fps\\": 3}"',
        '{"password": {"a": "canary"}, "fps": 3,}',
        '{"token": ["x", "canary"',
        "password=canary&fps=3",
        'db_password: "canary and more',
        '{"url": "rtsp://user:canary@camera/1",}',
        'x {"password":"' + "y" * 300 + 'canary"',
    ],
)
def test_what_looks_like_a_secret_is_starred(text: str) -> None:
    masked = starred(text.encode(), WORDS)
    assert len(masked) == len(text)
    assert b"canary" not in masked
    assert b"*" in masked


def test_what_looks_like_none_is_left() -> None:
    text = b'{"fps": 30, "name": "cam", bytes \xff\x00: "x"'
    assert starred(text, WORDS) == text


# -- what is typed -----------------------------------------------------------------------------------------------------


def call(*args: str) -> Result:
    return CliRunner().invoke(main, ["deadletter", *args])


@pytest.mark.parametrize("text", ["3/17", "3@17", "task.deadletter/3@17", "t1.task.deadletter/3/17"])
def test_a_letter_is_named_as_it_is_printed(text: str) -> None:
    assert SpotType().convert(text, None, None) == (3, 17)


@pytest.mark.parametrize("text", ["", "3", "3-17", "a/b", "-1/3", "3/17/2", "3/1234567890123456789"])
def test_what_names_no_letter(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not PARTITION/OFFSET"):
        SpotType().convert(text, None, None)


def test_since(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadletter, "now_ms", lambda: 10_000_000_000)
    since = [SinceType().convert(text, None, None) for text in ("90s", "15m", "2h", "7d")]
    assert since == [9_999_910_000, 9_999_100_000, 9_992_800_000, 9_395_200_000]
    assert SinceType().convert("2026-11-25T08:00:00+00:00", None, None) == 1_795_593_600_000
    for text in ("soon", "5 m", "10w", "99999999999999999999s"):
        with pytest.raises(click.BadParameter, match="is no time"):
            SinceType().convert(text, None, None)


@pytest.mark.parametrize(
    ("chosen", "picks"),
    [
        (Filter(), True),
        (Filter(reason="NOT json"), True),
        (Filter(reason="limit"), False),
        (Filter(topic="task.assign"), True),
        (Filter(topic="assign", prefix="task."), True),
        (Filter(topic="assign"), False),
        (Filter(since_ms=2_000), True),
        (Filter(since_ms=2_001), False),
    ],
)
def test_filters(chosen: Filter, picks: bool) -> None:
    assert chosen.picks(letter()) is picks


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ([], "say which: PARTITION/OFFSET, or --reason, --topic, --since, or --all"),
        (["3/17", "--all", "--yes"], "say which"),
        (["3/17", "--reason", "x", "--yes"], "say which"),
        (["--all", "--since", "1h", "--yes"], "say which"),
        (["--all", "--yes", "--value-file", "-"], "--value-file mends one letter"),
        (["3/17", "3/18", "--yes", "--value-file", "-"], "--value-file mends one letter"),
        (["3/17"], "nobody can be asked here: give --yes, or --dry-run"),
        (["3-17", "--yes"], "is not PARTITION/OFFSET"),
        (["--since", "soon", "--yes"], "is no time"),
    ],
)
def test_wrong_usage_of_redrive(args: list[str], told: str) -> None:
    answer = call("redrive", *args)
    assert (answer.exit_code, answer.stdout) == (2, "")
    assert told in answer.stderr


@pytest.mark.parametrize("command", ["list", "show", "redrive"])
def test_every_command_has_an_example(command: str) -> None:
    answer = call(command, "--help")
    assert answer.exit_code == 0
    assert f"skalds-streams deadletter {command}" in answer.output


# -- reading -----------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_letters_are_read_by_spot_or_all_and_oldest_first() -> None:
    late, early = dead(input_record(), offset=2), dead(input_record(), offset=5)
    early = Record(early.topic, 1, 5, early.key, early.value, 1_500, early.headers)
    logs: Any = Logs(late, early)
    some = await read_letters(cluster(), logs, lambda _: True, None)
    assert [found.spot for found in some] == [(1, 5), (3, 2)]
    assert [found.spot for found in await read_letters(cluster(), logs, lambda _: True, [(3, 2)])] == [(3, 2)]
    assert await read_letters(cluster(), logs, lambda _: True, []) == []


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("spot", "told"),
    [
        ((3, 9), "there is no dead letter 3/9: partition 3 keeps offsets 1 to 5"),
        ((3, 0), "there is no dead letter 3/0: partition 3 keeps offsets 1 to 5"),
        ((3, 3), "there is no dead letter 3/3"),
        ((0, 0), "there is no dead letter 0/0: partition 0 is empty"),
        ((7, 0), "there is no dead letter 7/0: partition 7 does not exist, there are 4"),
    ],
)
async def test_a_letter_that_is_not_there_is_said_to_be_so(spot: tuple[int, int], told: str) -> None:
    logs: Any = Logs(dead(input_record(), offset=2), dead(input_record(), offset=5), begins={(TOPICS.deadletter, 3): 1})
    with pytest.raises(SkaldsError, match=f"{told}$"):
        await read_letters(cluster(), logs, lambda _: True, [spot])


@pytest.mark.anyio
async def test_too_many_letters_are_not_held_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(letters, "LETTERS_MOST", 2)
    logs: Any = Logs(*(dead(input_record(), offset=at) for at in range(3)))
    with pytest.raises(SkaldsError, match="more than 2 dead letters: choose with --since"):
        await read_letters(cluster(), logs, lambda _: True, None)


# -- the whole of a redrive, without a broker --------------------------------------------------------------------------


class Producer:
    """Stands for `redrive._Producer`: takes what it is told to take."""

    def __init__(self, _cluster: Cluster) -> None:
        self.is_silent = False

    async def send(self, item: Item, record: Record, value: bytes | None) -> Sent | str:
        if item.letter.offset == 1:
            return "not accepted: E"
        self.is_silent = item.letter.offset == 2
        return "no answer" if self.is_silent else Sent(TOPICS.assign, record.partition, 100 + record.offset)

    async def stop(self) -> None:
        pass


@pytest.mark.anyio
async def test_a_refused_one_holds_up_no_other_and_a_silent_broker_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redrive, "_Producer", Producer)
    records = [dead(input_record(), offset=at) for at in range(4)]
    items = [Item(read_letter(record), "send") for record in records]
    seen: list[tuple[str, int, int]] = []
    logs: Any = Logs(*records)
    answers = await redrive.send_again(cluster(), logs, items, None, lambda *args: seen.append(args))
    assert answers == {
        (3, 0): Sent(TOPICS.assign, 3, 100),
        (3, 1): "not accepted: E",
        (3, 2): "no answer",
        (3, 3): "not sent, as the broker had stopped to answer",
    }
    assert seen == [(TOPICS.assign, done, 4) for done in (1, 2, 3)]
    assert await redrive.send_again(cluster(), logs, [], None, lambda *_: None) == {}


def test_the_modules_are_found_by_the_command_line() -> None:
    assert import_module("skalds_streams.cli.deadletter").deadletter.name == "deadletter"
