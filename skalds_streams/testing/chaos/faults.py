"""Does faults to a cluster and undoes them: one function a kind of target.

A fault has its target for itself until it is over. What is killed here is started again here, what is stopped is woken
up, so that a run that is broken off can be healed by `heal` alone.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence

from skalds_streams.testing.chaos import disk, processes
from skalds_streams.testing.chaos.clock import JUMP_S
from skalds_streams.testing.chaos.cluster import ChaosCluster, Node
from skalds_streams.testing.chaos.plan import Fault

DELAY_S = 0.3
RESTART_S = 0.2


class Faults:
    """See the module. `note`: told what is done, one line each."""

    def __init__(self, cluster: ChaosCluster, note: Callable[[str], None]) -> None:
        self._cluster, self._note = cluster, note
        self._busy: set[str] = set()
        self.done: dict[str, int] = {}
        """Kind → how many were done."""

    @property
    def total(self) -> int:
        return sum(self.done.values())

    async def do(self, fault: Fault) -> None:
        """From its beginning to its end. Nothing is done when no target of its kind is free."""
        verb, _, what = fault.kind.partition(" ")
        if what in ("broker", "redis"):
            await self._server(fault, verb, what)
            return
        node = await self._choose(fault, what)
        if node is None:
            self._note(f"#{fault.number} {fault.kind}: no target")
            return
        node.busy = True
        try:
            await self._node(fault, verb, what, node)
        finally:
            node.busy = False

    async def _choose(self, fault: Fault, what: str) -> Node | None:
        if what == "coordinator":
            return await self._cluster.coordinator()
        free = [node for node in self._cluster.nodes if node.runs and not node.busy]
        if what == "host":
            free = [node for node in free if self._pids(what, node, fault.pick)]
        return free[int(fault.pick * len(free))] if free else None

    async def _node(self, fault: Fault, verb: str, what: str, node: Node) -> None:
        if what == "link":
            await self._link(fault, verb, node)
        elif what == "disk":
            await self._disk(fault, node)
        elif what == "clock":
            await self._clock(fault, node)
        elif verb == "restart":
            self._begun(fault, node.name)
            node.wanted = False
            code = await node.stop()
            self._note(f"#{fault.number} {node.name} ended with {code}")
            node.start()
            node.wanted = True
        else:
            pids = self._pids(what, node, fault.pick)
            if not pids:
                self._note(f"#{fault.number} {fault.kind} {node.name}: there is none")
                return
            await (self._kill if verb == "kill" else self._stop)(fault, what, node, pids)

    def _pids(self, what: str, node: Node, pick: float) -> list[int]:
        family = node.family()
        if what in ("skald", "coordinator"):
            return [item.pid for item in family[:1]]
        if what == "machine":
            return [item.pid for item in family]
        if what == "zygote":
            return [item.pid for item in family if item.is_zygote]
        hosts = [item.pid for item in family if item.is_host]
        return [hosts[int(pick * len(hosts))]] if hosts else []

    async def _kill(self, fault: Fault, what: str, node: Node, pids: Sequence[int]) -> None:
        self._begun(fault, f"{node.name} {list(pids)}")
        node.wanted = what in ("zygote", "host")
        processes.send(pids, signal.SIGKILL)
        if not node.wanted:
            node.kill()
            await asyncio.sleep(fault.lasts_s or RESTART_S)
            node.start()
            node.wanted = True

    async def _stop(self, fault: Fault, what: str, node: Node, pids: Sequence[int]) -> None:
        self._begun(fault, f"{node.name} {list(pids)}")
        processes.send(pids, signal.SIGSTOP)
        try:
            await asyncio.sleep(fault.lasts_s)
        finally:
            wake(pids)
        self._note(f"#{fault.number} {fault.kind} {node.name} is over")

    async def _link(self, fault: Fault, verb: str, node: Node) -> None:
        self._begun(fault, node.name)
        if verb == "drop":
            node.link.drop()
        elif verb == "delay":
            node.link.delay(DELAY_S)
        else:
            node.link.half_open()
        try:
            await asyncio.sleep(fault.lasts_s)
        finally:
            node.link.heal()
        self._note(f"#{fault.number} {fault.kind} {node.name} is over")

    async def _disk(self, fault: Fault, node: Node) -> None:
        self._begun(fault, node.name)
        try:
            until = asyncio.get_running_loop().time() + fault.lasts_s
            while asyncio.get_running_loop().time() < until:
                disk.fill(node.data_dir)
                await asyncio.sleep(0.1)
        finally:
            disk.empty(node.data_dir)
        self._note(f"#{fault.number} {fault.kind} {node.name} is over")

    async def _clock(self, fault: Fault, node: Node) -> None:
        """An hour forward or back, and right again at the end."""
        seconds = JUMP_S if fault.number % 2 else -JUMP_S
        self._begun(fault, f"{node.name} {seconds:+} s")
        node.clock.move(seconds)
        try:
            await asyncio.sleep(fault.lasts_s)
        finally:
            node.clock.move(0)
        self._note(f"#{fault.number} {fault.kind} {node.name} is over")

    async def _server(self, fault: Fault, verb: str, what: str) -> None:
        if what in self._busy:
            self._note(f"#{fault.number} {fault.kind}: no target")
            return
        self._busy.add(what)
        server = self._cluster.servers.kafka if what == "broker" else self._cluster.servers.redis
        try:
            self._begun(fault, "")
            if verb == "stop":
                server.pause()
                try:
                    await asyncio.sleep(fault.lasts_s)
                finally:
                    server.resume()
            else:
                await in_thread(server.kill if verb == "kill" else server.stop)
                await asyncio.sleep(fault.lasts_s)
                await in_thread(server.start)
            self._note(f"#{fault.number} {fault.kind} is over")
        finally:
            self._busy.discard(what)

    def _begun(self, fault: Fault, where: str) -> None:
        self.done[fault.kind] = self.done.get(fault.kind, 0) + 1
        self._note(f"#{fault.number} {fault.kind} {where} for {fault.lasts_s:g} s")


def wake(pids: Sequence[int]) -> None:
    """SIGCONT, to those of the stopped ones that are still there."""
    there = processes.processes()
    processes.send([pid for pid in pids if pid in there], signal.SIGCONT)


async def in_thread(call: Callable[[], None]) -> None:
    """Run it beside the loop. A cancellation waits until it is done: nobody else may touch a server meanwhile."""
    running = asyncio.ensure_future(asyncio.to_thread(call))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        await running
        raise


async def heal(cluster: ChaosCluster) -> None:
    """Undo whatever may be left of any fault: everything runs, everything is connected."""
    for node in cluster.nodes:
        node.link.heal()
        node.clock.move(0)
        disk.empty(node.data_dir)
        wake([item.pid for item in node.family()])
        node.wanted = True
    for server in cluster.servers.servers:
        if server.running:
            server.resume()
        else:
            await in_thread(server.start)
    for node in cluster.nodes:
        node.start()
