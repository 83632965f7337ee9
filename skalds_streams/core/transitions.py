"""Which status may follow which, as a table. `core.decide` moves a row's status by `step` only; a pair that is not
here is illegal.

The picture in docs/states.md is drawn from this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from skalds_streams.core.row import Status
from skalds_streams.errors import IllegalTransitionError


class Step(StrEnum):
    """What happened, seen from the lifecycle."""

    REMEMBER = "remember"
    """A command before the assign: parameters are kept."""
    ASSIGN = "assign"
    RUN = "run"
    FREE = "free"
    """The holder is gone, the task is wanted: it is to be placed again."""
    PAUSE = "pause"
    FINISH = "finish"
    FAIL = "fail"
    CANCEL = "cancel"


_S = Status
TRANSITIONS: Mapping[tuple[Status, Step], Status] = {
    (_S.CREATED, Step.REMEMBER): _S.CREATED,
    (_S.FINISHED, Step.REMEMBER): _S.FINISHED,
    (_S.FAILED, Step.REMEMBER): _S.FAILED,
    (_S.CANCELLED, Step.REMEMBER): _S.CANCELLED,
    (_S.PAUSED, Step.REMEMBER): _S.PAUSED,
    (_S.CREATED, Step.ASSIGN): _S.ASSIGNING,
    (_S.FINISHED, Step.ASSIGN): _S.ASSIGNING,
    (_S.FAILED, Step.ASSIGN): _S.ASSIGNING,
    (_S.CANCELLED, Step.ASSIGN): _S.ASSIGNING,
    (_S.PAUSED, Step.ASSIGN): _S.ASSIGNING,
    (_S.ASSIGNING, Step.ASSIGN): _S.ASSIGNING,
    (_S.RUNNING, Step.ASSIGN): _S.RUNNING,
    (_S.ASSIGNING, Step.RUN): _S.RUNNING,
    (_S.ASSIGNING, Step.FREE): _S.ASSIGNING,
    (_S.RUNNING, Step.FREE): _S.ASSIGNING,
    (_S.CREATED, Step.PAUSE): _S.PAUSED,
    (_S.FINISHED, Step.PAUSE): _S.PAUSED,
    (_S.FAILED, Step.PAUSE): _S.PAUSED,
    (_S.CANCELLED, Step.PAUSE): _S.PAUSED,
    (_S.PAUSED, Step.PAUSE): _S.PAUSED,
    (_S.ASSIGNING, Step.PAUSE): _S.PAUSED,
    (_S.RUNNING, Step.PAUSE): _S.PAUSED,
    (_S.ASSIGNING, Step.FINISH): _S.FINISHED,
    (_S.RUNNING, Step.FINISH): _S.FINISHED,
    (_S.ASSIGNING, Step.FAIL): _S.FAILED,
    (_S.RUNNING, Step.FAIL): _S.FAILED,
    (_S.CREATED, Step.CANCEL): _S.CANCELLED,
    (_S.ASSIGNING, Step.CANCEL): _S.CANCELLED,
    (_S.RUNNING, Step.CANCEL): _S.CANCELLED,
    (_S.PAUSED, Step.CANCEL): _S.CANCELLED,
}


def step(status: Status, what: Step) -> Status:
    """The status after `what`. Raises IllegalTransitionError when the table has no such step."""
    try:
        return TRANSITIONS[status, what]
    except KeyError:
        raise IllegalTransitionError(f"no step {what.value!r} from status {status.value}") from None


def mermaid() -> str:
    """The table as a Mermaid state diagram; what is not in the table is not in the picture."""
    lines = ["stateDiagram-v2", "    [*] --> Created"]
    lines += [f"    {before.value} --> {after.value}: {what.value}" for (before, what), after in TRANSITIONS.items()]
    return "\n".join(lines)
