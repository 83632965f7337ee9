"""Faust's partition assignor, with a name for each member that outlives its process.

Faust's checks that an assignment carries the web address of the process that gets it. A member with an instance id that
comes back within a session timeout is handed the assignment of its former life, as it is; with another address (another
port, another machine) it would fail, and be in no group for ever.
"""

from __future__ import annotations

from faust.assignor.partition_assignor import PartitionAssignor
from yarl import URL


class StableAssignor(PartitionAssignor):  # type: ignore[misc]  # faust has no types that mypy can follow
    """See the module. The name is read by members only; Faust's routing by it is off."""

    @property
    def _url(self) -> URL:
        instance_id = self.app.conf.consumer_group_instance_id
        return URL(f"http://skald/{instance_id}") if instance_id else URL(self.app.conf.canonical_url)
