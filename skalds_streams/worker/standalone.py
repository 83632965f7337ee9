"""One worker in the terminal, without Kafka: `python my_worker.py --fps 5`, by `Cam.cli()` at the end of the file.

Rules: the life is `run`'s, so hooks, their order and their errors are those of a host. Ctrl-C and SIGTERM stop as a
cancel does, with exit code 0; a second Ctrl-C kills. What fails the run ends with the traceback and exit code 1,
parameters that do not fit with exit code 2. As in a host, threads that the worker left behind keep nothing alive.

Options: one a parameter, by field name and by alias. A value is taken as it is; where the model does not accept the
text, it is read as JSON. What does not live here: updates while it runs, leases and limits.
"""

from __future__ import annotations

import argparse
import ctypes
import inspect
import json
import logging
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any, NoReturn

from pydantic import ValidationError

from skalds_streams.worker import outcome
from skalds_streams.worker.baseclass import BaseTaskWorker, mock_task_id
from skalds_streams.worker.frames import Frame
from skalds_streams.worker.process import configure_logging, leave
from skalds_streams.worker.registry import NotLoadable, WorkerClass, check
from skalds_streams.worker.run import Run
from skalds_streams.worker.schema_words import Parameter, parameters
from skalds_streams.worker.secrets import EVERYTHING, Secrets
from skalds_streams.worker.stopper import Stopper

FAILED, WRONG_USAGE = 1, 2
STOPPING = b"\nstopping; Ctrl-C again kills it\n"


def main(worker_type: type[BaseTaskWorker[Any]], arguments: Sequence[str] | None = None) -> NoReturn:
    """Run it with these options of the command line. Main thread only; ends the process."""
    try:
        described = check(worker_type)
    except NotLoadable as error:
        sys.exit(f"{worker_type.__name__} can't run: {error}")
    parser = _parser(described)
    attachments = _attachments(described, parser, vars(parser.parse_args(arguments)))
    configure_logging()
    stopper = _Stopper()
    stopper.install()
    threading.Thread(target=_look_after, args=(stopper, stopper.open_wakeup()), name="signals", daemon=True).start()
    secrets = Secrets(EVERYTHING, described.secret)
    frame = {"task_id": mock_task_id(), "epoch": 0, "attachments": attachments, "version": 0}
    last = Run(described, frame, send=_show, stopper=stopper, secrets=secrets).execute()
    leave(_exit_code(last))


def _exit_code(last: Frame) -> int:
    if last["op"] != "failed":
        return 0
    error = last["error"]
    sys.stderr.write("\n".join(error["traceback"] or [f"{error['type']}: {error['message']}"]) + "\n")
    return FAILED


def _show(frame: Frame) -> None:
    """Of what a host would send, the worker's figures are for the person."""
    if frame["op"] == "metrics":
        told = ", ".join(f"{name} {'–' if value is None else f'{value:g}'}" for name, value in frame["values"].items())
        logging.getLogger("metrics").info("%s", told)


class _Stopper(Stopper):
    """Takes Ctrl-C as a stop, once."""

    def install(self) -> None:
        super().install()
        signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.write(2, STOPPING)
        super()._on_signal(signum, frame)


def _look_after(stopper: Stopper, wakeup: socket.socket) -> None:
    """What a host's I/O thread does for signals. The second Ctrl-C must kill even while main is deep in C code and has
    not handled the first.
    """
    libc = ctypes.CDLL(None)
    pause_s: float | None = None
    poll = select.poll()
    poll.register(wakeup, select.POLLIN)
    while True:
        poll.poll(None if pause_s is None else 1000 * pause_s)
        if signal.SIGINT in _peek(wakeup):
            libc.signal(signal.SIGINT, None)
        pause_s = stopper.nudge()


def _peek(wakeup: socket.socket) -> bytes:
    try:
        return wakeup.recv(4096, socket.MSG_PEEK)
    except BlockingIOError:  # main has handled it
        return b""


# -- options -----------------------------------------------------------------------------------------------------------


def _parser(described: WorkerClass) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=inspect.cleandoc(described.worker_type.__doc__ or ""),
        epilog="Ctrl-C stops it as a cancel would: the release handler runs. A second one kills it.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        conflict_handler="resolve",
    )
    names = {alias: name for name, alias in described.aliases.items()}
    group = parser.add_argument_group("parameters")
    for parameter in parameters(described.schema):
        name = names.get(parameter.key, parameter.key)
        options = dict.fromkeys([_option(name), f"--{name}", f"--{parameter.key}"])
        group.add_argument(*options, dest=name, help=_help(parameter), default=argparse.SUPPRESS, **_action(parameter))
    return parser


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _action(parameter: Parameter) -> dict[str, Any]:
    if parameter.kind == "boolean":
        return {"action": argparse.BooleanOptionalAction}
    return {"metavar": "JSON" if parameter.is_nested else "VALUE"}


def _help(parameter: Parameter) -> str:
    default = "required" if parameter.required else f"default {parameter.default}" if parameter.default else ""
    kind = "; ".join(part for part in (parameter.kind, default) if part)
    return f"{parameter.about} ({kind})".strip().replace("%", "%%")


def _attachments(described: WorkerClass, parser: argparse.ArgumentParser, given: Mapping[str, Any]) -> dict[str, Any]:
    """The document that the options say. Ends the process when it does not fit the model."""
    document = dict(given)
    wrong = _wrong_fields(described, document)
    for name in wrong & document.keys():
        document[name] = _from_json(document[name])
    try:
        described.validate(document)
    except ValidationError as error:
        parser.error(outcome.describe_invalid(error)["message"])
    except Exception as error:  # noqa: BLE001  # a user's validator may raise anything
        parser.error(f"the parameters do not fit: {type(error).__name__}: {outcome.message_of(error)}")
    return document


def _wrong_fields(described: WorkerClass, document: Mapping[str, Any]) -> set[str]:
    try:
        described.validate(document)
    except ValidationError as error:
        return {str(problem["loc"][0]) for problem in error.errors(include_input=False) if problem["loc"]}
    except Exception:  # noqa: BLE001  # as above; told when it is validated again
        return set()
    return set()


def _from_json(value: Any) -> Any:
    """What the text says as JSON, or the text itself."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value
