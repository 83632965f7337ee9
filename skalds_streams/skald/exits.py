"""How a host's process ended, and what is said of it when the worker itself has said nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from skalds_streams.worker.memory import size_text
from skalds_streams.worker.outcome import Reason, simple, stacks

RAN_OUT = "its lease ran out: it held the GIL, or was stopped, for longer than a lease"
ZYGOTE_LOST = "zygote lost"
REAPER_KILLED = "its reaper was killed, and the kernel ended it"
OOM_KILLED = "the kernel's OOM killer was at work when it was killed"

STUCK_WITH_GIL = "main made no progress for longer than stall_s, and let no other thread run: it held the GIL"

_TYPES = {
    Reason.EXIT_CODE: "ExitCode",
    Reason.SIGNAL: "Signal",
    Reason.LEASE: "LeaseRanOut",
    Reason.STALL: "Stalled",
    Reason.MEMORY: "OutOfMemory",
    Reason.NODE: "NodeFault",
}


@dataclass(frozen=True, slots=True)
class ExitInfo:
    """How a host ended. `status` is the raw wait status, None when nobody could read it; `reason` is in words,
    `kind` for programs; `peak_bytes` the most memory that it had (resident), 0 when unknown; `dump` the stacks of its
    threads if it was stuck, as faulthandler wrote them; `beside`, of a run that shared the host, why another one ended
    it, "" when none did.
    """

    status: int | None
    reason: str
    kind: Reason = field(default=Reason.NODE, compare=False)
    peak_bytes: int = field(default=0, compare=False)
    dump: str = field(default="", compare=False)
    beside: str = field(default="", compare=False)

    @property
    def excuse(self) -> str:
        """Why it was nothing that the worker did; "" when nothing excuses it."""
        return self.beside or (ZYGOTE_LOST if self.reason == ZYGOTE_LOST else "")

    @classmethod
    def of(cls, status: int, peak_bytes: int = 0, dump: str = "") -> ExitInfo:
        """In words: "exit 0", "exit code 3", "signal 9 (SIGKILL)"."""
        if not os.WIFSIGNALED(status):
            code = os.waitstatus_to_exitcode(status)
            return cls(status, f"exit code {code}" if code else "exit 0", Reason.EXIT_CODE, peak_bytes, dump)
        number = os.WTERMSIG(status)
        try:
            name = f"signal {number} ({signal.Signals(number).name})"
        except ValueError:  # a real-time signal has no name
            name = f"signal {number}"
        return cls(status, name, Reason.SIGNAL, peak_bytes, dump)


def error_of(info: ExitInfo, steps: Sequence[str] = ()) -> dict[str, Any]:
    """The error document (`worker.outcome`) of a run that ended so. steps: what its node did to make it end."""
    if info.kind is Reason.EXIT_CODE and info.status is not None:
        code = os.waitstatus_to_exitcode(info.status)
        text = f"the worker's process ended with exit code {code}, without a word"
    elif info.kind is Reason.SIGNAL:
        text = f"the worker's process was ended by {info.reason}"
    else:
        text = info.reason
    if steps:
        text += f" ({', '.join(steps)})"
    if info.kind in (Reason.SIGNAL, Reason.MEMORY) and info.peak_bytes:
        text += f"; it had {size_text(info.peak_bytes)} of memory at most"
    return {**simple(_TYPES[info.kind], text, info.kind), "traceback": stacks(info.dump)}
