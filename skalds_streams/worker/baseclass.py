"""The class that user code derives from, and the decorators that name its methods.

    class Cam(BaseTaskWorker[CamParams]):
        def initialize(self, data: CamParams) -> None: ...      # parameters, already validated

        @run_main_handler
        def run(self) -> None: ...                              # the job; returning ends the task

Order of a run: `initialize` → before → main → after → release. Every method may be `async def`. Rules:

- One method a decorator and class. Two are an error when the class is defined. A subclass that decorates a method of
  its own replaces the inherited one; one that only overrides the method needs no decorator.
- before and main: what they raise fails the run. after and release: what they raise is logged.
- release runs exactly once, however the run ends, once `initialize` has begun. It may take `(self)` or `(self,
  signum, frame)`: signum is SIGTERM after a stop, else 0.
- A stop raises `SystemExit` in a main that is `def`, and cancels one that is `async def`; `is_done` is true from then
  on.
- The update handler is called beside main: in a thread, or on the worker's loop if it is `async def`. What it raises
  refuses the update.
- The class attributes without a value of the run's (`release_s` … `backoff`) are options: they are checked when the
  class is loaded, and a wrong one makes it not loadable.
- `self.save(state)` keeps what the next run shall find in `self.state`, when this one is restarted, moved or lost.

What does not live here: finding classes (`registry`) and calling the methods (`run`).
"""

from __future__ import annotations

import inspect
import logging
import secrets
import subprocess
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, NoReturn, Self, SupportsFloat, TypeVar, get_args, get_origin

from pydantic import BaseModel

from skalds_streams.worker.children import Children, Command
from skalds_streams.worker.frames import Frame
from skalds_streams.worker.gauges import Gauges
from skalds_streams.worker.policy import Backoff
from skalds_streams.worker.saving import Saving, encode_state
from skalds_streams.worker.stall import Watch

ModelT = TypeVar("ModelT", bound=BaseModel)
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

BEFORE = "run_before_handler"
MAIN = "run_main_handler"
AFTER = "run_after_handler"
RELEASE = "release_handler"
UPDATE = "update_event_handler"
_ROLES_ATTRIBUTE = "__skalds_roles__"
_MAKING = threading.Lock()
"""What is made when it is needed: there may be many workers in a process."""


class NonRetryableError(Exception):
    """Raise it in a worker when trying again can't help: the task fails at once instead of being restarted."""


class BaseTaskWorker(ABC, Generic[ModelT]):
    """One long-lived job with parameters of the type `ModelT`. See the module for the order and the rules."""

    release_s: float = 5.0
    """Time that a stop leaves to main and the release handler, in seconds. Then SIGTERM follows."""
    terminate_s: float = 2.0
    """Time between that SIGTERM and SIGKILL of everything the worker started, in seconds."""
    on_disconnect: str = "stop"
    """What becomes of it when its node can't reach Kafka for a lease. "stop": it ends, so that another node can run it
    and it never runs twice. "keep": it runs on, and may run twice until the node is back."""

    isolation: str = "process"
    """What it runs in. "process": a host of its own, which it may block, fill or crash. "shared": a host that it shares
    with up to 199 others, as tasks on one event loop: some kilobytes instead of megabytes a worker. Only for a main
    that is `async def` and never blocks: while one does not `await`, the others stand still, and what ends the process
    ends all of them (they are started again, and it is no crash of theirs). Not with `memory_max`.
    """

    memory_max: int | str | None = None
    """How much memory it may have: bytes, or a text like "512M" or "2G" (powers of 1024). None: as much as there is.

    Above it an allocation fails. In Python that raises MemoryError, the run fails with the reason "memory", and the
    task is started again; C code may end the process by SIGABRT or SIGSEGV instead, which looks like any other crash.
    The kernel keeps the limit (RLIMIT_DATA) for each process by itself: a program that the worker starts has as much
    again. It counts private writable memory when it is asked for, used or not, what the modules took at import and the
    stacks of threads (8 MiB each) included; not counted are shared memory, the page cache, files that are mapped for
    reading, and a GPU's memory. It is no protection of the machine: for that, limit the node's control group.
    """

    stall_s: float = 0.0
    """How long main may go without calling `self.progress()`, in seconds; 0: as long as it likes.

    Above it the run has stalled: the stack of every thread is kept as the task's error, the worker is stopped as by any
    stop (release handler and budgets), and the run counts as a crash with the reason "stall". A main that holds the GIL
    meanwhile is killed without that, up to 3 s later. It counts from the beginning of main: `initialize` and the before
    handler are not watched. A process that stands still (SIGSTOP) makes no progress either.
    """

    requires: Mapping[str, str] = {}  # a default that nobody changes; ClassVar would forbid properties
    """Labels that a node must have (SKALDS_LABELS) to run it, e.g. `{"gpu": "yes"}`. Like the next three it is the
    default of its tasks: what a task's own document says wins."""
    weight: int = 1
    """How much of a node's capacity (SKALDS_CAPACITY) one run takes."""
    max_restarts: int | None = None
    """How often a run that crashed is started again before the task is Failed; None: for ever. A minute without a crash
    forgets those before it."""
    backoff: Backoff = Backoff()
    """How long to wait before that: 1 s, doubling to 60 s."""

    task_id: str
    task_type: str
    """The class's name."""
    epoch: int
    """Fencing token: greater at every placement of the task. Hand it to sinks that can refuse an older one."""
    state: dict[str, Any] | None
    """What the last run saved, None when there is nothing; there before `initialize`. `save` does not change it."""
    is_done: bool
    """True once the run was asked to stop, or main has returned."""
    logger: logging.LoggerAdapter[logging.Logger]
    """Writes to the task's log file. Records carry `task_id` and `epoch`."""

    _watch: Watch | None
    _on_saved: Callable[[], object]
    _saved: str | None
    """The state that was saved last, as JSON: the host sends it."""
    _handlers: ClassVar[dict[str, str]] = {}

    def __new__(cls, *_args: object, **_kwargs: object) -> Self:
        """Give every worker an identity before its own __init__ runs; outside of a host it is a made-up one."""
        worker = super().__new__(cls)
        worker._bind(mock_task_id(), epoch=0)
        return worker

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        """Nothing is required. What upstream passes (task and configs) is accepted and not used."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._handlers = _collect_handlers(cls)

    @abstractmethod
    def initialize(self, data: ModelT) -> Awaitable[None] | None:
        """Take the parameters and prepare the run."""

    def progress(self) -> None:
        """Main is not stuck: call it once a frame, a page, a message. From any thread; costs less than a microsecond.
        It means something only where the class says `stall_s`.
        """
        if self._watch is not None:
            self._watch.feed()

    def save(self, state: Mapping[str, Any] | BaseModel) -> Saving:
        """Keep this for the next run, instead of what was saved before: a dict that is JSON, or a pydantic model.

        Returns at once, from any thread; an `async` method may write `await self.save(…)`. Within about a second the
        state is with Kafka, and the last one is in any case before the run counts as ended. What a crash of the
        process or of the machine can lose is that second. Raises TypeError for what is not JSON, ValueError
        for more than 64 KiB.
        """
        self._saved = encode_state(state)
        self._on_saved()
        return Saving()

    @classmethod
    def get_data_model(cls) -> type[BaseModel]:
        """The model named in `BaseTaskWorker[Model]`. Raises TypeError when the class names none."""
        for klass in cls.__mro__:
            for base in klass.__dict__.get("__orig_bases__", ()):
                origin = get_origin(base)
                if not (inspect.isclass(origin) and issubclass(origin, BaseTaskWorker)):
                    continue
                for argument in get_args(base):
                    if inspect.isclass(argument) and issubclass(argument, BaseModel):
                        return argument
        raise TypeError(
            f"{cls.__name__} must name its parameters: class {cls.__name__}(BaseTaskWorker[YourPydanticModel])"
        )

    @classmethod
    def cli(cls, arguments: Sequence[str] | None = None) -> NoReturn:
        """Run it in this terminal, without Kafka; the command line gives the parameters. Does not return.

        if __name__ == "__main__":
            Cam.cli()                     # python my_worker.py --fps 5
        """
        from skalds_streams.worker import standalone  # imports this module

        standalone.main(cls, arguments)

    @classmethod
    def _create(
        cls,
        task_id: str,
        *,
        epoch: int,
        state: dict[str, Any] | None = None,
        on_saved: Callable[[], object] = lambda: None,
    ) -> Self:
        """A worker that knows its task from the first line of its own __init__ on."""
        worker = cls.__new__(cls)
        worker._bind(task_id, epoch=epoch, state=state)
        worker._on_saved = on_saved
        cls.__init__(worker)
        return worker

    def _bind(self, task_id: str, *, epoch: int, state: dict[str, Any] | None = None) -> None:
        self.task_id = task_id
        self.task_type = type(self).__name__
        self.epoch = epoch
        self.__dict__["state"] = state  # a class may have a property of that name, and keeps it
        self._saved = None
        self._on_saved = _nobody
        self.is_done = False
        self._gauges: Gauges | None = None
        self._told: tuple[Callable[[Frame], None], Callable[[], object] | None] | None = None
        self._children: Children | None = None
        self._output_fd: int | None = None
        self._watch = None
        self.logger = logging.LoggerAdapter(
            logging.getLogger(f"worker.{self.task_type}"), {"task_id": task_id, "epoch": epoch}
        )

    def metric(self, name: str, value: SupportsFloat) -> None:
        """Set a number about this run, e.g. `self.metric("fps", 29.8)`: it is shown on the task's page and at
        `/api/tasks/{id}` of the node that runs it, a second later at most. At most 32 names; any thread, any rate.

        Raises ValueError for a name of other characters than letters, digits and _ . : -, TypeError for no number.
        """
        gauges = self._gauges
        if gauges is None:
            with _MAKING:
                gauges = self._gauges = self._gauges or Gauges(self._told)
        gauges.set(name, value)

    def spawn(self, command: Command, **options: Any) -> subprocess.Popen[Any]:
        """Start a program that ends with this worker, however that ends; what still runs after the release handler is
        killed. `options` are those of subprocess.Popen; stdin is empty unless given. Any thread.
        """
        with _MAKING:
            self._children = self._children or Children(self._output_fd)
        return self._children.spawn(command, **options)

    def _attach(self, send: Callable[[Frame], None], on_news: Callable[[], object] | None) -> None:
        """Have what is set by `metric` sent from now on; on_news: see `Gauges`."""
        self._told = (send, on_news)
        if self._gauges is not None:
            self._gauges.attach(send, on_news)

    def _handler(self, role: str) -> Callable[..., Any] | None:
        """The bound method that carries the decorator `role`, or None."""
        name = self._handlers.get(role)
        handler: Callable[..., Any] | None = getattr(self, name) if name else None
        return handler


def mock_task_id() -> str:
    """The id of a run that no task stands behind."""
    return f"MOCK_TASK_{secrets.token_hex(4)}"


def _nobody() -> None:
    """Outside of a host nobody is told of what is saved."""


def run_before_handler(function: FunctionT) -> FunctionT:
    """Runs after `initialize` and before main."""
    return _mark(function, BEFORE)


def run_main_handler(function: FunctionT) -> FunctionT:
    """The job itself. The task is finished when it returns."""
    return _mark(function, MAIN)


def run_after_handler(function: FunctionT) -> FunctionT:
    """Runs after main has returned. Not after a stop or an error."""
    return _mark(function, AFTER)


def release_handler(function: FunctionT) -> FunctionT:
    """Frees what the run holds. Called exactly once, however the run ends."""
    return _mark(function, RELEASE)


def update_event_handler(function: FunctionT) -> FunctionT:
    """Takes new parameters while main runs: `def on_update(self, data: Model)`."""
    return _mark(function, UPDATE)


def _mark(function: FunctionT, role: str) -> FunctionT:
    if not inspect.isfunction(function):
        raise TypeError(f"@{role} goes on a method, directly above its `def`, not on {function!r}")
    roles: frozenset[str] = getattr(function, _ROLES_ATTRIBUTE, frozenset())
    setattr(function, _ROLES_ATTRIBUTE, roles | {role})
    return function


def _collect_handlers(cls: type[BaseTaskWorker[Any]]) -> dict[str, str]:
    """Role → method name. Own methods win over inherited ones; anything ambiguous raises TypeError."""
    own: dict[str, list[str]] = {}
    for name, value in vars(cls).items():
        for role in getattr(value, _ROLES_ATTRIBUTE, ()):
            own.setdefault(role, []).append(name)
    inherited: dict[str, list[str]] = {}
    for base in cls.__bases__:
        for role, name in getattr(base, "_handlers", {}).items():
            inherited.setdefault(role, []).append(name)
    handlers = {}
    for role in own.keys() | inherited.keys():
        names = sorted(set(own.get(role) or inherited[role]))
        if len(names) > 1:
            raise TypeError(f"{cls.__qualname__} has more than one @{role}: {', '.join(names)}. Decorate one of them.")
        handlers[role] = names[0]
    return handlers
