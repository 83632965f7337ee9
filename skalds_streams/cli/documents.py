"""What a person types or keeps in a file, as documents for the wire: key=value pairs, Task documents, parameters.

A value that is JSON is taken as JSON (`fps=30`, `on=true`, `ids=[1,2]`), anything else as text. `a.b=1` nests. Files
are JSON or YAML.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

import click
import orjson
import yaml

FILE_MAX_BYTES = 16 * 1024 * 1024
SOURCE = "CLI"
UPSTREAM_FORM = "TaskWorkers"
"""Top-level key of upstream's YAML file: task id → {className, isPersistent, attachments}."""


def parse_pairs(pairs: Iterable[str]) -> dict[str, Any]:
    """key=value pairs as one nested object. Raises UsageError naming the pair that is wrong."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not all(name.split(".")):
            raise click.UsageError(f"{pair!r} is not key=value, e.g. fps=30 or detector.size=640")
        *parents, last = name.split(".")
        target = found
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise click.UsageError(f"{pair!r}: {parent!r} has a value already, so nothing can be put below it")
        if last in target:
            raise click.UsageError(f"{pair!r}: {name!r} is given twice")
        target[last] = parse_value(text)
    return found


def parse_value(text: str) -> Any:
    """JSON if it is JSON, else the text itself."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def read_file(file: BinaryIO) -> tuple[str, Any]:
    """(name, content) of an opened JSON or YAML file. Raises UsageError saying where it is wrong."""
    name = str(getattr(file, "name", "stdin"))
    return name, load_file(name, file.read(FILE_MAX_BYTES + 1))


def load_file(name: str, content: bytes) -> Any:
    """The content of a JSON or YAML file. Raises UsageError."""
    if len(content) > FILE_MAX_BYTES:
        raise click.UsageError(f"{name} has more than {FILE_MAX_BYTES} bytes, the limit")
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError as error:
        if name.endswith(".json"):
            raise click.UsageError(f"{name} is not JSON: {error}") from None
    try:
        loaded = yaml.safe_load(content)
        return orjson.loads(orjson.dumps(loaded))
    except yaml.YAMLError as error:
        raise click.UsageError(f"{name} is neither JSON nor YAML: {' '.join(str(error).split())}") from None
    except (TypeError, ValueError) as error:
        raise click.UsageError(f"{name} can't be written as JSON: {error}") from None


def tasks_of(name: str, loaded: Any, task_id: str | None = None) -> list[dict[str, Any]]:
    """Task documents by alias, from one document, a list or upstream's form.

    task_id: the id of the one document there is.
    """
    if isinstance(loaded, Mapping) and UPSTREAM_FORM in loaded:
        docs = _upstream_tasks(name, loaded[UPSTREAM_FORM])
    elif isinstance(loaded, Mapping):
        docs = [dict(loaded)]
    elif isinstance(loaded, list) and loaded and all(isinstance(item, Mapping) for item in loaded):
        docs = [dict(item) for item in loaded]
    else:
        raise click.UsageError(f"{name} is neither a Task document, nor a list of them, nor a {UPSTREAM_FORM} file")
    if task_id is not None:
        if len(docs) != 1:
            raise click.UsageError(f"{name} has {len(docs)} tasks; an id can be given for a file with one")
        docs[0]["id"] = task_id
    seen: set[str] = set()
    for at, doc in enumerate(docs):
        found = doc.get("id")
        if not isinstance(found, str) or not found:
            raise click.UsageError(f"{name}: task {at + 1} has no id")
        if found in seen:
            raise click.UsageError(f"{name}: task {found!r} is there twice")
        seen.add(found)
        doc.setdefault("source", SOURCE)
    return docs


def _upstream_tasks(name: str, workers: Any) -> list[dict[str, Any]]:
    if not isinstance(workers, Mapping) or not all(isinstance(item, Mapping) for item in workers.values()):
        raise click.UsageError(f"{name}: {UPSTREAM_FORM} must map task ids to objects with className and attachments")
    return [{**item, "id": str(task_id), "source": item.get("source", "YAML")} for task_id, item in workers.items()]


def parameters_of(name: str, loaded: Any) -> dict[str, Any]:
    """The parameters in a file: the object itself, or what stands under its `attachments`."""
    if not isinstance(loaded, Mapping):
        raise click.UsageError(f"{name} must hold an object, the parameters")
    inner = loaded.get("attachments")
    return dict(inner) if set(loaded) == {"attachments"} and isinstance(inner, Mapping) else dict(loaded)
