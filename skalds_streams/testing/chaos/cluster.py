"""The system under test: broker, Redis, nodes as real `faust -A skalds_streams worker` processes behind a link of their
own, and beside it the witness.

Every process asks the kernel to die with this one, and carries a mark in its environment by which it is found again.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import aiohttp

import skalds_streams
from skalds_streams.devcluster import DevCluster
from skalds_streams.devcluster.ports import HOST, free_port
from skalds_streams.devcluster.process import LAUNCH_PATH
from skalds_streams.testing.chaos import processes
from skalds_streams.testing.chaos.clock import Clock
from skalds_streams.testing.chaos.link import Link
from skalds_streams.testing.witness import VARIABLE, Report, read_report
from skalds_streams.topics import Topics

SOURCE = Path(skalds_streams.__file__).parents[1]
MARK = "SKALDS_CHAOS_RUN"
APP = "chaos"
WORKERS = "skalds_streams.testing.verifiable"
STOP_S = 40.0
ANSWER_S = 2.0


def start_process(command: Sequence[str], *, log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """A process that dies with this one's main thread, which must be the caller."""
    tied = [sys.executable, "-I", "-S", str(LAUNCH_PATH), str(os.getpid()), *command]
    with log.open("ab") as output:
        return subprocess.Popen(  # noqa: S603  # our own modules
            tied,
            env=environment,
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


class Node:
    """One process of the system, with all that it starts."""

    def __init__(self, name: str, directory: Path, link: Link, clock: Clock, environment: dict[str, str]) -> None:
        self.name, self.link, self.clock = name, link, clock
        self.port = free_port()
        self.data_dir = directory / "data" / name
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self.log_path = directory / f"{name}.log"
        self.wanted = True
        """Whether it is to be started again when it has ended."""
        self.busy = False
        """A fault has its hands on it."""
        self.process: subprocess.Popen[bytes] | None = None
        self.environment = {
            **environment,
            **clock.environment,
            "KAFKA_HOST": HOST,
            "KAFKA_PORT": str(link.port),
            "SKALD_ID": name,
            "SKALDS_DATA_DIR": str(self.data_dir),
            "SKALDS_WEB_PORT": str(self.port),
        }

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        if not self.runs:
            faust = [sys.executable, "-m", "faust", "-A", "skalds_streams", "worker", "-l", "info"]
            self.process = start_process(faust, log=self.log_path, environment=self.environment)

    def family(self) -> list[processes.Process]:
        """Its processes, the main one first. Empty when that one is gone."""
        return processes.family(self.pid) if self.runs else []

    def kill(self) -> None:
        """SIGKILL to the main process; the others follow it by themselves."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    async def stop(self) -> int:
        """SIGTERM, and its exit code; -9 when it had to be killed after STOP_S."""
        if not self.runs or self.process is None:
            return 0
        self.process.send_signal(signal.SIGTERM)
        deadline = asyncio.get_running_loop().time() + STOP_S
        while self.process.poll() is None:
            if asyncio.get_running_loop().time() > deadline:
                self.kill()
            await asyncio.sleep(0.05)
        return int(self.process.returncode)

    async def get(self, path: str) -> tuple[int, str]:
        """(status, text); 0 when nobody answers in time."""
        try:
            async with (
                asyncio.timeout(ANSWER_S),
                aiohttp.ClientSession() as session,
                session.get(f"http://{HOST}:{self.port}{path}") as answer,
            ):
                return answer.status, await answer.text()
        except (aiohttp.ClientError, OSError, TimeoutError):
            return 0, ""

    async def is_ready(self) -> bool:
        return (await self.get("/readyz"))[0] == 200

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""


class ChaosCluster:
    """See the module. `start` and `stop` in one loop, in the main thread. `clock_library`: moves the nodes' clocks."""

    def __init__(
        self,
        directory: Path,
        names: Sequence[str],
        *,
        lease_ms: int,
        partitions: int = 6,
        clock_library: Path | None = None,
    ) -> None:
        self.directory, self._clock_library = directory, clock_library
        self.mark = f"{MARK}={secrets.token_hex(8)}"
        self.lease_s = lease_ms / 1000
        self.topics = Topics.named(app=APP, partitions=partitions)
        port, controller = free_port(), free_port()
        behind = [free_port() for _ in names]
        self.links = [Link(free_port(), to) for to in behind]
        self.servers = DevCluster(
            directory / "servers",
            kafka_port=port,
            redis_port=0,
            kafka_settings=listeners(port, controller, list(zip(behind, self.links, strict=True))),
        )
        self.socket_path, self.report_path = directory / "witness.sock", directory / "witness.json"
        self._witness: subprocess.Popen[bytes] | None = None
        self._lease_ms, self._partitions, self._names = lease_ms, partitions, names
        self.nodes: list[Node] = []

    @property
    def bootstrap(self) -> str:
        """The broker without any link."""
        return f"{HOST}:{self.servers.kafka_port}"

    @property
    def environment(self) -> dict[str, str]:
        """What every process of the run has."""
        name, _, token = self.mark.partition("=")
        return {
            **{key: value for key, value in os.environ.items() if not key.startswith(("SKALD", "KAFKA_", "REDIS_"))},
            name: token,
            VARIABLE: str(self.socket_path),
            "PYTHONPATH": str(SOURCE),
            "KAFKA_REPLICATION_FACTOR": "1",
            "KAFKA_TOPIC_PARTITIONS": str(self._partitions),
            "REDIS_HOST": HOST,
            "REDIS_PORT": str(self.servers.redis_port),
            "SKALDS_APP": APP,
            "SKALDS_WORKERS": WORKERS,
            "SKALDS_LEASE_MS": str(self._lease_ms),
        }

    async def start(self) -> None:
        """All of it; returns when every node is ready."""
        await asyncio.to_thread(self.servers.start)
        witness = [sys.executable, "-m", "skalds_streams.testing.witness"]
        witness += ["--socket", str(self.socket_path), "--report", str(self.report_path)]
        log = self.directory / "witness.log"
        self._witness = start_process(witness, log=log, environment=self.environment)
        while not self.report_path.exists():
            if self._witness.poll() is not None:
                raise RuntimeError(f"the witness does not start:\n{log.read_text()}")
            await asyncio.sleep(0.05)
        for name, link in zip(self._names, self.links, strict=True):
            await link.start()
            clock = Clock(self.directory / f"{name}.clock", self._clock_library)
            self.nodes.append(Node(name, self.directory, link, clock, self.environment))
        for node in self.nodes:
            node.start()
        for node in self.nodes:
            while not await node.is_ready():
                if not node.runs:
                    raise RuntimeError(f"{node.name} does not start:\n{node.log()[-3000:]}")
                await asyncio.sleep(0.1)

    async def coordinator(self) -> Node | None:
        """The node that decides for most partitions."""
        counts = {}
        for node in self.nodes:
            if node.runs and not node.busy:
                _, text = await node.get("/metrics")
                counts[node.name] = sum(
                    int(float(line.split()[-1]))
                    for line in text.splitlines()
                    if line.startswith("skalds_journals_open")
                )
        best = max(counts, key=lambda name: counts[name], default=None)
        return next((node for node in self.nodes if node.name == best), None)

    def seen(self) -> Report:
        """What the witness has seen so far; at most half a second old."""
        return read_report(self.report_path)

    def end_witness(self) -> Report:
        """Let it end, and read all that it saw."""
        if self._witness is not None and self._witness.poll() is None:
            self._witness.terminate()
            self._witness.wait(10)
        return self.seen()

    async def stop(self) -> None:
        """End whatever is left. Bounded in time."""
        for node in self.nodes:
            if node.runs:
                processes.send([item.pid for item in node.family()], signal.SIGKILL)
                node.kill()
        for link in self.links:
            await link.stop()
        if self._witness is not None and self._witness.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                self._witness.terminate()
                self._witness.wait(5)
        await asyncio.to_thread(self.servers.stop)


def listeners(port: int, controller: int, proxied: Sequence[tuple[int, Link]]) -> dict[str, str]:
    """Broker settings: it is reached at `port`, and behind each link, where it says that it is at the link's port."""
    names = ["PLAINTEXT", *(f"LINK{number}" for number in range(len(proxied)))]
    ports = [port, *(behind for behind, _ in proxied)]
    said = [port, *(link.port for _, link in proxied)]
    listening = [f"{name}://{HOST}:{at}" for name, at in zip(names, ports, strict=True)]
    return {
        "listeners": ",".join([*listening, f"CONTROLLER://{HOST}:{controller}"]),
        "advertised.listeners": ",".join(f"{name}://{HOST}:{at}" for name, at in zip(names, said, strict=True)),
        "listener.security.protocol.map": ",".join(f"{name}:PLAINTEXT" for name in [*names, "CONTROLLER"]),
        "inter.broker.listener.name": "PLAINTEXT",
        "controller.quorum.voters": f"1@{HOST}:{controller}",
    }
