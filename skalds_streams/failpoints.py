"""Places in the code at which a test, or a person who wants to see it, lets this process die, stand still or fail.

    SKALDS_FAILPOINT=in_transaction@3:kill faust -A skalds_streams worker
    SKALDS_FAILPOINT=after_commit@2:raise,before_decide:sleep:0.2 faust -A skalds_streams worker

Grammar: `point[@N]:action`, comma-separated. With @N only the N-th time that the process comes by, without it every
time. All partitions count together. Actions: `kill` (SIGKILL to this process, nothing is cleaned up), `stop` (SIGSTOP,
until somebody sends SIGCONT), `raise` (FailpointError, taken for an error of the broker whose outcome is unknown),
`sleep:SECONDS` (only the caller waits).

Rules: the environment is read once, when the first point is passed; a name or an action that does not exist is a
ConfigError that lists those that do; what is done is logged before it is done. Unset, a call costs one look at an
empty dict. Points are lines of the code that they stand in (`await reach("before_decide")`); nothing here knows what
happens there.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from skalds_streams.errors import ConfigError, JournalError

VARIABLE = "SKALDS_FAILPOINT"
SLEEP_MOST_S = 3_600.0

POINTS: Mapping[str, str] = {
    "before_decide": "deliveries are taken, nothing is decided",
    "after_decide": "a batch is decided, nothing is written",
    "in_transaction": "all records are sent, the transaction is not committed",
    "after_commit": "the transaction is committed; rows are not swapped in, nothing is acknowledged",
    "after_ack": "a batch is done with, acknowledged to Faust",
    "while_opening": "the former owner of a partition is fenced, its changelog is not read yet",
    "in_recovery": "in the middle of reading a changelog, once a fetched piece of it",
}
"""Name → when a process is there."""

log = structlog.get_logger(__name__)


class FailpointError(JournalError):
    """What a failpoint with `raise` raises: nobody knows whether the broker did what was asked."""


@dataclass(slots=True)
class Failpoint:
    """One thing to do at one point. `nth` 0: every time."""

    point: str
    nth: int
    action: str
    sleep_s: float = 0.0
    passed: int = 0

    def is_due(self) -> bool:
        """Count one more passage. Whether it is the one."""
        self.passed += 1
        return self.nth in (0, self.passed)


_armed: dict[str, list[Failpoint]] | None = None
"""By point. None: the environment was not looked at yet."""


async def reach(point: str) -> None:
    """This process is at `point` now. Raises FailpointError if so told, ConfigError when the variable is wrong."""
    armed = _armed if _armed is not None else arm(os.environ.get(VARIABLE, ""))
    if armed:
        await _act(armed, point)


def arm(text: str) -> dict[str, list[Failpoint]]:
    """Do from now on what `text` says, instead of what was said before; "" disarms. Raises ConfigError."""
    global _armed
    armed: dict[str, list[Failpoint]] = {}
    for item in filter(None, (item.strip() for item in text.split(","))):
        failpoint = parse_failpoint(item)
        armed.setdefault(failpoint.point, []).append(failpoint)
    _armed = armed
    return armed


def parse_failpoint(text: str) -> Failpoint:
    """One `point[@N]:action`. Raises ConfigError."""
    name, colon, action = text.partition(":")
    point, at, times = name.partition("@")
    if point not in POINTS:
        raise ConfigError(f"{VARIABLE}: there is no failpoint {point!r}, only {', '.join(POINTS)}")
    if at and not (times.isdecimal() and int(times) > 0):
        raise ConfigError(f"{VARIABLE}: {text!r}: after @ comes a number from 1 on, e.g. {point}@3:kill")
    word, _, seconds = action.partition(":")
    nth = int(times) if at else 0
    if word in ("kill", "stop", "raise") and action == word:
        return Failpoint(point, nth, word)
    if word == "sleep" and (sleep_s := _seconds(seconds)) is not None:
        return Failpoint(point, nth, word, sleep_s)
    told = f"{action!r} is no action" if colon else "an action is missing"
    raise ConfigError(f"{VARIABLE}: {text!r}: {told}; kill, stop, raise or sleep:SECONDS, e.g. {point}:sleep:0.5")


def _seconds(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value <= SLEEP_MOST_S else None


async def _act(armed: Mapping[str, list[Failpoint]], point: str) -> None:
    due = [(failpoint, failpoint.passed) for failpoint in armed.get(point, ()) if failpoint.is_due()]
    for failpoint, time in due:
        log.warning("failpoint.reached", point=point, time=time, action=failpoint.action)
        if failpoint.action == "sleep":
            await asyncio.sleep(failpoint.sleep_s)
        elif failpoint.action == "raise":
            raise FailpointError(f"failpoint {point}, time {time}")
        else:
            os.kill(os.getpid(), signal.SIGKILL if failpoint.action == "kill" else signal.SIGSTOP)
