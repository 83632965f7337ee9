"""Several brokers in one text: each client is told of all of them."""

from __future__ import annotations

import pytest

from skalds_streams.addresses import addresses
from skalds_streams.application import _options
from skalds_streams.errors import ConfigError
from skalds_streams.proxy import client, connection
from skalds_streams.proxy.connection import KafkaConfig
from skalds_streams.settings import Settings

THREE = "a, b:9093 ,[::1]:9094"
EACH = ("a:9092", "b:9093", "[::1]:9094")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("k", ("k:9092",)),
        ("k:1", ("k:1",)),
        ("::1", ("[::1]:9092",)),
        ("[::1]", ("[::1]:9092",)),
        ("a,b,", ("a:9092", "b:9092")),
        (THREE, EACH),
    ],
)
def test_hosts_with_and_without_ports(text: str, expected: tuple[str, ...]) -> None:
    assert addresses(text, 9092) == expected


@pytest.mark.parametrize("text", ["", ",", "k:", "k:x", ":1", "k:0", "k:65536", "a,b:no"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"host"):
        addresses(text, 9092)


def test_a_node_and_the_proxy_are_told_of_every_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_HOST", THREE)
    settings = Settings.load(_env_file=None)
    config = KafkaConfig(THREE)
    for options in (client.client_options(settings), connection.client_options(config)):
        assert options["bootstrap_servers"] == ",".join(EACH)
    assert _options(settings)["broker"] == [f"kafka://{address}" for address in EACH]


def test_a_wrong_port_is_a_clear_error_without_the_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_HOST", "kafka-1,kafka-2:s3cret")
    with pytest.raises(ConfigError, match=r"KAFKA_HOST: .*host or host:port") as raised:
        Settings.load(_env_file=None)
    assert "s3cret" not in str(raised.value)
    with pytest.raises(ValueError, match="host or host:port"):
        KafkaConfig("kafka-1,kafka-2:x")
