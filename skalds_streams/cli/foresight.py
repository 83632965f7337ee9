"""What is seen of a command before it is sent: whether anybody has the class that it names.

An assign that changes the class of a task stops its run, whoever has the new class. So it is refused when nobody has;
of a task that does not run it is only said, as nodes may come later. A look that fails stops no command.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from skalds_streams.cli.kafka import Cluster, connect, read_members, read_rows
from skalds_streams.cli.output import BAD, err, harmless, one_line, text
from skalds_streams.cli.rows import who_has_what
from skalds_streams.core.membership import Members
from skalds_streams.core.row import Row
from skalds_streams.errors import SkaldsError
from skalds_streams.replay.reader import open_reader

Asked = tuple[str, str | None, bool]
"""(task id, the class that is asked for or None, whether it is forced)."""


BEATS_MOST = 20_000
"""Heartbeats that are read, about half a second of work: of 100 skalds those of six minutes. Each tells its classes
every 30 s."""


class ClassMissingError(SkaldsError):
    """Nobody has the class, and a run would be stopped for it."""


def warn(warning: str) -> str:
    """Say it on stderr; returned for the JSON."""
    err().print(text(f"warning: {harmless(warning)}", BAD))
    return warning


async def foresee(cluster: Cluster, asked: Sequence[Asked]) -> dict[str, str]:
    """Task id → warning. Reads heartbeats when classes are named, rows when one of the classes is missing.

    Raises ClassMissingError for the first command that would only stop a run.
    """
    names = {class_name for _, class_name, _ in asked if class_name is not None}
    if not names:
        return {}
    try:
        there = await connect(cluster.settings, "changelog", "heartbeat")
        async with open_reader(there.client) as reader:
            members, _ = await read_members(there, reader, BEATS_MOST)
            missing = {name for name in names if not any(name in member.classes for member in members)}
            ids = {task_id for task_id, class_name, _ in asked if class_name in missing}
            rows, _ = await read_rows(there, reader, ids) if ids else ({}, [])
    except SkaldsError as error:
        warn(f"who has class {', '.join(sorted(names))} could not be looked up: {error}")
        return {}
    return judge([item for item in asked if item[1] in missing], rows, members)


def judge(missing: Sequence[Asked], rows: Mapping[str, Row], members: Members) -> dict[str, str]:
    """Task id → warning, for commands that name a class which nobody has. Raises ClassMissingError."""
    warnings = {}
    for task_id, name, is_forced in missing:
        row, class_name = rows.get(task_id) or Row(task_id), one_line(name)
        runs_another = row.holder is not None and row.class_name != name
        if runs_another and not is_forced:
            raise ClassMissingError(
                harmless(
                    f"task {one_line(task_id, 80)}: no skald has class {class_name}, so this would only stop its"
                    f" {row.class_name}; --force sends it all the same; {who_has_what(members, class_name)}"
                )
            )
        if row.holder is None or runs_another:
            warnings[task_id] = f"{one_line(task_id)}: no skald has class {class_name} now: it will wait"
    return warnings
