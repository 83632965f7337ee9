"""What a run has shown: the numbers of its last line, and every reason for which it fails."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from skalds_streams.testing import ledger
from skalds_streams.testing.chaos.cluster import ChaosCluster
from skalds_streams.testing.lint import Logs
from skalds_streams.testing.verify import findings, settled
from skalds_streams.testing.witness import Report

ACTS_LEAST_A_TASK_S = 1.0
"""Acts a second for each task whose class acts all the time; undisturbed it is 20."""
FAULTS_LEAST_SHARE = 0.4
"""Of one fault a lease."""
LOST_RULES = ("no applied command is lost", "what was acknowledged is in the log", "what was acknowledged is applied")
REPLAY = "from skalds_streams.cli import main; main()"
REPLAY_S = 300.0


@dataclass(slots=True)
class Outcome:
    """One run. `failures`: why it fails, empty when it does not."""

    seed: int
    lease_ms: int
    seconds: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)
    acts: int = 0
    runs: int = 0
    deaths: int = 0
    overlaps: int = 0
    lost: int = 0
    margin_ms: float | None = None
    margin_elsewhere_ms: float | None = None
    longest_gap_ms: float | None = None
    commands: int = 0
    self_ended: dict[str, int] = field(default_factory=dict)
    """Nodes that ended by themselves, with the exit code, and were started again."""
    left_out: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def line(self) -> str:
        """The last line of a run."""
        margin = "none" if self.margin_ms is None else f"{self.margin_ms:.0f}"
        return f"faults: {sum(self.faults.values())}, overlaps: {self.overlaps}, lost: {self.lost}, margin_ms: {margin}"

    def take_report(self, report: Report, tasks: int, lease_s: float) -> None:
        """What the witness saw, and whether that is enough. tasks: those that act all the time."""
        self.acts, self.runs, self.deaths, self.overlaps = report.acts, report.runs, report.deaths, report.overlaps
        self.margin_ms, self.margin_elsewhere_ms = report.margin_ms, report.margin_elsewhere_ms
        self.longest_gap_ms = max((item.gap_ms for item in report.handovers), default=None)
        self.failures += [f"overlap: {text}" for text in report.details]
        least = int(tasks * self.seconds * ACTS_LEAST_A_TASK_S)
        if report.acts < least:
            self.failures.append(f"the witness saw only {report.acts} acts of at least {least}")
        if report.missed:
            self.failures.append(f"the witness missed acts {report.missed} times: {report.gaps}")
        faults, least = sum(self.faults.values()), int(self.seconds / lease_s * FAULTS_LEAST_SHARE)
        if faults < max(least, 1):
            self.failures.append(f"only {faults} faults of at least {max(least, 1)}")

    async def take_topics(self, cluster: ChaosCluster, path: Path) -> None:
        """Ledger, oracle, log lint and replay; every node has ended."""
        client = {"bootstrap_servers": cluster.bootstrap}
        records, found = await settled(cluster.topics, client, partial(findings, ledgers=[path]))
        self.commands = len(ledger.read(path))
        self.lost = sum(item.rule in LOST_RULES for item in found)
        self.failures += [str(item) for item in found]
        logs = Logs.of(records, cluster.topics)
        self.failures += [f"dead letter of {place}" for place in logs.deadletters]
        said = await _replay(cluster)
        if said is not None:
            self.failures.append(f"replay: {said}")


async def _replay(cluster: ChaosCluster) -> str | None:
    """`skalds-streams replay --quiet`; what it says when it does not verify."""
    environment = {**cluster.environment, "KAFKA_HOST": "127.0.0.1", "KAFKA_PORT": str(cluster.servers.kafka_port)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", REPLAY, "replay", "--quiet",
        env=environment, cwd=cluster.directory, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(REPLAY_S):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return f"not done in {REPLAY_S:g} s"
    return None if process.returncode == 0 else output.decode(errors="replace")[-3000:]


def as_doc(outcome: Outcome, *, at: str) -> Mapping[str, Any]:
    """For a line of chaos.jsonl."""
    names = (name for name in Outcome.__slots__ if name != "failures")
    document = {name: getattr(outcome, name) for name in names}
    return {"at": at, **document, "cpus": os.cpu_count(), "failures": outcome.failures[:20]}


def total(documents: Sequence[Mapping[str, Any]]) -> str:
    """One line for all runs of a file."""
    faults = sum(sum(item["faults"].values()) for item in documents)
    margins = [item["margin_ms"] for item in documents if item["margin_ms"] is not None]
    hours = sum(item["seconds"] for item in documents) / 3600
    failed = sum(bool(item["failures"]) for item in documents)
    return (
        f"{len(documents)} runs, {hours:.2f} h, {sum(item['acts'] for item in documents)} acts, {failed} failed;"
        f" faults: {faults}, overlaps: {sum(item['overlaps'] for item in documents)},"
        f" lost: {sum(item['lost'] for item in documents)}, margin_ms: {min(margins, default=0):.0f}"
    )
