"""A process of the edge mode, put together: file → records → rows → workers, and the page.

Rules: a wrong file at the start is one clear error; a wrong edit changes nothing and is shown on the page and in the
log; a mistake in one task leaves the others alone. A task of the file is pinned to this node and runs without a lease,
as nobody else could run it. Any edit of a task is an assign: what runs takes new parameters, what has ended begins
again. In single_process only the first task of the file counts, and the process ends with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import structlog

from skalds_streams.coordinator.task_source import TaskSource, edits
from skalds_streams.coordinator.timers import DueTimer
from skalds_streams.core.row import Json, Row, Status
from skalds_streams.edge.log import LocalLog, LocalView, next_epochs
from skalds_streams.edge.states import LocalStates
from skalds_streams.errors import ConfigError, HostError, TaskEndedError
from skalds_streams.model.task_file import FileTask, Problem, TaskFile, differences
from skalds_streams.projections.masking import text_cleaner
from skalds_streams.projections.metrics import Metrics, MetricSources
from skalds_streams.runtime import STOP_S, WaitNotice, limits_of, wall_ms
from skalds_streams.settings import Settings
from skalds_streams.skald.background import Background
from skalds_streams.skald.hosts import Catalogue, HostPool
from skalds_streams.skald.identity import Identity, claim_identity
from skalds_streams.skald.lease import Lease
from skalds_streams.skald.node import FLUSH_S, described, load_workers, log_files_of, pool_of
from skalds_streams.skald.reporter import Reporter
from skalds_streams.skald.ring import LogFiles, file_name
from skalds_streams.skald.supervisor import Supervisor
from skalds_streams.topics import Topics
from skalds_streams.version import __version__
from skalds_streams.web.context import WebContext

BANNERS_MOST = 20

log = structlog.get_logger(__name__)


class Unleased(Lease):
    """Of a node whose tasks nobody else can run."""

    @property
    def is_valid(self) -> bool:
        return True


class EdgeRuntime:
    """See the module. What `application` needs of it is what `Runtime` has, too."""

    def __init__(
        self, settings: Settings, on_fatal: Callable[[BaseException], object], on_done: Callable[[], object]
    ) -> None:
        """on_fatal: ends the process with this error; on_done: ends it well, of a single_process."""
        if settings.yaml_file is None:
            raise ConfigError("YAML_FILE is not set")
        self.settings, self._on_fatal, self._on_done = settings, on_fatal, on_done
        self.identity: Identity | None = None
        self._topics = Topics.named(app=settings.app, partitions=1)
        self.view = LocalView(self._topics, settings.agreed)
        self._source = TaskSource(settings.yaml_file)
        self._tasks: dict[str, FileTask] = {}
        """What was taken from the file, by task id."""
        self._problems: list[str] = []
        self._refused: dict[str, str] = {}
        """Task id → what its worker says of its parameters, and where they stand in the file."""
        self._only: str | None = None
        self._background = Background(on_fatal)
        self._pool: HostPool | None = None
        self._supervisor: Supervisor | None = None
        self._reporter: Reporter | None = None
        self._log: LocalLog | None = None
        self._log_files: LogFiles | None = None
        self.metrics = Metrics(self._metric_sources())

    # -- start and stop

    async def start(self) -> None:
        """Run what the file says. Raises ConfigError, HostError."""
        file = self._relevant(self._source.first(), first=True)
        settings = self.settings
        identity = await asyncio.to_thread(claim_identity, settings.data_dir, settings.skald_id, on_wait=WaitNotice())
        self.identity = identity
        floor = next_epochs(settings.data_dir / "edge" / f"{file_name(identity.skald_id)}.epochs")
        self._log = LocalLog(self._topics, self.view, limits_of(settings), wall_ms, epoch_floor=floor)
        await self._start_workers(identity, self._log)
        self.view.on_row(self._look_at_row)
        timer = DueTimer(
            [self._log], self.view.members, self._log, wall_ms, retention_ms=settings.terminal_retention_ms
        )
        self._background.spawn("heartbeat", self._beat(identity))
        self._background.spawn("due", timer.run(lambda: True))
        self._background.spawn("file", self._follow(file))
        log.info("edge.up", skald=identity.skald_id, file=self._source.name, tasks=len(file.tasks))

    async def _start_workers(self, identity: Identity, sender: LocalLog) -> None:
        settings = self.settings
        self._log_files = log_files_of(settings, identity)
        self._pool = pool_of(settings, identity, self.view, self._log_files)
        self._reporter = Reporter(sender, skald_id=identity.skald_id, incarnation=identity.incarnation, now_ms=wall_ms)
        await load_workers(self._pool, settings, identity)
        self._supervisor = Supervisor(
            self.view,
            self._pool,
            self._reporter,
            LocalStates(identity.skald_id, wall_ms),
            Unleased(settings.lease_ms, settings.beat_ms),
            skald_id=identity.skald_id,
            incarnation=identity.incarnation,
            starts_at_once=settings.starts_at_once,
        )
        self._background.spawn("reporter", self._reporter.run())
        self._background.spawn("supervisor", self._supervisor.run())
        self._show_beat(identity, 1)

    async def leave(self) -> None:
        """Stop the workers."""
        if self._supervisor is not None and self._reporter is not None:
            await self._supervisor.close()
            await self._reporter.flush(FLUSH_S)

    async def close(self) -> None:
        """Stop the rest. Bounded in time."""
        await self._background.close()
        if self._pool is not None:
            with suppress(Exception):  # the edge of stopping: what can't be closed must not keep the rest open
                async with asyncio.timeout(STOP_S):
                    await self._pool.stop()

    @property
    def stop_most_s(self) -> float:
        """What the workers may take to stop, in seconds."""
        return self._supervisor.stop_most_s if self._supervisor is not None else 0.0

    async def may_rejoin(self) -> bool:
        """There is no group."""
        return False

    # -- the file

    async def _follow(self, file: TaskFile) -> None:
        """Run what the file says, then its edits. Begins after the supervisor, which hears of every row."""
        self._take(file)
        self.view.is_filled = True
        async for edited in edits(self._source):
            self._take(self._relevant(edited))

    def _relevant(self, file: TaskFile, *, first: bool = False) -> TaskFile:
        """Of a single_process: the task that stood first at the start. Raises ConfigError when there is none."""
        if self.settings.skald_mode != "single_process":
            return file
        if first:
            self._only = next(iter(file.tasks), None)
            first_line = file.tasks[self._only].line_of() if self._only is not None else None
            before = [str(item) for item in file.problems if first_line is None or item.line < first_line]
            if before or self._only is None:
                raise ConfigError("; ".join(before) or f"{self._source.name}: there is no task to run")
        tasks = {task_id: task for task_id, task in file.tasks.items() if task_id == self._only}
        return TaskFile(tasks, [item for item in file.problems if item.task_id == self._only])

    def _take(self, file: TaskFile) -> None:
        """Do what the file says, and keep what is wrong with it."""
        problems = list(file.problems)
        changed, gone = differences(self._tasks, file)
        for task in changed:
            problem = self._assign(task)
            if problem is None:
                self._tasks[task.task_id] = task
            else:
                problems.append(Problem(self._source.name, task.line_of(), task.task_id, "", problem))
        for task_id in gone:
            del self._tasks[task_id]
            reason = f"no longer in {self._source.name}"
            self._append(self._topics.cancel, task_id, {"taskIds": [task_id], "reason": reason})
        for task_id, task in file.tasks.items():
            if task_id in self._tasks:
                self._tasks[task_id] = task  # it may have other lines now
                self._look_at_row(task_id)
        self._problems = [str(problem) for problem in problems]
        for text in self._problems:
            log.error("tasks.task_not_taken", problem=text)
        log.info("tasks.file_taken", changed=[task.task_id for task in changed], gone=list(gone))

    def _assign(self, task: FileTask) -> str | None:
        """Returns why not."""
        assert self.identity is not None
        doc = {"attachments": {}, **task.doc, "executor": self.identity.skald_id}
        doc["attachments"] = doc["attachments"] or {}
        reason = f"{self._source.name}:{task.line_of()}"
        return self._append(
            self._topics.assign, task.task_id, {"taskIds": [task.task_id], "tasks": [doc], "reason": reason}
        )

    def _append(self, topic: str, task_id: str, doc: Mapping[str, Any]) -> str | None:
        assert self._log is not None
        return self._log.append(topic, task_id, doc)

    # -- the node

    async def _beat(self, identity: Identity) -> None:
        number = 1
        while True:
            await asyncio.sleep(self.settings.beat_ms / 1000)
            number += 1
            self._show_beat(identity, number)

    def _show_beat(self, identity: Identity, number: int) -> None:
        doc = {
            **described(self.settings, self._catalogue),
            "skald_id": identity.skald_id,
            "incarnation": identity.incarnation,
            "n": number,
            "running": self._supervisor.load if self._supervisor is not None else 0,
            "role": self.settings.skald_mode,
            "state": "up",
        }
        self.view.show_beat(doc, wall_ms())

    def _look_at_row(self, task_id: str) -> None:
        """Say where in the file the parameters stand that a worker does not take; end with the one task there is."""
        row, task = self.view.rows.get(task_id), self._tasks.get(task_id)
        text = self._refusal(row, task) if row is not None and task is not None else None
        if text is None:
            self._refused.pop(task_id, None)
        elif self._refused.get(task_id) != text:
            self._refused[task_id] = text
            log.error("tasks.parameters_not_taken", problem=text)
        if task_id == self._only and row is not None and row.is_terminal:
            self._end_with(row)

    def _refusal(self, row: Row, task: FileTask) -> str | None:
        reason = (row.waiting or {}).get(row.recipient or "", "")
        if reason.startswith(("no class", "class")):
            there = ", ".join(sorted(self._catalogue.classes)) if self._catalogue is not None else ""
            text = f"{reason}; there is {there or 'none'}"
            return str(Problem(self._source.name, task.line_of("className"), row.task_id, "className", text))
        error = _complaint(row)
        if error is None:
            return None
        field = str(error.get("field") or "")
        path = ("attachments", *field.split(".")) if field else ("attachments",)
        clean = text_cleaner(row, self.settings.secret_words, self.view.members.secret_paths(row.class_name))
        text = str(clean(error.get("message") or error.get("type")))
        text = text.removeprefix(f"{field}: ")
        return str(Problem(self._source.name, task.line_of(*path), row.task_id, ".".join(path), text))

    def _end_with(self, row: Row) -> None:
        self._only = None
        if row.status is Status.FAILED:
            self._on_fatal(TaskEndedError(f"task {row.task_id} has failed: {(row.error or {}).get('message')}"))
        else:
            self._on_done()

    # -- what others read

    @property
    def _catalogue(self) -> Catalogue | None:
        if self._pool is not None:
            with suppress(HostError):
                return self._pool.catalogue
        return None

    def readiness(self) -> Mapping[str, bool]:
        """What must be true for this node to do its work."""
        return {"workers_loaded": self._catalogue is not None, "view_caught_up": self.view.is_caught_up}

    def banners(self) -> Sequence[str]:
        """What is wrong with the file."""
        return list(self._banners())[:BANNERS_MOST]

    def _banners(self) -> Iterator[str]:
        if self._source.problem is not None:
            yield f"{self._source.problem}. The tasks run on as they were."
        yield from self._problems
        yield from self._refused.values()

    def web_context(self) -> WebContext:
        def catalogue() -> Catalogue:
            return self._catalogue or Catalogue({}, {})

        return WebContext(
            settings=self.settings,
            view=self.view,
            skald_id=lambda: self.identity.skald_id if self.identity else "",
            incarnation=lambda: self.identity.incarnation if self.identity else "",
            readiness=self.readiness,
            metrics=self.metrics.render,
            describe_class=lambda name: catalogue().classes.get(name),
            not_loadable=lambda: catalogue().not_loadable,
            banners=self.banners,
            log_files=lambda: self._log_files,
            task_metrics=lambda task_id: self._supervisor.metrics(task_id) if self._supervisor is not None else None,
        )

    def _metric_sources(self) -> MetricSources:
        return MetricSources(
            rows=lambda: self.view.rows,
            members=lambda: self.view.members,
            held=lambda: self._supervisor.held if self._supervisor is not None else (),
            journals=lambda: (),
            journals_open=lambda: 0,
            # It needs no lease, so none ever runs out.
            lease_remaining_ms=lambda: self.settings.lease_ms,
            lease_lapses=lambda: 0,
            lease_ms=self.settings.lease_ms,
            view_caught_up=lambda: self.view.is_caught_up,
            redis_up=lambda: False,
            version=__version__,
        )


def _complaint(row: Row) -> Json | None:
    """The error document of parameters that the worker did not take, as long as they are those of the file."""
    if row.refused is not None and row.refused["at_ms"] >= row.assign_at_ms:
        error = row.refused["error"]
    else:
        error = row.error if row.status is not Status.RUNNING else None
        if error is not None and not error.get("field"):
            return None  # a crash of its own
    return error if isinstance(error, Mapping) else None
