"""Where the log of a task is: at the node that runs it, else at the one that ran it last; and why it can't be had from
there.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from skalds_streams.core.membership import Member, Members
from skalds_streams.core.row import Row
from skalds_streams.web.documents import web_link


@dataclass(frozen=True, slots=True)
class LogPlace:
    """A node, and its living process if there is one."""

    skald_id: str
    member: Member | None

    @property
    def url(self) -> str | None:
        """Address of its page."""
        link = web_link(self.member.web) if self.member is not None else None
        return link.rstrip("/") if link else None

    def problem(self, asked_from: str) -> str | None:
        """Why who stands on this machine (`skald.machine.host_name`) can't ask there, in words; None when it can."""
        if self.member is None:
            return f"it ran last on {self.skald_id}, which is gone: its log is on that machine, in the data directory"
        if self.url is None:
            return f"{self.skald_id} tells no web address: set SKALDS_WEB_URL there"
        if _is_local(self.url) and self.member.host != asked_from:
            return (
                f"it is on {self.skald_id}, whose page answers on its own machine only ({self.url}): ask there, or set"
                " SKALDS_WEB_BIND, SKALDS_WEB_TOKEN and SKALDS_WEB_URL on it"
            )
        return None


def log_place(row: Row, members: Members) -> LogPlace | None:
    """None when it has never run anywhere."""
    if row.holder is not None:
        member = members.get(row.holder.incarnation) or members.standing(row.holder.skald_id)
        return LogPlace(row.holder.skald_id, member)
    skald_id = row.last_skald or row.moved_from
    return LogPlace(skald_id, members.standing(skald_id)) if skald_id else None


def _is_local(url: str) -> bool:
    """Whether the address means another machine to everybody."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified
