"""A TCP proxy before the broker that knows the ends of transactions: a test may hold one back on its way to the broker,
or the broker's answer to it, for as long as it likes, or never let it through.

    proxy.before_request = hook        # await hook(end), then the request goes on to the broker
    proxy.before_answer = hook         # await hook(end), then the answer goes on to the client; Cut: it never does

Everything else passes at once, but what is behind a held request on the same connection: Kafka answers in order. A held
request reaches the broker also when its client has long given up, as one that waits in a network does.

The broker tells its clients where it is, so a client that is to go through the proxy must ask a listener of its own,
which says that it is at the proxy's address: `listeners`.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from skalds_streams.devcluster.ports import HOST, free_port

END_TXN = 26
END_TXN_VERSION_MOST = 2
"""Later versions have a compact header, which this proxy can't read."""


@dataclass(slots=True)
class EndTxn:
    """One request to end a transaction. `error`: the broker's answer, 0 is success, None is none yet."""

    transactional_id: str
    committed: bool
    error: int | None = None
    hang_up: Callable[[], None] = lambda: None
    """Ends the client's connection; what it has sent goes on to the broker."""

    @property
    def partition(self) -> int:
        """The journal's, whose transaction it is."""
        return int(self.transactional_id.rpartition("-")[2])


class Cut(Exception):
    """Raised by a hook: the connection ends here, on both sides."""


Hook = Callable[[EndTxn], Awaitable[None]]


async def pass_on(end: EndTxn) -> None:
    """The hook that does nothing."""


def listeners(port: int, behind_proxy: int, proxy: int) -> dict[str, str]:
    """Broker settings: at `port` it is reached directly; at `behind_proxy` it says that it is at the port `proxy`."""
    controller = free_port(avoid=(port, behind_proxy))
    return {
        "listeners": (f"PLAINTEXT://{HOST}:{port},PROXIED://{HOST}:{behind_proxy},CONTROLLER://{HOST}:{controller}"),
        "advertised.listeners": f"PLAINTEXT://{HOST}:{port},PROXIED://{HOST}:{proxy}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "controller.quorum.voters": f"1@{HOST}:{controller}",
    }


class TcpProxy:
    """Passes connections on to the broker's port `behind_proxy`. `ends`: every end of a transaction that it saw."""

    def __init__(self, behind_proxy: int) -> None:
        self.before_request: Hook = pass_on
        self.before_answer: Hook = pass_on
        self.ends: list[EndTxn] = []
        self._behind_proxy = behind_proxy
        self._connections: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def listening(self, listener: socket.socket) -> AsyncIterator[TcpProxy]:
        """Serve what connects to `listener`, which stays open; every connection ends with the block."""
        server = await asyncio.start_server(self._accept, sock=listener.dup())
        try:
            yield self
        finally:
            server.close()
            for task in self._connections:
                task.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        with suppress(asyncio.CancelledError):  # only by the end of `listening`
            try:
                with suppress(OSError):
                    to_broker = await asyncio.open_connection(HOST, self._behind_proxy)
                    await _Connection(self, (reader, writer), to_broker).run()
            finally:
                writer.close()


class _Connection:
    """One client's connection and ours to the broker."""

    def __init__(
        self,
        proxy: TcpProxy,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        broker: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._proxy = proxy
        self._from_client, self._to_client = client
        self._from_broker, self._to_broker = broker
        self._unanswered: dict[int, EndTxn] = {}
        self._all_answered = asyncio.Event()
        self._all_answered.set()

    async def run(self) -> None:
        """Until either side ends the connection, and the last end of a transaction on it is answered."""
        requests, answers = asyncio.create_task(self._requests()), asyncio.create_task(self._answers())
        try:
            await asyncio.wait({requests, answers}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (requests, answers):
                task.cancel()
            await asyncio.gather(requests, answers, return_exceptions=True)  # Cut, or the connection is lost
            self._to_broker.close()

    async def _requests(self) -> None:
        with suppress(asyncio.IncompleteReadError):
            while True:
                frame = await _frame(self._from_client)
                end = self._end_of_transaction(frame)
                if end is not None:
                    await self._proxy.before_request(end)
                self._to_broker.write(frame)
                await self._to_broker.drain()
        await self._all_answered.wait()  # the client has gone, what it sent has not

    async def _answers(self) -> None:
        with suppress(asyncio.IncompleteReadError):
            while True:
                frame = await _frame(self._from_broker)
                (correlation,) = struct.unpack_from(">i", frame, 4)
                end = self._unanswered.pop(correlation, None)
                if end is not None:
                    (end.error,) = struct.unpack_from(">h", frame, 12)  # after the time that it was throttled
                    await self._proxy.before_answer(end)
                    if not self._unanswered:
                        self._all_answered.set()
                with suppress(OSError):  # a client that has gone
                    self._to_client.write(frame)
                    await self._to_client.drain()

    def _end_of_transaction(self, frame: bytes) -> EndTxn | None:
        key, version, correlation, length = struct.unpack_from(">hhih", frame, 4)
        if key != END_TXN:
            return None
        assert version <= END_TXN_VERSION_MOST, f"EndTxn of version {version}"
        (length_of_id,) = struct.unpack_from(">h", frame, at := 14 + max(0, length))
        transactional_id = frame[at + 2 : at + 2 + length_of_id].decode()
        end = EndTxn(transactional_id, committed=frame[-1] == 1, hang_up=self._to_client.close)
        self._proxy.ends.append(end)
        self._unanswered[correlation] = end
        self._all_answered.clear()
        return end


async def _frame(reader: asyncio.StreamReader) -> bytes:
    """A request or an answer, its length before it."""
    head = await reader.readexactly(4)
    return head + await reader.readexactly(int.from_bytes(head, "big"))
