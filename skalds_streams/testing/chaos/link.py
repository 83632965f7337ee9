"""One node's link to the broker: a TCP proxy whose connections can be cut, slowed down or held.

- drop: every connection is reset, and so is every new one.
- delay: each piece is passed on so much later, in both directions.
- half_open: connections are accepted and stay, nothing passes; what was sent meanwhile arrives afterwards, as it does
  in a network that retransmits.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

from skalds_streams.devcluster.ports import HOST

PIECE_BYTES = 64 * 1024


class Link:
    """From a port of ours to the broker's. `start` and `stop`, or `async with`, in one loop."""

    def __init__(self, port: int, broker_port: int) -> None:
        self.port, self.broker_port = port, broker_port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._dropped = False
        self._delay_s = 0.0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, HOST, self.port)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def __aenter__(self) -> Link:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def heal(self) -> None:
        """Let everything through again."""
        self._dropped, self._delay_s = False, 0.0
        self._flows.set()

    def drop(self) -> None:
        self._dropped = True
        for writer in tuple(self._writers):
            _reset(writer)

    def delay(self, seconds: float) -> None:
        self._delay_s = seconds

    def half_open(self) -> None:
        self._flows.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._dropped:
            _reset(writer)
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with suppress(asyncio.CancelledError, OSError):  # only `stop` cancels
            await self._flows.wait()
            to_broker = await asyncio.open_connection(HOST, self.broker_port)
            await self._pass_on((reader, writer), to_broker)
        writer.close()

    async def _pass_on(
        self,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        broker: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        writers = {client[1], broker[1]}
        self._writers |= writers
        ways = [
            asyncio.create_task(self._way(client[0], broker[1])),
            asyncio.create_task(self._way(broker[0], client[1])),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self._writers -= writers
            for writer in writers:
                writer.close()

    async def _way(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(PIECE_BYTES):
            if self._delay_s:
                await asyncio.sleep(self._delay_s)
            await self._flows.wait()
            writer.write(piece)
            await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # RST instead of FIN
    writer.transport.abort()
