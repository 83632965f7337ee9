"""What a node that starts waits for: said in the log, and to whoever asks; and the wait for a broker.

After a power cut machines come up in any order, so a node waits for its broker for ever. A broker that is there and
does not take us as we are is no broker to wait for: that is a mistake in the settings, and ends the wait with an error.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import structlog
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import (
    AuthenticationFailedError,
    AuthenticationMethodNotSupported,
    IllegalSaslStateError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
from aiokafka.errors import KafkaError as ClientError
from aiokafka.protocol.metadata import MetadataRequest

from skalds_streams.errors import KafkaError, UnreachableError
from skalds_streams.proxy.connection import error_text

RETRY_S = 1.0
"""Pause between two looks."""
SAY_S = 60.0
"""How often the log says that we still wait."""
TURNED_AWAY_MOST = 3
"""Looks in a row at which a broker talks to us and then hangs up: once it may be one that just stops or starts."""
REFUSALS = (
    AuthenticationFailedError,
    AuthenticationMethodNotSupported,
    IllegalSaslStateError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
    ssl.SSLCertVerificationError,
)

log = structlog.get_logger(__name__)
Result = TypeVar("Result")


class Waiting:
    """What this process waits for before it can begin, if anything."""

    def __init__(self) -> None:
        self.reason: str | None = None
        """A sentence for people, without a full stop. None: it does not wait."""
        self.begun = asyncio.Event()

    def say(self, reason: str) -> None:
        """It waits for this now."""
        self.reason = reason
        self.begun.set()

    def over(self) -> None:
        """It goes on."""
        self.reason = None
        self.begun.clear()


class _TurnedAwayError(Exception):
    """A broker said which requests it knows, and hung up at the next one."""


async def until_answered(
    client: Mapping[str, Any], attempt: Callable[[], Awaitable[Result]], waiting: Waiting
) -> Result:
    """What `attempt` returns, made again until it does not raise UnreachableError. client: options of aiokafka.

    Raises KafkaError when a broker refuses us, and what else `attempt` raises.
    """
    try:
        return await attempt()
    except UnreachableError as error:
        reason = str(error)
    loop, address = asyncio.get_running_loop(), client["bootstrap_servers"]
    begun, said_at, turned_away = loop.time(), float("-inf"), 0
    try:
        while True:
            obstacles = await _obstacles(client)
            turned_away = turned_away + 1 if any(isinstance(item, _TurnedAwayError) for item in obstacles) else 0
            if obstacles:
                _check_refusals(client, obstacles, turned_away)
                reason = f"no Kafka broker answers at {address}: {'; '.join(map(_text, obstacles))}"
            else:
                try:
                    result = await attempt()
                except UnreachableError as error:
                    reason = str(error)
                else:
                    log.info("kafka.answers", address=address, waited_s=round(loop.time() - begun))
                    return result
            waiting.say(reason)
            if loop.time() - said_at >= SAY_S:
                said_at = loop.time()
                log.warning("kafka.waits", reason=reason, waited_s=round(said_at - begun))
            await asyncio.sleep(RETRY_S)
    finally:
        waiting.over()


def _check_refusals(client: Mapping[str, Any], obstacles: list[Exception], turned_away: int) -> None:
    for error in obstacles:
        if isinstance(error, REFUSALS) or (isinstance(error, _TurnedAwayError) and turned_away >= TURNED_AWAY_MOST):
            security, username = client.get("security_protocol", "PLAINTEXT"), client.get("sasl_plain_username")
            who = f" as user {username!r}" if username else ""
            raise KafkaError(
                f"a Kafka broker at {client['bootstrap_servers']} refuses a client with {security}{who}:"
                f" {_text(error)} (KAFKA_USERNAME, KAFKA_PASSWORD)"
            ) from None


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, _TurnedAwayError) else error_text(error)


async def _obstacles(client: Mapping[str, Any]) -> list[Exception]:
    """What keeps each address from answering. Empty when one of them answers."""
    options = {key: value for key, value in client.items() if key != "bootstrap_servers"}
    hosts = collect_hosts(client["bootstrap_servers"])
    found = await asyncio.gather(*(_obstacle(host, port, options) for host, port, _ in hosts))
    obstacles = [item for item in found if item is not None]
    return obstacles if len(obstacles) == len(found) else []


async def _obstacle(host: str, port: int, options: Mapping[str, Any]) -> Exception | None:
    try:
        connection = await create_conn(host, port, **options)
        try:
            await connection.send(MetadataRequest([]))
        except ClientError:
            return _TurnedAwayError("it hangs up at the first question, as brokers do that want a login")
        finally:
            connection.close()
    except (ClientError, OSError) as error:
        return error if str(error) else TimeoutError("it takes the connection and says nothing")
    return None
