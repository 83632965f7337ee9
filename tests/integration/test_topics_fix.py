"""`skalds-streams topics fix` against a real broker: what is shown, what is changed, and what is left."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import orjson
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from skalds_streams.topics import RECORD_BYTES, SEGMENT_BYTES
from tests.integration.system import PARTITIONS, ROOT, System, admin_of, until

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

CODE = "from skalds_streams.cli import main; main(prog_name='skalds-streams')"


async def call(system: System, *args: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `skalds-streams topics`."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("KAFKA_", "SKALDS_"))},
        "KAFKA_HOST": "127.0.0.1",
        "KAFKA_PORT": str(system.kafka_port),
        "SKALDS_TOPIC_PREFIX": system.prefix,
        "SKALDS_APP": "it",
    }
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-c", CODE, "topics", *args),
        stdout=pipe,
        stderr=pipe,
        cwd=ROOT,
        env=environment,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, out.decode(), err.decode()


async def config(admin: AIOKafkaAdminClient, topic: str) -> dict[str, Any]:
    [answer] = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    return {entry[0]: entry[1] for entry in answer.resources[0][4]}


async def test_settings_are_mended_and_nothing_else_is_touched(system: System) -> None:
    changelog, assign = system.topics.changelog, system.topics.assign
    async with admin_of(system) as admin:
        await admin.create_topics(
            [
                NewTopic(changelog, PARTITIONS, 1, topic_configs={"max.message.bytes": "1048588"}),
                NewTopic(assign, PARTITIONS, 1, topic_configs={"retention.ms": "1000", "compression.type": "zstd"}),
            ]
        )
        expected = {
            f"{changelog}: cleanup.policy: delete → compact (what must be kept would be deleted)",
            f"{changelog}: max.message.bytes: 1048588 → {RECORD_BYTES} (a large record is refused)",
            f"{changelog}: segment.bytes: 1073741824 → {SEGMENT_BYTES} (more is read than needed when it is read"
            " from its beginning)",
            f"{assign}: retention.ms: 1000 → 604800000 (what is older can't be replayed)",
            f"{assign}: message.timestamp.type: CreateTime → LogAppendTime (order between topics follows the"
            " publishers' clocks)",
            f"{system.topics.heartbeat}: missing → 1 partition, 1 replica",
            f"{system.topics.report}: missing → 6 partitions, 1 replica",
        }
        before = await config(admin, changelog)
        code, out, err = await call(system, "fix", "--dry-run")
        assert (code, err) == (0, "")
        assert expected <= set(out.splitlines())
        assert out.splitlines()[-1] == "nothing was changed: --dry-run"
        assert await config(admin, changelog) == before
        assert system.topics.heartbeat not in await admin.list_topics()

        assert (await call(system, "check"))[0] == 1
        code, out, err = await call(system, "fix")
        assert (code, err) == (0, "")
        assert expected <= set(out.splitlines())
        assert out.splitlines()[-1] == "mended: 9 topics"
        now = await config(admin, assign)
        assert (now["retention.ms"], now["compression.type"]) == ("604800000", "zstd")
        assert (await config(admin, changelog))["cleanup.policy"] == "compact"
        assert await call(system, "check") == (0, (await call(system, "check"))[1], "")
        assert await call(system, "fix") == (0, "nothing to mend\n", "")


async def test_a_number_of_partitions_is_left_to_a_person(system: System) -> None:
    assert (await call(system, "create"))[0] == 0
    async with admin_of(system) as admin:
        await admin.create_partitions({system.topics.history: NewPartitions(PARTITIONS + 1)})

        async def grown() -> bool:
            [described] = await admin.describe_topics([system.topics.history])
            return len(described["partitions"]) == PARTITIONS + 1

        await until(grown, "the topic has one more")
    code, out, err = await call(system, "fix")
    assert (code, out) == (1, "nothing to mend\n")
    assert err.startswith("Error: not mended, a person must do it:\n")
    assert f"delete this topic (kafka-topics.sh --delete --topic {system.topics.history})" in err
    code, out, err = await call(system, "fix", "-o", "json")
    doc = orjson.loads(out)
    assert (code, doc["ok"], doc["created"], doc["changed"]) == (1, False, [], [])
    assert [item["topic"] for item in doc["left"]] == [system.topics.history]
