"""The worker classes of the user's modules and of installed packages: found, checked and described. Runs in the
zygote, once.

Rules: a module that raises anything at import, or a class that can't run, becomes not loadable, with the reason; the
others still load. A class counts for the module that defines it (for a package: its submodules too, if it re-exports
them); one that an entry point names counts wherever it is defined. Two classes of one name are both not loadable, as
tasks name classes without a module. Keys of `not_loadable` are module names, `module.Class`, or entry points with
their package (`installed`).
"""

from __future__ import annotations

import importlib
import inspect
import json
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any

from pydantic import AliasChoices, BaseModel, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from skalds_streams.core.options import DEFAULT, ClassOptions
from skalds_streams.worker import memory
from skalds_streams.worker.baseclass import MAIN, BaseTaskWorker
from skalds_streams.worker.installed import Offer
from skalds_streams.worker.policy import WrongOptionError, policy_of
from skalds_streams.worker.secret_fields import secret_paths

SCHEMA_MAX_BYTES = 64 * 1024
DESCRIBED_MAX_BYTES = 512 * 1024
"""Of all classes together; of the reasons why others are not loadable half of it. All travel in one frame."""
TRACEBACK_MAX_CHARS = 4_000
LEFT_OUT = f"left out: all descriptions together would have more than {DESCRIBED_MAX_BYTES} bytes"
DOC_MAX_CHARS = 1_000

WorkerType = type[BaseTaskWorker[Any]]


@dataclass(frozen=True, slots=True)
class WorkerClass:
    """A class that can run."""

    worker_type: WorkerType
    model: type[BaseModel]
    schema: dict[str, Any]
    aliases: dict[str, str]
    """Field name → the alias that documents use, where the two differ."""
    release_s: float
    terminate_s: float
    isolation: str = "process"
    on_disconnect: str = "stop"
    memory_max_bytes: int | None = None
    stall_s: float = 0.0
    policy: ClassOptions = DEFAULT
    """Its defaults for placement and restarts."""
    secret: tuple[str, ...] = ()
    """Paths of the secret parameters (`secret_fields`)."""

    def validate(self, attachments: Mapping[str, Any] | None) -> BaseModel:
        """The parameters in a document, by field name or alias. Raises ValidationError, which names fields as the
        document does, or whatever a user's validator raises.
        """
        given = attachments or {}
        for name, alias in self.aliases.items():
            said_once = alias in self.model.model_fields or name in self.aliases.values()
            if not said_once and name in given and alias in given and given[name] != given[alias]:
                raise _said_twice(self.model, name, alias)
        return self.model.model_validate(given, by_alias=True, by_name=True)

    def describe(self) -> dict[str, Any]:
        """The class's part of the ready frame."""
        return {
            "module": self.worker_type.__module__,
            "doc": inspect.cleandoc(self.worker_type.__doc__ or "")[:DOC_MAX_CHARS],
            "schema": self.schema,
            "aliases": self.aliases,
            "secret": list(self.secret),
            "isolation": self.isolation,
            "on_disconnect": self.on_disconnect,
            "release_s": self.release_s,
            "terminate_s": self.terminate_s,
            "memory_max_bytes": self.memory_max_bytes,
            "stall_s": self.stall_s,
            "options": self.policy.to_doc(),
        }


@dataclass(slots=True)
class Registry:
    """What the user's modules hold."""

    classes: dict[str, WorkerClass] = field(default_factory=dict)
    not_loadable: dict[str, str] = field(default_factory=dict)


def load(modules: Sequence[str], installed: Sequence[Offer] = ()) -> Registry:
    """Import the modules, load what installed packages offer, and register the classes. Raises nothing that user code
    raises.
    """
    registry = Registry()
    found: dict[str, dict[WorkerType, str]] = {}
    for name in dict.fromkeys(modules):
        _take(registry, found, name, partial(importlib.import_module, name))
    for offer in installed:
        _take(registry, found, str(offer), offer.point.load, f" (package {offer.package})")
    for types in found.values():
        _register(registry, types)
    _fit_into_a_frame(registry)
    return registry


def _take(
    registry: Registry, found: dict[str, dict[WorkerType, str]], name: str, get: Callable[[], Any], origin: str = ""
) -> None:
    """Put the classes of what `get` returns under their names, with where each came from first."""
    try:
        got = get()
    except BaseException:  # noqa: BLE001  # user code may raise anything at import, SystemExit included
        registry.not_loadable[name] = _short_traceback()
        return
    if not isinstance(got, ModuleType) and not _is_worker_type(got):
        registry.not_loadable[name] = f"{name} is neither a module nor a worker class, but {type(got).__name__}"
        return
    for worker_type in _defined_in(got) if isinstance(got, ModuleType) else [got]:
        found.setdefault(worker_type.__name__, {}).setdefault(worker_type, origin)


def _fit_into_a_frame(registry: Registry) -> None:
    """Leave out the classes and tracebacks that are too much, the last ones first, so that the others can run."""
    left = DESCRIBED_MAX_BYTES
    for name, described in list(registry.classes.items()):
        left -= len(json.dumps({name: described.describe()}))
        if left < 0:
            del registry.classes[name]
            registry.not_loadable[_full_name(described.worker_type)] = LEFT_OUT
    left = DESCRIBED_MAX_BYTES // 2
    for name, reason in registry.not_loadable.items():
        left -= len(json.dumps({name: reason}))
        if left < 0:
            registry.not_loadable[name] = LEFT_OUT


def aliases_of(model: type[BaseModel]) -> dict[str, str]:
    """Field name → alias, for the fields that have another one."""
    aliases = {}
    for name, info in model.model_fields.items():
        alias = info.validation_alias
        if isinstance(alias, AliasChoices):
            alias = next((choice for choice in alias.choices if isinstance(choice, str)), None)
        if isinstance(alias, str) and alias != name:
            aliases[name] = alias
    return aliases


def _said_twice(model: type[BaseModel], name: str, alias: str) -> ValidationError:
    """A merged update in another spelling than the one before: pydantic would take the alias and forget the other."""
    error = PydanticCustomError(
        "said_twice",
        "{name} and {alias} are one parameter, and have two values: set only one, the other to null",
        {"name": name, "alias": alias},
    )
    return ValidationError.from_exception_data(model.__name__, [InitErrorDetails(type=error, loc=(name,), input=None)])


def _defined_in(module: ModuleType) -> Iterator[WorkerType]:
    inside = module.__name__ + "."
    for value in list(vars(module).values()):
        if _is_worker_type(value) and (value.__module__ == module.__name__ or value.__module__.startswith(inside)):
            yield value


def _is_worker_type(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, BaseTaskWorker) and value is not BaseTaskWorker


def _register(registry: Registry, types: Mapping[WorkerType, str]) -> None:
    """Register the classes that share one name: one, unless the user made a mistake."""
    candidates = [worker_type for worker_type in types if not _is_base_only(worker_type)]
    if len(candidates) > 1:
        everyone = " and ".join(_full_name(worker_type) + types[worker_type] for worker_type in candidates)
        for worker_type in candidates:
            registry.not_loadable[_full_name(worker_type)] = (
                f"two worker classes have the same name: {everyone}. Rename one."
            )
        return
    for worker_type in candidates:
        try:
            registry.classes[worker_type.__name__] = check(worker_type)
        except NotLoadable as error:
            registry.not_loadable[_full_name(worker_type)] = str(error)
        except Exception:  # noqa: BLE001  # the schema of a user's model may raise anything
            registry.not_loadable[_full_name(worker_type)] = _short_traceback()


class NotLoadable(Exception):
    """A class that can't run; the text says why."""


def _is_base_only(worker_type: WorkerType) -> bool:
    """A base that other workers derive from, not meant to run itself."""
    incomplete = inspect.isabstract(worker_type) or MAIN not in worker_type._handlers
    return incomplete and bool(worker_type.__subclasses__())


def check(worker_type: WorkerType) -> WorkerClass:
    """The class, if it can run. Raises NotLoadable, or whatever the schema of a user's model raises."""
    if inspect.isabstract(worker_type):
        missing = ", ".join(sorted(worker_type.__abstractmethods__))
        raise NotLoadable(f"{worker_type.__name__} does not define: {missing}")
    if MAIN not in worker_type._handlers:
        raise NotLoadable(f"{worker_type.__name__} has no method with @{MAIN}")
    try:
        model = worker_type.get_data_model()
    except TypeError as error:
        raise NotLoadable(str(error)) from None
    schema = model.model_json_schema(by_alias=True)
    size = len(json.dumps(schema))
    if size > SCHEMA_MAX_BYTES:
        raise NotLoadable(f"the JSON schema of {model.__name__} has {size} bytes, more than {SCHEMA_MAX_BYTES}")
    return WorkerClass(
        worker_type=worker_type,
        model=model,
        schema=schema,
        aliases=aliases_of(model),
        release_s=_budget(worker_type, "release_s"),
        terminate_s=_budget(worker_type, "terminate_s"),
        isolation=_isolation(worker_type),
        on_disconnect=_on_disconnect(worker_type),
        memory_max_bytes=_memory_max(worker_type),
        stall_s=_budget(worker_type, "stall_s"),
        policy=_policy(worker_type),
        secret=tuple(secret_paths(model)),
    )


def _isolation(worker_type: WorkerType) -> str:
    value, name = worker_type.isolation, worker_type.__name__
    if value not in ("process", "shared"):
        raise NotLoadable(f'{name}.isolation is {value!r}: it must be "process" or "shared"')
    if value == "process":
        return value
    main = worker_type._handlers[MAIN]
    if not inspect.iscoroutinefunction(getattr(worker_type, main)):
        raise NotLoadable(
            f'{name}.isolation is "shared", but {main} (@{MAIN}) is not async: it would hold up the workers beside it.'
            ' Make it `async def`, or leave isolation at "process".'
        )
    if worker_type.memory_max is not None:
        raise NotLoadable(
            f'{name} has memory_max and isolation = "shared": the kernel limits the memory of a process, which this'
            " worker shares with others. Take one of the two away."
        )
    return value


def _on_disconnect(worker_type: WorkerType) -> str:
    value = worker_type.on_disconnect
    if value not in ("stop", "keep"):
        raise NotLoadable(f'{worker_type.__name__}.on_disconnect is {value!r}: it must be "stop" or "keep"')
    return str(value)


def _policy(worker_type: WorkerType) -> ClassOptions:
    try:
        return policy_of(worker_type)
    except WrongOptionError as error:
        raise NotLoadable(str(error)) from None


def _memory_max(worker_type: WorkerType) -> int | None:
    value, name = worker_type.memory_max, f"{worker_type.__name__}.memory_max"
    if value is None:
        return None
    size = memory.parse_size(value)
    if size is None:
        raise NotLoadable(f'{name} is {value!r}: it must be a number of bytes above 0, or a text like "512M" or "2G"')
    used = memory.used_bytes()
    if size <= used:
        raise NotLoadable(
            f"{name} is {value!r}: the loaded modules alone take {memory.size_text(used)}. Give it more, or load less."
        )
    return size


def _budget(worker_type: WorkerType, name: str) -> float:
    value = getattr(worker_type, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise NotLoadable(f"{worker_type.__name__}.{name} is {value!r}: it must be a number of seconds, 0 or more")
    return float(value)


def _full_name(worker_type: WorkerType) -> str:
    return f"{worker_type.__module__}.{worker_type.__name__}"


def _short_traceback() -> str:
    return traceback.format_exc()[-TRACEBACK_MAX_CHARS:]
