"""The YAML file of tasks, in upstream's form: which tasks there are, what is wrong with it and where.

    TaskWorkers:
      camera:                       # task id
        className: Camera
        attachments: {fps: 30}

Rules: a task is a Task document without its id; names and aliases are both read. A mistake in one task is a problem of
that task, with line and field, and the others are still read. Keys are texts, also `on` and `1`, and so are dates. What
is no such file at all raises. The file is never written. What does not live here: reading it from the disk, and what
is done about it (`edge`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import yaml
from pydantic import ValidationError

from skalds_streams.errors import ConfigError
from skalds_streams.model.task import Task

TOP = "TaskWorkers"
SOURCE = "YAML"
FILE_MAX_BYTES = 4 * 1024 * 1024
VALUES_MOST = 200_000
"""Of one file, each use of an alias counted anew: nine lines of aliases can stand for a billion values."""

Path = tuple[str, ...]

_NAMES = {name: info.alias or name for name, info in Task.model_fields.items()}
_SPELLINGS = (_NAMES.keys() | set(_NAMES.values())) - {"id"}


class TaskFileError(ConfigError):
    """Nothing can be made of the file. The text names file and line."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake. `field`: dotted, from the task on; "" for the task itself. `task_id` is None outside of any task."""

    file: str
    line: int
    task_id: str | None
    field: str
    text: str

    def __str__(self) -> str:
        where = ".".join(part for part in (TOP, self.task_id, self.field) if part)
        return f"{self.file}:{self.line}: {where}: {self.text}"


@dataclass(frozen=True, slots=True)
class FileTask:
    """A task of the file. Two are equal when they say the same, wherever they stand."""

    task_id: str
    doc: Mapping[str, Any]
    """Its Task document: what the file says, with id and source."""
    lines: Mapping[Path, int] = field(compare=False, repr=False)

    def line_of(self, *path: str) -> int:
        """The line of a field, or of the innermost thing around it that the file has. `fix_frame` finds `fixFrame`."""
        plain = {_plain_path(known): line for known, line in self.lines.items()}
        wanted = _plain_path(path)
        return next(plain[wanted[:size]] for size in range(len(wanted), -1, -1) if wanted[:size] in plain)


@dataclass(frozen=True, slots=True)
class TaskFile:
    """The tasks that can be run, in the file's order, and what is wrong with the others."""

    tasks: Mapping[str, FileTask]
    problems: Sequence[Problem] = ()

    @property
    def broken(self) -> frozenset[str]:
        """Ids of tasks that stand in the file, but wrongly: they are neither new nor gone."""
        return frozenset(item.task_id for item in self.problems if item.task_id is not None)


def parse_task_file(name: str, content: bytes) -> TaskFile:
    """Read a file. Raises TaskFileError."""
    if len(content) > FILE_MAX_BYTES:
        raise TaskFileError(f"{name}: it has more than {FILE_MAX_BYTES} bytes, the limit")
    try:
        loader = _Loader(content)
        top = loader.get_single_node()
        return _Reader(name, loader).read(top)
    except yaml.YAMLError as error:
        raise TaskFileError(_yaml_problem(name, error)) from None


def differences(running: Mapping[str, FileTask], wanted: TaskFile) -> tuple[Sequence[FileTask], Sequence[str]]:
    """(tasks that are new or say something else, ids of those that are gone). One that is broken stays as it is."""
    new = [task for task_id, task in wanted.tasks.items() if running.get(task_id) != task]
    return new, [task_id for task_id in running if task_id not in wanted.tasks and task_id not in wanted.broken]


class _Loader(yaml.SafeLoader):
    """Plain values only; what looks like a date is a text, as JSON has no dates."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # declared by PyYAML
        first: [item for item in resolvers if item[0] != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class _Reader:
    """One reading of one file."""

    def __init__(self, name: str, loader: _Loader) -> None:
        self._name, self._loader = name, loader
        self._problems: list[Problem] = []
        self._values = 0

    def read(self, top: yaml.Node | None) -> TaskFile:
        if top is None:
            raise TaskFileError(f"{self._name}:1: it is empty: {TOP} must map task ids to tasks")
        entries = self._entries(top)
        tasks: dict[str, FileTask] = {}
        seen: dict[str, int] = {}
        for key, node in entries:
            task_id, line = key.value, _line(key)
            if task_id in seen:
                self._note(line, task_id, "", f"it is there twice, first in line {seen[task_id]}")
                tasks.pop(task_id, None)
                continue
            seen[task_id] = line
            task = self._task(task_id, line, node)
            if task is not None:
                tasks[task_id] = task
        return TaskFile(tasks, self._problems)

    def _entries(self, top: yaml.Node) -> list[tuple[yaml.Node, yaml.Node]]:
        """The (id, task) nodes below TOP."""
        found = [(key, node) for key, node in top.value if key.value == TOP] if _is_mapping(top) else []
        if not found:
            raise TaskFileError(f"{self._name}:{_line(top)}: there is no {TOP}, which must map task ids to tasks")
        if len(found) > 1:
            raise TaskFileError(f"{self._name}:{_line(found[1][0])}: {TOP} is there twice")
        tasks = found[0][1]
        if not _is_mapping(tasks):
            raise TaskFileError(f"{self._name}:{_line(tasks)}: {TOP} must map task ids to tasks; none is {{}}")
        return [item for item in tasks.value if isinstance(item[0], yaml.ScalarNode)]

    def _note(self, line: int, task_id: str, name: str, text: str) -> None:
        self._problems.append(Problem(self._name, line, task_id, name, text))

    def _task(self, task_id: str, line: int, node: yaml.Node) -> FileTask | None:
        """None when there is a problem with it."""
        before = len(self._problems)
        lines: dict[Path, int] = {(): line}
        self._survey(task_id, node, (), lines, ())
        if len(self._problems) > before:
            return None
        loaded = self._loader.construct_document(node)
        if not isinstance(loaded, dict):
            self._note(line, task_id, "", "must be an object with className and attachments")
            return None
        task = FileTask(task_id, {**loaded, "id": task_id, "source": loaded.get("source", SOURCE)}, lines)
        for path, text in self._mistakes(task_id, loaded):
            self._note(task.line_of(*path), task_id, ".".join(path), text)
        return task if len(self._problems) == before else None

    def _survey(
        self, task_id: str, node: yaml.Node, path: Path, lines: dict[Path, int], inside: tuple[yaml.Node, ...]
    ) -> None:
        """Note the line of everything, and what YAML allows and JSON does not."""
        self._values += 1
        if self._values > VALUES_MOST:
            raise TaskFileError(
                f"{self._name}:{_line(node)}: more than {VALUES_MOST} values, aliases counted each time"
            )
        if node in inside:
            self._note(_line(node), task_id, ".".join(path), "an alias of something that it is itself a part of")
        elif isinstance(node, yaml.SequenceNode):
            for at, item in enumerate(node.value):
                lines[*path, str(at)] = _line(item)
                self._survey(task_id, item, (*path, str(at)), lines, (*inside, node))
        elif isinstance(node, yaml.MappingNode):
            self._survey_mapping(task_id, node, path, lines, inside)

    def _survey_mapping(
        self, task_id: str, node: yaml.MappingNode, path: Path, lines: dict[Path, int], inside: tuple[yaml.Node, ...]
    ) -> None:
        seen: set[str] = set()
        for key, item in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._note(_line(key), task_id, ".".join(path), "a key must be a text")
                continue
            if key.tag == "tag:yaml.org,2002:merge":
                for merged in item.value if isinstance(item, yaml.SequenceNode) else [item]:
                    known = dict(lines)
                    self._survey(task_id, merged, path, lines, (*inside, node))
                    lines.update(known)
                continue
            key.tag = "tag:yaml.org,2002:str"  # `on` and `1` are names like others
            if key.value in seen:
                self._note(_line(key), task_id, ".".join((*path, key.value)), "it is there twice")
            seen.add(key.value)
            lines[*path, key.value] = _line(key)
            self._survey(task_id, item, (*path, key.value), lines, (*inside, node))

    def _mistakes(self, task_id: str, loaded: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
        """(field, what is wrong with it) of one task."""
        if loaded.get("id", task_id) != task_id:
            yield ("id",), "another id than the task's name"
        for name in sorted(loaded.keys() - _SPELLINGS - {"id"}):
            near = get_close_matches(name, sorted(_SPELLINGS), 1)
            yield (name,), "no field of a task" + (f"; {_NAMES.get(near[0], near[0])} is one" if near else "")
        wrong = list(_unwritable(loaded, ()))
        yield from wrong
        if wrong:
            return
        try:
            Task.model_validate({"source": SOURCE, **loaded, "id": task_id})
        except ValidationError as error:
            for item in error.errors(include_input=False, include_url=False, include_context=False):
                text = "it is missing" if item["type"] == "missing" else item["msg"].removeprefix("Value error, ")
                yield tuple(map(str, item["loc"])), text


def _unwritable(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    """What has no spelling in JSON."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _unwritable(item, (*path, key))
    elif isinstance(value, list):
        for at, item in enumerate(value):
            yield from _unwritable(item, (*path, str(at)))
    elif isinstance(value, float) and not math.isfinite(value):
        yield path, "neither infinity nor NaN can be a parameter"
    elif isinstance(value, int) and abs(value) > 2**53:
        yield path, "a number above 2**53; put it in quotes"
    elif not isinstance(value, str | int | float | None):
        yield path, f"{type(value).__name__} can't be written as JSON"


def _yaml_problem(name: str, error: yaml.YAMLError) -> str:
    """Where and what, on one line."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    line = mark.line + 1 if mark is not None else 1
    return f"{name}:{line}: not YAML: {' '.join(str(problem).split())}"


def _is_mapping(node: yaml.Node) -> bool:
    return isinstance(node, yaml.MappingNode)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _plain_path(path: Path) -> Path:
    return tuple(part.replace("_", "").lower() for part in path)
