"""What the Kafka proxy does without a broker: configuration, checks, receipts, bounds, a harmless import."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from aiokafka.partitioner import DefaultPartitioner

from skalds_streams import topics
from skalds_streams.core.partition import partition_of
from skalds_streams.errors import ProduceError
from skalds_streams.model.event import TaskEvent
from skalds_streams.proxy import delivery, redis_keys
from skalds_streams.proxy.connection import client_options
from skalds_streams.proxy.delivery import Backlog, Delivery, Outgoing, Receipt
from skalds_streams.proxy.kafka import KafkaConfig, KafkaTopic, _checked_headers, _key_bytes, _value_bytes

THERE = Delivery("topic", 4, 17, 1795528034781)


def outgoing(value: bytes = b"value") -> Outgoing:
    return Outgoing("topic", b"key", value, (), 0, Receipt("topic", "key"))


# -- names and configuration -------------------------------------------------------------------------------------------


def test_topic_names():
    assert KafkaTopic.TASK_ASSIGN == topics.TASK_ASSIGN == "task.assign"
    assert KafkaTopic.TASK_CANCEL == "task.cancel"
    assert KafkaTopic.TASK_UPDATE_ATTACHMENT == "task.update.attachment"
    assert KafkaTopic.TASK_WORKER_UPDATE == "taskworker.update"
    assert KafkaTopic.TESTING_PRODUCER == "testing"
    assert KafkaTopic.task_notify_process_update("t1") == "task.t1.update"


def test_the_default_partition_is_javas():
    key = b"task_123"
    assert DefaultPartitioner()(key, list(range(6)), list(range(6))) == partition_of(key.decode(), 6) == 4


@pytest.mark.parametrize(
    ("host", "port", "address"),
    [
        ("kafka", 19092, "kafka:19092"),
        (None, None, "localhost:9092"),
        ("  ", 0, "localhost:9092"),
        ("", -1, "localhost:9092"),
        ("kafka", "9093", "kafka:9093"),
        ("::1", 9092, "[::1]:9092"),
    ],
)
def test_blank_addresses_are_the_defaults(host: Any, port: Any, address: str):
    assert KafkaConfig(host, port).address == address


def test_config_keeps_upstreams_attributes_and_hides_the_password():
    config = KafkaConfig("h", 1, ["a"], "group", "user", "s3cret")
    assert (config.consume_topic_list, config.consume_group_id) == (["a"], "group")
    assert (config.username, config.password) == ("user", "s3cret")
    assert "s3cret" not in repr(config)
    assert KafkaConfig().consume_topic_list == []


def test_security_follows_user_name_and_host():
    assert "security_protocol" not in client_options(KafkaConfig("pkc-1.eu.confluent.cloud"))
    plain = client_options(KafkaConfig("kafka", username="u", password="p"))
    assert (plain["security_protocol"], plain["ssl_context"]) == ("SASL_PLAINTEXT", None)
    cloud = client_options(KafkaConfig("pkc-1.eu.confluent.cloud", username="u", password="p"))
    assert (cloud["security_protocol"], cloud["sasl_mechanism"]) == ("SASL_SSL", "PLAIN")
    assert cloud["ssl_context"].check_hostname


# -- what produce takes ------------------------------------------------------------------------------------------------


def test_values_and_keys_become_bytes():
    event = TaskEvent(taskIds=["a"])
    assert _value_bytes("é") == "é".encode()
    assert _value_bytes(b"raw") == b"raw"
    assert _value_bytes(event) == event.model_dump_json(by_alias=True).encode()
    assert _key_bytes("task_123") == _key_bytes(b"task_123") == b"task_123"


@pytest.mark.parametrize("key", [None, 3])
def test_a_record_needs_a_key(key: Any):
    with pytest.raises(TypeError, match="key must be a task id"):
        _key_bytes(key)


@pytest.mark.parametrize("value", [None, 3, {"a": 1}])
def test_a_value_must_be_text_bytes_or_a_model(value: Any):
    with pytest.raises(TypeError, match="value must be str, bytes or a pydantic model"):
        _value_bytes(value)


def test_headers_are_pairs_of_text_and_bytes():
    assert list(_checked_headers([("trace", b"1")])) == [("trace", b"1")]
    assert list(_checked_headers(None)) == []
    with pytest.raises(TypeError, match=r"not \(str, str\)"):
        _checked_headers([("trace", "1")])


# -- receipts and the backlog ------------------------------------------------------------------------------------------


def test_a_receipt_is_settled_once():
    receipt = Receipt("topic", "key")
    assert not receipt.cancel()
    receipt.deliver(THERE)
    receipt.fail("too late")
    assert receipt.result(timeout=0) == THERE


def test_a_failed_receipt_names_record_topic_and_cause():
    receipt, cause = Receipt("topic", "key"), ValueError("why")
    receipt.fail("not accepted", cause)
    with pytest.raises(ProduceError, match="record 'key' for topic topic: not accepted") as caught:
        receipt.result(timeout=0)
    assert caught.value.__cause__ is cause


def test_an_open_receipt_times_out_and_counts_as_not_seen():
    receipt = Receipt("topic", "key")
    with pytest.raises(TimeoutError):
        receipt.result(timeout=0)
    assert not receipt.seen


def test_failures_are_kept_until_somebody_has_seen_them():
    backlog, records = Backlog(), [outgoing() for _ in range(3)]
    for record in records:
        backlog.admit(record, timeout=0)
    assert backlog.receipts() == [record.receipt for record in records]
    records[0].receipt.deliver(THERE)
    records[1].receipt.fail("broken")
    records[2].receipt.fail("broken")
    assert records[1].receipt.exception() is not None
    assert backlog.receipts() == []
    assert backlog.take_failures() == [records[2].receipt]
    assert backlog.take_failures() == []


@pytest.mark.parametrize(("most", "value"), [("OPEN_RECORDS_MAX", b"v"), ("OPEN_BYTES_MAX", b"v" * 10)])
def test_the_backlog_is_bounded_and_says_so(monkeypatch: pytest.MonkeyPatch, most: str, value: bytes):
    monkeypatch.setattr(delivery, most, 1)
    backlog, first, second = Backlog(), outgoing(value), outgoing(value)
    backlog.admit(first, timeout=0)
    with pytest.raises(ProduceError, match=r"1 records .* wait for the broker, no more are taken"):
        backlog.admit(second, timeout=0)
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(backlog.admit, second, 10)
        first.receipt.deliver(THERE)
        waits.result(timeout=10)
    assert backlog.receipts() == [second.receipt]


# -- importing, Redis keys ---------------------------------------------------------------------------------------------


def test_importing_reads_no_setting_and_starts_nothing():
    script = (
        "import os, sys, threading, socket\n"
        "os.environ['KAFKA_PORT'] = 'not a number'\n"
        "def refuse(*args): raise AssertionError('connects')\n"
        "socket.socket.connect = refuse\n"
        "import skalds_streams.proxy.kafka, skalds_streams.model.event, skalds_streams.model.task\n"
        "assert threading.active_count() == 1\n"
        "assert 'skalds_streams.settings' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_redis_keys_are_upstreams():
    assert (redis_keys.SKALDS, redis_keys.SKALD_MODES) == ("skalds:hash", "skalds:mode:hash")
    assert redis_keys.skald_heartbeat("s1") == "skalds:s1:heartbeat"
    assert redis_keys.skald_classes("s1") == "skalds:s1:allow-task-class-name"
    assert redis_keys.skald_tasks("s1") == "skalds:s1:all-task"
    assert redis_keys.task_heartbeat("t1") == "task:t1:heartbeat"
    assert redis_keys.task_exception("t1") == "task:t1:exception"
    assert (redis_keys.HEARTBEAT_TTL_S, redis_keys.KEY_TTL_S) == (8, 3600)
    assert (redis_keys.TASK_SUCCEEDED, redis_keys.TASK_FAILED, redis_keys.TASK_CANCELLED) == (200, -1, -2)
