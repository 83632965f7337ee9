"""What is waited for at the start, and what is not."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from typing import Any

import aiohttp
import pytest
from aiokafka.errors import KafkaConnectionError, SaslAuthenticationFailed

from skalds_streams.devcluster.ports import free_port
from skalds_streams.errors import KafkaError, TopicError, UnreachableError
from skalds_streams.proxy import waiting as module
from skalds_streams.proxy.waiting import TURNED_AWAY_MOST, Waiting, until_answered
from skalds_streams.settings import Settings
from skalds_streams.web.waiting import waiting_page

pytestmark = pytest.mark.anyio
CLIENT = {"bootstrap_servers": "one:1,two:2"}


class Connection:
    """To a broker that answers, or hangs up."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error
        self.closed = False

    async def send(self, request: object) -> None:
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        self.closed = True


class Brokers:
    """What each look finds at an address: an error, or a connection. The last one stays."""

    def __init__(self, **found: Sequence[Exception | Connection]) -> None:
        self._found = {host: list(items) for host, items in found.items()}
        self.looks = 0

    async def connect(self, host: str, port: int, **options: Any) -> Connection:
        self.looks += 1
        items = self._found[host]
        item = items.pop(0) if len(items) > 1 else items[0]
        if isinstance(item, Exception):
            raise item
        return item


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0)


def attempt_after(failures: int, told: list[str | None], waiting: Waiting, last: Exception | None = None) -> Any:
    """An attempt that fails so often, and notes what is waited for then."""

    async def attempt() -> str:
        told.append(waiting.reason)
        if len(told) <= failures:
            raise UnreachableError("no Kafka broker answers")
        if last is not None:
            raise last
        return "done"

    return attempt


def refused() -> ConnectionRefusedError:
    return ConnectionRefusedError(111, "Connect call failed")


async def test_it_goes_on_when_one_of_several_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    brokers = Brokers(one=[refused()], two=[refused(), refused(), Connection()])
    monkeypatch.setattr(module, "create_conn", brokers.connect)
    waiting, told = Waiting(), list[str | None]()
    assert await until_answered(CLIENT, attempt_after(1, told, waiting), waiting) == "done"
    assert told[0] is None
    assert told[1] is not None
    assert told[1].startswith("no Kafka broker answers at one:1,two:2: ConnectionRefusedError")
    assert waiting.reason is None
    assert brokers.looks == 6


async def test_a_broker_that_answers_and_then_does_not_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "create_conn", Brokers(one=[Connection()], two=[Connection()]).connect)
    waiting, told = Waiting(), list[str | None]()
    assert await until_answered(CLIENT, attempt_after(3, told, waiting), waiting) == "done"
    assert told == [None, None, "no Kafka broker answers", "no Kafka broker answers"]


@pytest.mark.parametrize(
    "refusal", [SaslAuthenticationFailed("wrong password"), ssl.SSLCertVerificationError("self-signed")]
)
async def test_who_is_refused_does_not_wait(monkeypatch: pytest.MonkeyPatch, refusal: Exception) -> None:
    monkeypatch.setattr(module, "create_conn", Brokers(one=[refusal], two=[refused()]).connect)
    waiting = Waiting()
    client = {**CLIENT, "security_protocol": "SASL_PLAINTEXT", "sasl_plain_username": "me", "sasl_plain_password": "pw"}
    with pytest.raises(KafkaError, match="refuses a client with SASL_PLAINTEXT as user 'me'") as caught:
        await until_answered(client, attempt_after(9, [], waiting), waiting)
    assert not isinstance(caught.value, UnreachableError)
    assert "pw" not in str(caught.value).split()


async def test_a_broker_that_hangs_up_is_one_that_stops_or_wants_a_login(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client without a login is not told so: the broker hangs up."""
    hanging_up = Connection(KafkaConnectionError("closed"))
    waiting = Waiting()
    stops = [hanging_up] * (TURNED_AWAY_MOST - 1) + [refused(), Connection()]
    monkeypatch.setattr(module, "create_conn", Brokers(one=stops, two=[refused()]).connect)
    assert await until_answered(CLIENT, attempt_after(1, [], waiting), waiting) == "done"
    monkeypatch.setattr(module, "create_conn", Brokers(one=[hanging_up], two=[refused()]).connect)
    with pytest.raises(KafkaError, match=r"refuses a client with PLAINTEXT: .* want a login"):
        await until_answered(CLIENT, attempt_after(9, [], waiting), waiting)
    assert hanging_up.closed


async def test_any_other_error_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "create_conn", Brokers(one=[Connection()], two=[Connection()]).connect)
    waiting = Waiting()
    with pytest.raises(TopicError):
        await until_answered(CLIENT, attempt_after(1, [], waiting, TopicError("5 partitions")), waiting)
    assert waiting.reason is None


async def test_the_page_comes_with_the_wait_and_gives_its_port_back() -> None:
    port = free_port()
    settings, waiting = Settings(web_port=port, web_token="t0ken"), Waiting()
    for _ in range(2):  # the port is free again
        async with waiting_page(settings, waiting), aiohttp.ClientSession() as session:
            waiting.say("no Kafka broker answers at <here>")
            url, asking = f"http://127.0.0.1:{port}", {"Authorization": "Bearer t0ken"}
            answer = None
            while answer is None:
                try:
                    answer = await session.get(f"{url}/readyz", headers=asking)
                except aiohttp.ClientConnectionError:
                    continue
            assert (answer.status, await answer.json()) == (
                503,
                {"ready": False, "waits_for": "no Kafka broker answers at <here>"},
            )
            assert (await session.get(f"{url}/readyz")).status == 401
            assert (await session.get(f"{url}/healthz")).status == 200
            page = await session.get(f"{url}/tasks/x", headers=asking)
            assert (page.status, page.content_type) == (503, "text/plain")


async def test_without_a_free_port_there_is_no_page_and_no_error() -> None:
    port = free_port()
    settings, first, second = Settings(web_port=port), Waiting(), Waiting()
    async with waiting_page(settings, first), aiohttp.ClientSession() as session:
        first.say("one")
        while True:
            try:
                await session.get(f"http://127.0.0.1:{port}/healthz")
                break
            except aiohttp.ClientConnectionError:
                continue
        async with waiting_page(settings, second):
            second.say("two")
            answer = await session.get(f"http://127.0.0.1:{port}/readyz")
            assert (await answer.json())["waits_for"] == "one"
