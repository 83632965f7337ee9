"""Whether this process may take part: before it does, all the time, and before it joins the group again.

Rules: as long as another incarnation of its id lives, or somebody who is there has other settings that all must share,
a process that comes waits, and gives up when that does not end (`core.admission`). One that takes part and finds that
another stands in its place (it was counted dead meanwhile) ends and never comes back to the group; so does one that is
asked to by a process that wants to take over. Ending is orderly: it stops its workers before it says so.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from skalds_streams.core.admission import (
    Obstacle,
    Patience,
    asks_to_take_over,
    differences,
    find_obstacle,
    outsiders,
    where,
)
from skalds_streams.errors import AdmissionError, DisagreementError, TwinError
from skalds_streams.proxy.waiting import Waiting
from skalds_streams.settings import Settings
from skalds_streams.skald.identity import Identity
from skalds_streams.view.cluster import ClusterView

log = structlog.get_logger(__name__)


class Admission:
    """See the module. `begin` when the process takes part."""

    def __init__(
        self,
        settings: Settings,
        view: ClusterView,
        identity: Callable[[], Identity],
        on_fatal: Callable[[BaseException], object],
        waiting: Waiting,
    ) -> None:
        """identity: who this process is now; on_fatal: ends the process in order; waiting: told what is waited for."""
        self._waiting = waiting
        self._settings, self._view, self._identity, self._on_fatal = settings, view, identity, on_fatal
        self.is_over = False
        """Whether the process must end."""
        self._begun = False

    @property
    def obstacle(self) -> Obstacle | None:
        """What keeps this process from taking part, as far as the heartbeats are read."""
        me = self._identity()
        return find_obstacle(self._view.members, me.skald_id, me.incarnation, me.replaces)

    async def wait(self) -> None:
        """Until nothing is in the way. Raises TwinError or DisagreementError when it was waited for long enough."""
        patience: Patience | None = None
        told: tuple[str, tuple[str, ...]] | None = None
        with self._view.subscribe() as changes:
            while (obstacle := self.obstacle) is not None:
                incarnation = self._identity().incarnation
                if patience is None or patience.incarnation != incarnation:
                    patience = Patience(incarnation, self._settings.take_over)
                if patience.is_over(self._view.members, obstacle):
                    raise self._error(obstacle)
                if told != (obstacle.member.incarnation, obstacle.differing):
                    told = obstacle.member.incarnation, obstacle.differing
                    self._waiting.say(str(self._error(obstacle)).rstrip("."))
                    log.warning("skald.waits", other=where(obstacle.member), differing=obstacle.differing)
                await changes.wait()
        self._waiting.over()

    def begin(self) -> None:
        """Take part from now on, and look at every change of who is there."""
        self._begun = True
        self._view.on_members(self.check)
        self.check()

    def check(self) -> None:
        """End the process when another has its place, or asks for it."""
        if not self._begun or self.is_over:
            return
        me = self._identity()
        obstacle = self.obstacle
        error: AdmissionError | None = None
        if obstacle is not None:
            error = self._error(obstacle)
        elif (successor := asks_to_take_over(self._view.members, me.skald_id, me.incarnation)) is not None:
            error = TwinError(f"skald {me.skald_id!r} is taken over by another process: {where(successor)}")
        if error is not None:
            self.is_over = True
            log.warning("skald.ends", reason=str(error))
            self._on_fatal(error)

    async def may_rejoin(self) -> bool:
        """Whether a process that the group has given up may join again. Reads all heartbeats that there are first."""
        await self._view.read_members()
        self.check()
        return not self.is_over

    def _error(self, obstacle: Obstacle) -> AdmissionError:
        member, skald_id = obstacle.member, self._identity().skald_id
        if obstacle.differing:
            return DisagreementError(
                f"skald {member.skald_id!r} ({where(member)}) has other settings that all nodes must share:"
                f" {differences(obstacle, self._settings.agreed)}. Give both the same, or this one another"
                " SKALDS_TOPIC_PREFIX; to change such a setting stop all nodes first."
            )
        return TwinError(
            f"another process runs as skald {skald_id!r}: {where(member)}."
            " Stop it, or set another SKALD_ID; SKALDS_TAKE_OVER=true asks it to end, for this one start."
        )


def banners(view: ClusterView, settings: Settings) -> list[str]:
    """Sentences for the page: who is there and takes no part, and what is missing."""
    members, told = view.members, list[str]()
    for obstacle in outsiders(members):
        member = obstacle.member
        if obstacle.differing:
            told.append(
                f"Skald {member.skald_id} has other settings and takes no part:"
                f" {differences(obstacle, settings.agreed)} ({where(member)})."
            )
        else:
            told.append(f"A second process runs as skald {member.skald_id} and takes no part: {where(member)}.")
    if view.members_caught_up and not any(member.role != "skald" and not member.waits for member in members):
        told.append("No coordinator is here: what is asked of tasks waits until a node with that role comes.")
    return told
