"""KafkaProxy and KafkaAdmin against a real broker: upstream's snippet, receipts, refusals, reading, and every end."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRecord

from skalds_streams.errors import KafkaError, ProduceError, TopicError, UnreachableError
from skalds_streams.model.event import TaskEvent
from skalds_streams.proxy.kafka import KafkaAdmin, KafkaConfig, KafkaProxy, KafkaTopic

if TYPE_CHECKING:
    from skalds_streams.devcluster.cluster import DevCluster

pytestmark = pytest.mark.integration

ANSWER_S = 20.0
SNIPPET = """
from skalds_streams.proxy.kafka import KafkaProxy, KafkaConfig, KafkaTopic

kafka_proxy = KafkaProxy(KafkaConfig(host="localhost", port=9092))

from skalds_streams.model.event import TaskEvent
event = TaskEvent(taskIds=["task_123"], initiator="system_controller", recipient="skalds-1")
kafka_proxy.produce(KafkaTopic.TASK_ASSIGN, key="task_123", value=event.model_dump_json())

from skalds_streams.model.event import UpdateTaskWorkerEvent
update_event = UpdateTaskWorkerEvent(attachments=...)
kafka_proxy.produce(KafkaTopic.TASK_UPDATE_ATTACHMENT, key="task_123", value=update_event.model_dump_json())
"""


@pytest.fixture(autouse=True)
def leak_check(cluster: DevCluster) -> Iterator[None]:
    """Threads and descriptors are as many after a test as before."""
    assert cluster.kafka_port
    before = (threading.active_count(), len(os.listdir("/proc/self/fd")))
    yield
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == before


@pytest.fixture
def config(cluster: DevCluster) -> KafkaConfig:
    return KafkaConfig(cluster.kafka_host, cluster.kafka_port)


@pytest.fixture
def admin(config: KafkaConfig) -> Iterator[KafkaAdmin]:
    with KafkaAdmin(config) as made:
        yield made


@pytest.fixture
def topic(admin: KafkaAdmin) -> Iterator[str]:
    """A topic of this test's own, with 6 partitions."""
    name = f"proxy-{uuid.uuid4().hex[:8]}"
    admin.create_topic(name)
    yield name
    admin.delete_topic(name)


def read(config: KafkaConfig, topic: str, count: int) -> list[ConsumerRecord]:
    """The first `count` records of a topic, read by a client that is not ours."""

    async def collect() -> list[ConsumerRecord]:
        consumer = AIOKafkaConsumer(topic, bootstrap_servers=config.address, auto_offset_reset="earliest")
        await consumer.start()
        try:
            async with asyncio.timeout(ANSWER_S):
                return [await consumer.getone() for _ in range(count)]
        finally:
            await consumer.stop()

    return asyncio.run(collect())


def numbers_by_key(config: KafkaConfig, topic: str, count: int) -> dict[bytes, list[int]]:
    """Key → values as numbers, in the order of the log."""
    found: dict[bytes, list[int]] = {}
    for record in read(config, topic, count):
        found.setdefault(record.key, []).append(int(record.value))
    return found


def run_script(script: str, *, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    """Run it with all warnings on; every one of them would be on stderr."""
    command = [sys.executable, "-W", "default", "-c", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, cwd=Path.cwd())


# -- scripts that end without close ------------------------------------------------------------------------------------


def test_upstreams_snippet_with_only_the_package_name_changed(config: KafkaConfig, admin: KafkaAdmin):
    made = [name for name in ("task.assign", "task.update.attachment") if admin.create_topic(name)]
    reading = KafkaConfig(config.host, config.port, ["task.assign", "task.update.attachment"])
    with KafkaProxy(reading) as proxy:
        done = run_script(SNIPPET.replace('"localhost"', repr(config.host)).replace("9092", str(config.port)))
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        found = {record.topic: record for record in proxy.consume(timeout_s=2) if record.key == b"task_123"}
    event = TaskEvent.model_validate_json(found["task.assign"].value or b"")
    assert (event.task_ids, event.initiator, event.recipient) == (["task_123"], "system_controller", "skalds-1")
    assert found["task.update.attachment"].value == b'{"attachments":null}'
    for name in made:
        admin.delete_topic(name)


def test_a_script_that_ends_before_it_is_connected_still_delivers(config: KafkaConfig, topic: str):
    done = run_script(
        "from skalds_streams.proxy.kafka import KafkaProxy, KafkaConfig\n"
        f"proxy = KafkaProxy(KafkaConfig({config.host!r}, {config.port}), is_block=False)\n"
        f"for n in range(100): proxy.produce({topic!r}, f'k{{n % 3}}', str(n))\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(int(record.value) for record in read(config, topic, 100)) == list(range(100))


def test_a_script_that_can_not_deliver_ends_and_says_so():
    done = run_script(
        "from skalds_streams.proxy.kafka import KafkaProxy, KafkaConfig\n"
        "proxy = KafkaProxy(KafkaConfig('127.0.0.1', 1), is_block=False, delivery_timeout_s=1)\n"
        "proxy.produce('topic', 'key', 'value')\n"
    )
    assert done.returncode == 0
    assert "1 records were not delivered; the first: record 'key' for topic topic" in done.stderr
    assert "Unclosed" not in done.stderr


def test_a_fork_is_told_to_make_its_own(config: KafkaConfig):
    done = run_script(
        "import os, sys, warnings\n"
        "warnings.simplefilter('ignore', DeprecationWarning)\n"  # from Python 3.12 on: fork with threads
        "from skalds_streams.proxy.kafka import KafkaProxy, KafkaConfig\n"
        f"proxy = KafkaProxy(KafkaConfig({config.host!r}, {config.port}))\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    try: proxy.produce('topic', 'key', 'value')\n"
        "    except Exception as error: print(type(error).__name__, error, flush=True)\n"
        "    sys.exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("KafkaError made by process")


# -- no broker ---------------------------------------------------------------------------------------------------------


def test_an_unreachable_broker_is_an_error_within_the_bound():
    began = time.monotonic()
    with pytest.raises(
        UnreachableError, match=r"no Kafka broker answers at 127\.0\.0\.1:1 within 1\.5 s: .*Connect call failed"
    ):
        KafkaProxy(KafkaConfig("127.0.0.1", 1), connect_timeout_s=1.5)
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:1 within 0\.5 s"):
        KafkaAdmin(KafkaConfig("127.0.0.1", 1), connect_timeout_s=0.5)
    assert time.monotonic() - began < 4


def test_what_listens_but_never_answers_is_an_error_within_the_bound():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        began = time.monotonic()
        with pytest.raises(UnreachableError, match=f"127.0.0.1:{port} within 1 s"):
            KafkaProxy(KafkaConfig("127.0.0.1", port), connect_timeout_s=1)
        assert time.monotonic() - began < 5


def test_a_broker_that_refuses_the_login_is_told_from_none(config: KafkaConfig):
    with pytest.raises(
        UnreachableError,
        match="something listens there, but does not serve a Kafka client with SASL_PLAINTEXT as user 'somebody'",
    ) as caught:
        KafkaProxy(KafkaConfig(config.host, config.port, username="somebody", password="s3cret"), connect_timeout_s=3)
    assert "s3cret" not in str(caught.value)


def test_a_record_waits_for_the_connection_and_no_longer_than_its_time():
    with KafkaProxy(KafkaConfig("127.0.0.1", 1), is_block=False, delivery_timeout_s=0.5) as proxy:
        assert proxy.producer is None
        receipt = proxy.produce("topic", "key", "value")
        with pytest.raises(ProduceError, match=r"not sent after 0\.5 s: no Kafka broker at 127\.0\.0\.1:1"):
            receipt.result(timeout=ANSWER_S)


# -- sending -----------------------------------------------------------------------------------------------------------


def test_what_is_produced_is_what_is_read(config: KafkaConfig, topic: str):
    event = TaskEvent(taskIds=["task_123"])
    with KafkaProxy(config) as proxy:
        assert (proxy.host, proxy.port, proxy.producer, proxy.consumer) == (config.host, config.port, proxy, None)
        before = time.time_ns() // 1_000_000
        delivery = proxy.produce(topic, "task_123", event, headers=[("trace", b"1")]).result(timeout=ANSWER_S)
        assert proxy.produce(topic, b"task_123", "text").result(timeout=ANSWER_S).offset == delivery.offset + 1
    assert (delivery.topic, delivery.partition, delivery.offset) == (topic, 4, 0)
    assert before <= delivery.timestamp_ms <= time.time_ns() // 1_000_000
    first, second = read(config, topic, 2)
    assert (first.key, first.value) == (b"task_123", event.model_dump_json(by_alias=True).encode())
    assert (first.partition, first.offset, first.timestamp) == (4, 0, delivery.timestamp_ms)
    assert (first.headers, second.headers, second.value) == ((("trace", b"1"),), (), b"text")


def test_records_of_a_topic_keep_their_order(config: KafkaConfig, topic: str):
    with KafkaProxy(config) as proxy:
        receipts = [proxy.produce(topic, f"k{n % 20}", str(n)) for n in range(3_000)]
        proxy.flush(timeout=ANSWER_S)
        assert all(receipt.done() for receipt in receipts)
    assert numbers_by_key(config, topic, 3_000) == {
        f"k{key}".encode(): list(range(key, 3_000, 20)) for key in range(20)
    }


def test_records_are_compressed(config: KafkaConfig, admin: KafkaAdmin):
    name = f"proxy-{uuid.uuid4().hex[:8]}"
    assert admin.create_topic(name, 1, config={"max.message.bytes": "2000"})
    with KafkaProxy(config) as proxy:
        proxy.produce(name, "key", "x" * 20_000).result(timeout=ANSWER_S)
    assert read(config, name, 1)[0].value == b"x" * 20_000
    admin.delete_topic(name)


def test_a_record_that_is_too_large_for_the_client_fails_its_receipt(config: KafkaConfig, topic: str):
    with KafkaProxy(config) as proxy:
        large, small = proxy.produce(topic, "key", b"x" * 2_000_000), proxy.produce(topic, "key", "small")
        with pytest.raises(ProduceError, match=r"record 'key' .* not accepted: .*MessageSizeTooLargeError"):
            large.result(timeout=ANSWER_S)
        assert small.result(timeout=ANSWER_S).offset == 0


@pytest.mark.parametrize(("limit", "size"), [(20_000, 30_000), (2_000, 3_000)])
def test_what_the_broker_refuses_harms_no_other_record(config: KafkaConfig, admin: KafkaAdmin, limit: int, size: int):
    """An idempotent producer of aiokafka's alone would lose every later record of the partition.

    The second limit is below the size of a batch: small records are refused with a large one beside them.
    """
    name = f"proxy-{uuid.uuid4().hex[:8]}"
    admin.create_topic(name, 3, config={"max.message.bytes": str(limit)})
    with KafkaProxy(config) as proxy:
        sent = {n: os.urandom(size) if n % 100 == 50 else b"%d" % n for n in range(600)}
        receipts = {n: proxy.produce(name, f"k{n % 7}", value) for n, value in sent.items()}
        failed = {n: error for n, receipt in receipts.items() if (error := receipt.exception(timeout=ANSWER_S))}
    assert list(failed) == [50, 150, 250, 350, 450, 550]
    assert all("not accepted: [Error 10] MessageSizeTooLargeError" in str(error) for error in failed.values())
    assert numbers_by_key(config, name, 594) == {
        f"k{key}".encode(): [n for n in range(key, 600, 7) if n not in failed] for key in range(7)
    }
    admin.delete_topic(name)


def test_a_topic_that_is_not_there_is_named(config: KafkaConfig, topic: str):
    with KafkaProxy(config) as proxy:
        lost, other = proxy.produce(f"{topic}-not", "key", "value"), proxy.produce(topic, "key", "value")
        assert other.result(timeout=2).offset == 0
        with pytest.raises(ProduceError, match=f"topic {topic}-not: not accepted: the broker has no such topic"):
            lost.result(timeout=ANSWER_S)


def test_a_failure_nobody_looked_at_is_raised_by_flush_and_by_close(config: KafkaConfig, topic: str):
    proxy = KafkaProxy(config)
    proxy.produce(topic, "large", b"x" * 2_000_000)
    with pytest.raises(ProduceError, match="1 records were not delivered; the first: record 'large'"):
        proxy.flush()
    proxy.flush()
    proxy.produce(topic, "large", b"x" * 2_000_000)
    with pytest.raises(ProduceError, match="1 records were not delivered"):
        proxy.close()
    proxy.close()
    with pytest.raises(KafkaError, match="closed"):
        proxy.produce(topic, "key", "value")


def test_a_receipts_callback_may_produce(config: KafkaConfig, topic: str):
    with KafkaProxy(config) as proxy:
        answered = threading.Event()

        def again(_: object) -> None:
            proxy.produce(topic, "key", "second").add_done_callback(lambda _: answered.set())

        proxy.produce(topic, "key", "first").add_done_callback(again)
        assert answered.wait(ANSWER_S)
    assert [record.value for record in read(config, topic, 2)] == [b"first", b"second"]


def test_receipts_can_be_awaited(config: KafkaConfig, topic: str):
    async def send(proxy: KafkaProxy) -> int:
        receipt = proxy.produce(topic, "task_123", "value")
        return (await asyncio.wait_for(asyncio.wrap_future(receipt), ANSWER_S)).partition

    with KafkaProxy(config) as proxy:
        assert asyncio.run(send(proxy)) == 4


# -- reading -----------------------------------------------------------------------------------------------------------


def test_a_reader_without_group_sees_what_comes_after_it_was_made(config: KafkaConfig, topic: str):
    with KafkaProxy(config) as proxy:
        proxy.produce(topic, "key", "before").result(timeout=ANSWER_S)
    with KafkaProxy(KafkaConfig(config.host, config.port, [topic])) as proxy:
        delivery = proxy.produce(topic, "key", "after").result(timeout=ANSWER_S)
        records = list(proxy.consume(timeout_s=1))
        assert [(record.key, record.value) for record in records] == [(b"key", b"after")]
        assert (records[0].topic, records[0].partition, records[0].offset, records[0].timestamp) == (
            topic,
            delivery.partition,
            delivery.offset,
            delivery.timestamp_ms,
        )
        proxy.produce(topic, "key", "later")
        assert proxy.consumer is not None
        assert next(proxy.consumer).value == b"later"


def test_a_group_goes_on_where_it_was(config: KafkaConfig, topic: str):
    reading = KafkaConfig(config.host, config.port, [topic], f"group-{topic}")
    with KafkaProxy(reading) as proxy:
        proxy.produce(topic, "key", "1").result(timeout=ANSWER_S)
        assert [record.value for record in proxy.consume(timeout_s=1)] == [b"1"]
    with KafkaProxy(config) as proxy:
        proxy.produce(topic, "key", "2").result(timeout=ANSWER_S)
    with KafkaProxy(reading) as proxy:
        assert [record.value for record in proxy.consume(timeout_s=1)] == [b"2"]


def test_reading_needs_a_topic_and_ends_with_close(config: KafkaConfig, topic: str):
    with KafkaProxy(config) as proxy, pytest.raises(KafkaError, match="consume_topic_list is empty"):
        proxy.consume()
    proxy = KafkaProxy(KafkaConfig(config.host, config.port, [topic]))
    threading.Timer(0.3, proxy.close).start()
    with pytest.raises(KafkaError, match="closed"):
        list(proxy.consume(timeout_s=None))


# -- topics ------------------------------------------------------------------------------------------------------------


def test_topics_are_created_listed_described_and_deleted(admin: KafkaAdmin):
    name = f"proxy-{uuid.uuid4().hex[:8]}"
    assert admin.admin is admin
    assert admin.create_topic(name, partitions=2, config={"cleanup.policy": "compact"})
    assert not admin.create_topic(name, partitions=9)
    assert name in admin.list_topics()
    assert not any(listed.startswith("__") for listed in admin.list_topics())
    described = admin.describe_topic(name)
    assert (described.name, described.partitions, described.replication_factor) == (name, 2, 1)
    assert described.config["cleanup.policy"] == "compact"
    admin.delete_topic(name)
    assert name not in admin.list_topics()


def test_what_can_not_be_done_to_a_topic_is_raised(admin: KafkaAdmin):
    with pytest.raises(TopicError, match="topic bad name was not created: InvalidTopicError"):
        admin.create_topic("bad name")
    with pytest.raises(TopicError, match="was not created: InvalidConfig"):
        admin.create_topic("proxy-bad", config={"cleanup.policy": "burn"})
    for call in (admin.describe_topic, admin.delete_topic):
        with pytest.raises(TopicError, match="there is no topic proxy-none"):
            call("proxy-none")
    assert "proxy-none" not in admin.list_topics()


def test_a_closed_admin_says_so(config: KafkaConfig):
    admin = KafkaAdmin(config)
    admin.disconnect()
    admin.disconnect()
    assert admin.admin is None
    with pytest.raises(KafkaError, match="closed"):
        admin.list_topics()


def test_default_topic_has_upstreams_partitions(admin: KafkaAdmin, topic: str):
    assert admin.describe_topic(topic).partitions == 6
    assert KafkaTopic.TASK_ASSIGN == "task.assign"
