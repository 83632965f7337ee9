"""Nodes and the public proxy get to a broker in the same way."""

from __future__ import annotations

from typing import Any

import pytest

from skalds_streams.application import _credentials
from skalds_streams.proxy import client, connection
from skalds_streams.proxy.connection import KafkaConfig
from skalds_streams.settings import Settings


@pytest.mark.parametrize(
    ("host", "user", "protocol"),
    [("broker", "", None), ("broker", "me", "SASL_PLAINTEXT"), ("pkc-1.eu.confluent.cloud", "me", "SASL_SSL")],
)
def test_a_node_and_the_proxy_have_the_same_options(host: str, user: str, protocol: str | None) -> None:
    settings = Settings.load(kafka_host=host, kafka_port=9093, kafka_username=user, kafka_password="pw", _env_file=None)
    ours: dict[str, Any] = client.client_options(settings)
    theirs = connection.client_options(KafkaConfig(host, 9093, username=user, password="pw"))
    tls = protocol == "SASL_SSL"
    for options in (ours, theirs):
        assert (options.pop("ssl_context", None) is not None) == tls
    assert ours == theirs
    assert (ours["bootstrap_servers"], ours.get("security_protocol")) == (f"{host}:9093", protocol)
    faust = _credentials(settings)
    assert (faust is not None, getattr(faust, "ssl_context", None) is not None) == (bool(user), tls)
