"""Dead letters on a real broker with a real node: seen, mended, sent again, and never twice without a word."""

from __future__ import annotations

import asyncio
import os
import pty
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
import structlog
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.structs import TopicPartition
from click.testing import CliRunner

from skalds_streams.cli import main
from skalds_streams.cli.options import Options
from skalds_streams.cli.redrive import carry_out, make_plan
from skalds_streams.core.partition import partition_of
from tests.integration.system import PARTITIONS, ROOT, Node, System, until

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

BROKEN = b'{"taskIds": ["t"], "tasks": [{"id": "t", "className": "Idle", "attachments": {"password": "canary-1"}}'
MENDED = {"taskIds": ["t"], "tasks": [{"id": "t", "className": "Idle", "source": "test"}]}
MANY = 400


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@dataclass(frozen=True, slots=True)
class Said:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str

    @property
    def doc(self) -> Any:
        return orjson.loads(self.out)


def environment(system: System) -> dict[str, str]:
    return {
        "KAFKA_HOST": "127.0.0.1",
        "KAFKA_PORT": str(system.kafka_port),
        "SKALDS_APP": "it",
        "SKALDS_TOPIC_PREFIX": system.prefix,
    }


async def call(system: System, *args: str) -> Said:
    """Run `skalds-streams deadletter …` in a thread of this process."""
    runner = CliRunner(env=environment(system))
    done = await asyncio.to_thread(runner.invoke, main, ["deadletter", *args])
    return Said(done.exit_code, done.stdout, done.stderr)


async def start(system: System, *args: str, stdin: int = asyncio.subprocess.DEVNULL) -> asyncio.subprocess.Process:
    """The same as a process of its own."""
    code = "from skalds_streams.cli import main; main(prog_name='skalds-streams')"
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, "deadletter", *args),
        env={**os.environ, **environment(system), "PYTHONPATH": str(ROOT)},
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def letters(system: System, count: int) -> list[Any]:
    """The letters, once there are so many."""

    async def all_there() -> list[Any]:
        found = await system.records(system.topics.deadletter)
        return found if len(found) >= count else []

    return await until(all_there, f"{count} dead letters")


async def running(system: System, **environment: str) -> Node:
    node = system.node("a", **environment)
    node.start()
    await node.ready()
    return node


async def copies(system: System, topic: str) -> Counter[str]:
    """Letter → how often its event is on the topic again."""
    return Counter(
        value.decode()
        for record in await system.records(topic)
        for name, value in record.headers
        if name == "redrive.of"
    )


async def test_a_letter_is_seen_mended_and_sent_again_once(system: System, tmp_path: Path) -> None:
    topics = system.topics
    await running(system)
    assert system.producer is not None
    await system.producer.send_and_wait(topics.assign, BROKEN, key=b"t", headers=[("trace", b"1"), ("token", b"tk-7")])
    (letter,) = await letters(system, 1)
    spot, source = f"{letter.partition}/{letter.offset}", f"{topics.assign}/{letter.partition}@0"

    said = await call(system, "list")
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines()[1].split()[0] == spot
    assert source in said.out
    assert said.out.splitlines()[-1] == "1 dead letter"
    (doc,) = (await call(system, "list", "--topic", "task.assign", "--since", "5m", "-o", "json")).doc["letters"]
    assert (doc["key"], doc["size"], doc["redrives"]) == ("t", len(BROKEN), 0)
    assert (await call(system, "list", "--reason", "limit", "-o", "json")).doc == {"letters": []}

    shown = await call(system, "show", spot)
    for part in (
        "reason        not JSON: ",
        "header trace  1",
        "header token  ***",
        f"value: no JSON, {len(BROKEN)} bytes",
        "7b 22",
    ):
        assert part in shown.out
    assert "canary" not in said.out + shown.out + (await call(system, "show", spot, "-o", "json")).out
    assert (await call(system, "show", spot, "--raw")).out.encode() == BROKEN
    missing = await call(system, "show", f"{letter.partition}/99")
    assert (missing.code, missing.err.startswith("Error: there is no dead letter ")) == (1, True)

    foretold = await call(system, "redrive", spot, "--dry-run")
    assert (foretold.code, "; it will come back: not JSON: " in foretold.out) == (0, True)
    fixed = tmp_path / "fixed.json"
    fixed.write_bytes(BROKEN)
    refused = await call(system, "redrive", spot, "--yes", "--value-file", str(fixed))
    assert (refused.code, refused.out) == (1, "")
    assert refused.err.startswith("Error: a coordinator would not understand the new value either: not JSON")
    assert len(await system.records(topics.assign)) == 1, "nothing was sent so far"

    fixed.write_bytes(orjson.dumps(MENDED))
    sent = await call(system, "redrive", spot, "--yes", "--value-file", str(fixed))
    copy = f"{topics.assign}/{letter.partition}@1"
    assert (sent.code, sent.out, sent.err) == (0, f"{spot}: sent again as {copy}\n", "")
    row = await system.status("t", "Running", epoch=1)
    assert row["epoch"] == 1
    assert (await system.history("t"))[0]["why"]["reason"] == f"redrive of {topics.deadletter}/{spot.replace('/', '@')}"
    _, event = await system.records(topics.assign)
    assert (event.key, orjson.loads(event.value)) == (b"t", MENDED)
    assert [name for name, _ in event.headers] == ["trace", "token", "redrive.of", "redrive.count"]
    assert dict(event.headers)["redrive.count"] == b"1"

    again = await call(system, "redrive", spot, "--yes")
    assert (again.code, again.err) == (0, "")
    assert again.out.startswith(f"{spot}: skipped: sent again before, as {copy} at ")
    assert len(await system.records(topics.assign)) == 2
    assert copy in (await call(system, "list", "--redriven")).out
    twice = await call(system, "redrive", spot, "--again", "--yes", "-o", "json")
    assert (twice.code, twice.doc["letters"][0]["result"], twice.doc["letters"][0]["redrive_count"]) == (0, "sent", 2)
    second = (await letters(system, 2))[-1]
    doc = (await call(system, "list", "-o", "json")).doc["letters"][-1]
    assert (doc["offset"], doc["redrives"]) == (second.offset, 2), "unmended it came back, and knows how often"


async def test_letters_of_a_limit_that_was_too_low_go_again_after_it_is_raised(system: System) -> None:
    node = await running(system, SKALDS_MAX_IDS_PER_EVENT="1")
    for number in range(12):
        ids = [f"a-{number}", f"b-{number}"]
        await system.send(system.topics.cancel, {"taskIds": ids}, key=ids[0])
    await system.send(system.topics.cancel, b"{", key="x")
    await letters(system, 13)
    assert await node.stop() == 0
    node.environment["SKALDS_MAX_IDS_PER_EVENT"] = "100"
    node.start()
    await node.ready()
    said = await call(system, "redrive", "--reason", "skalds_max_ids", "--yes")
    assert (said.code, said.err, len(said.out.splitlines())) == (0, "", 12)
    for number in range(12):
        for task_id in (f"a-{number}", f"b-{number}"):
            await system.status(task_id, "Cancelled", revision=1)
    assert set((await copies(system, system.topics.cancel)).values()) == {1}
    rest = await call(system, "redrive", "--all", "--yes", "-o", "json")
    assert Counter(doc["result"] for doc in rest.doc["letters"]) == {"skipped": 12, "sent": 1}
    assert len(await letters(system, 14)) == 14, "what nobody mends comes back"


async def test_a_redrive_that_is_killed_goes_on_where_it_was(system: System) -> None:
    topic = system.topics.update
    await running(system)
    await asyncio.gather(*(system.send(topic, b"[%d]" % number, key=f"k{number}") for number in range(MANY)))
    await letters(system, MANY)
    process = await start(system, "redrive", "--topic", "task.update.attachment", "--yes")
    await until(lambda: _some(system, topic), "some were sent again")
    process.kill()
    await process.communicate()
    before = await copies(system, topic)
    assert 0 < len(before) < MANY, "it was killed in the middle"
    said = await call(system, "redrive", "--topic", "task.update.attachment", "--since", "10m", "--yes", "-o", "json")
    results = Counter(doc["result"] for doc in said.doc["letters"] if doc["redrives"] == 0)
    assert (said.code, results["skipped"], results["sent"]) == (0, len(before), MANY - len(before))
    await letters(system, 2 * MANY)
    after = await copies(system, topic)
    first = {f"{system.topics.deadletter}/{doc['partition']}@{doc['offset']}" for doc in said.doc["letters"]}
    assert {of: count for of, count in after.items() if of in first} == dict.fromkeys(first, 1)


async def _some(system: System, topic: str) -> bool:
    return len(await copies(system, topic)) > 0


async def test_who_else_may_have_sent_it(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody without a yes, somebody at the same time, or nobody can tell."""
    topic, number = system.topics.cancel, partition_of("t", PARTITIONS)
    await running(system)
    await system.send(topic, b"{", key="t")
    (letter,) = await letters(system, 1)
    spot = (letter.partition, letter.offset)

    assert await asked(system, b"n\n") == 1
    assert len(await copies(system, topic)) == 0
    for name, value in environment(system).items():
        monkeypatch.setenv(name, value)
    plan = await make_plan(Options(), lambda _: True, [spot], None, again=False)
    assert await asked(system, b"y\n") == 0
    assert (await carry_out(plan))[spot] == f"not sent: somebody else has just sent it, as {topic}/{number}@1"

    await letters(system, 2)
    admin = AIOKafkaAdminClient(bootstrap_servers=system.bootstrap)
    await admin.start()
    await admin.delete_records({TopicPartition(topic, number): RecordsToDelete(before_offset=2)})
    await admin.close()
    said = await call(system, "redrive", f"{number}/{letter.offset}", "--yes")
    assert (said.code, said.out, "nobody can tell whether it was sent again" in said.err) == (1, "", True)
    assert (await call(system, "redrive", f"{number}/{letter.offset}", "--yes", "--again")).code == 0
    assert await copies(system, topic) == {f"{system.topics.deadletter}/{number}@{letter.offset}": 1}
    await letters(system, 3)


async def asked(system: System, typed: bytes) -> int:
    """The exit code of a redrive of everything, at a terminal, with this for an answer."""
    ours, theirs = pty.openpty()
    try:
        process = await start(system, "redrive", "--all", stdin=theirs)
        os.write(ours, typed)
        out, err = await asyncio.wait_for(process.communicate(), 30)
    finally:
        os.close(ours)
        os.close(theirs)
    assert f"Send 1 event again: 1 to {system.topics.cancel}? They count as sent now." in err.decode(), (out, err)
    return process.returncode or 0
