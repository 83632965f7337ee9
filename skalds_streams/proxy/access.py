"""How any client of ours gets to the broker: address, patience, and who it says it is. The one place that knows.

SASL PLAIN when there is a user name, over TLS for confluent.cloud, as upstream, else in plain text inside a private
network. Reads no setting: the public proxy is made from its own KafkaConfig.
"""

from __future__ import annotations

import ssl
from typing import Any

REQUEST_TIMEOUT_MS = 10_000


def protocol(address: str, username: str) -> str:
    """Kafka's name of the security in use: PLAINTEXT, SASL_PLAINTEXT or SASL_SSL."""
    if not username:
        return "PLAINTEXT"
    return "SASL_SSL" if "confluent.cloud" in address else "SASL_PLAINTEXT"


def tls_context(address: str, username: str) -> ssl.SSLContext | None:
    """The system's certificates where TLS is used, else None."""
    return ssl.create_default_context() if protocol(address, username) == "SASL_SSL" else None


def access_options(address: str, username: str, password: str) -> dict[str, Any]:
    """Keyword arguments for AIOKafkaConsumer, AIOKafkaProducer and AIOKafkaAdminClient. address: host:port, or
    several with commas between.
    """
    options: dict[str, Any] = {"bootstrap_servers": address, "request_timeout_ms": REQUEST_TIMEOUT_MS}
    if username:
        options |= {
            "security_protocol": protocol(address, username),
            "ssl_context": tls_context(address, username),
            "sasl_mechanism": "PLAIN",
            "sasl_plain_username": username,
            "sasl_plain_password": password,
        }
    return options
