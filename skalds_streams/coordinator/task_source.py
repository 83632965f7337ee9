"""The file of tasks, looked at every POLL_S: what it says now, and what is wrong with it.

Rules: only content counts, not times; a change counts when the file looks the same twice, as many an editor writes it
in pieces; nothing is ever written. A file that is gone, or no task file any more, changes nothing.

In the edge mode the file is what runs (`edge`); of a node it is the catalogue: where the document of a task comes from
whose events have only its id. A row that has its document is not changed by it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

from skalds_streams.errors import WireError
from skalds_streams.model.specs import Limits, task_spec
from skalds_streams.model.task_file import FILE_MAX_BYTES, FileTask, Problem, TaskFile, TaskFileError, parse_task_file

POLL_S = 1.0

log = structlog.get_logger(__name__)


class TaskSource:
    """See the module."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        self._taken: bytes | None = None
        """The content that was understood, or complained of, last."""
        self._seen: bytes | None = None
        self._broken: str | None = None
        self._unreadable: str | None = None

    @property
    def problem(self) -> str | None:
        """Why the file as it is now can't be followed, with its line; None when it is."""
        return self._unreadable or self._broken

    def first(self) -> TaskFile:
        """What it says at the start. Raises TaskFileError."""
        self._taken = self._seen = self._read()
        return parse_task_file(self.name, self._taken)

    def look(self) -> TaskFile | None:
        """What it says, when that is new; None when nothing has changed, or nothing can be made of it (`problem`)."""
        before, self._seen, self._unreadable = self._seen, None, None
        try:
            self._seen = self._read()
        except TaskFileError as error:
            self._unreadable = str(error)
            return None
        if self._seen in (self._taken, None) or self._seen != before:
            return None
        self._taken, self._broken = self._seen, None
        try:
            return parse_task_file(self.name, self._taken)
        except TaskFileError as error:
            self._broken = str(error)
            return None

    def _read(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                return file.read(FILE_MAX_BYTES + 1)
        except OSError as error:
            raise TaskFileError(f"{self.name} can't be read: {error.strerror or error}") from None


async def edits(source: TaskSource) -> AsyncIterator[TaskFile]:
    """What the file says, each time that is new; what is wrong with it goes to the log."""
    said = None
    while True:
        await asyncio.sleep(POLL_S)
        file = await asyncio.to_thread(source.look)
        if source.problem not in (None, said):
            log.error("tasks.file_not_taken", problem=source.problem)
        said = source.problem
        if file is not None:
            yield file


class FileCatalogue:
    """The file as the catalogue of a coordinator. `open` it first; `run` follows its edits."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self._source, self._limits = TaskSource(path), limits
        self._tasks: Mapping[str, FileTask] = {}
        self._problems: Sequence[str] = ()

    def open(self) -> None:
        """Raises TaskFileError."""
        self._take(self._source.first())

    async def run(self) -> None:
        """Until cancelled."""
        async for file in edits(self._source):
            self._take(file)

    def find(self, task_id: str) -> tuple[Mapping[str, Any], str] | None:
        """(Task document, file and line); None when the file has no such task, or a broken one."""
        task = self._tasks.get(task_id)
        return (task.doc, f"{self._source.name}:{task.line_of()}") if task is not None else None

    @property
    def problems(self) -> Sequence[str]:
        """Sentences for people."""
        unread = [f"{self._source.problem}. What it said before counts."] if self._source.problem else []
        return [*unread, *self._problems]

    def _take(self, file: TaskFile) -> None:
        """One that no coordinator would take is told here: its record would be a dead letter every few seconds."""
        problems, tasks = list(file.problems), dict(file.tasks)
        for task_id, task in file.tasks.items():
            try:
                task_spec(task.doc, self._limits)
            except WireError as error:
                text = str(error).removeprefix(":").strip()
                problems.append(Problem(self._source.name, task.line_of(), task_id, "", text))
                del tasks[task_id]
        self._tasks, self._problems = tasks, [str(problem) for problem in problems]
        for text in self._problems:
            log.error("tasks.task_not_taken", problem=text)
