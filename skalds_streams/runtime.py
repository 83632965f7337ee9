"""One process, put together: view, coordinator, skald, projections. Knows the order of starting and stopping, and
nothing else.

Start: a broker → topics → identity → view → reports → admission → zygote → heartbeat → supervisor. Stop: workers → the
last heartbeat → the rest. Of the two roles one may be missing: a skald has no journals, a coordinator no workers.
A background task that raises ends the process through `on_fatal`; none dies silently.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import structlog

from skalds_streams.coordinator.batch import Secrecy
from skalds_streams.coordinator.group import GroupQuestion, watch_membership
from skalds_streams.coordinator.journal import JournalContext
from skalds_streams.coordinator.journals import Journals
from skalds_streams.coordinator.log import PartitionLog
from skalds_streams.coordinator.omissions import InputWatch
from skalds_streams.coordinator.states import StateSweeper
from skalds_streams.coordinator.task_source import FileCatalogue
from skalds_streams.coordinator.timers import DueTimer
from skalds_streams.core.due import no_catalogue
from skalds_streams.errors import TopicResizedError
from skalds_streams.model.codec import Limits
from skalds_streams.projections.metrics import Metrics, MetricSources
from skalds_streams.projections.redis import RedisProjection
from skalds_streams.proxy.client import client_options, tune_consumers
from skalds_streams.proxy.partition_count import PartitionWatch
from skalds_streams.proxy.reports import ReportSender
from skalds_streams.proxy.states import StateSender
from skalds_streams.proxy.topic_setup import TopicReport, ensure_topics
from skalds_streams.proxy.waiting import Waiting, until_answered
from skalds_streams.settings import Settings
from skalds_streams.skald import admission
from skalds_streams.skald.background import Background
from skalds_streams.skald.hosts import Catalogue
from skalds_streams.skald.identity import Identity, claim_identity
from skalds_streams.skald.node import SkaldNode
from skalds_streams.skald.states import States, StateStatistics
from skalds_streams.topics import Topics
from skalds_streams.version import __version__
from skalds_streams.view.cluster import ClusterView
from skalds_streams.view.states import StateReader
from skalds_streams.web.context import WebContext

STOP_S = 5.0

log = structlog.get_logger(__name__)


def wall_ms() -> int:
    """The wall clock, in ms since the epoch."""
    return time.time_ns() // 1_000_000


def limits_of(settings: Settings) -> Limits:
    """The bounds on events."""
    return Limits(settings.max_record_bytes, settings.max_ids_per_event, settings.max_attachments_bytes)


class Runtime:
    """Everything of one process but Faust itself. Constructing it does no I/O."""

    def __init__(
        self,
        settings: Settings,
        consumer: Callable[[], Any],
        reading: Callable[[], bool],
        on_fatal: Callable[[BaseException], object],
    ) -> None:
        """consumer: returns Faust's consumer; reading: whether Faust feeds the agents, not so while the group
        rebalances; on_fatal: ends the process with this error.
        """
        self.settings, self._reading, self._on_fatal = settings, reading, on_fatal
        self._consumer = consumer
        self.topics = Topics.named(
            app=settings.app, prefix=settings.topic_prefix, partitions=settings.kafka_topic_partitions
        )
        self._client = client_options(settings)
        self.view = ClusterView(self.topics, self._client, settings.hold_beats, settings.agreed)
        self._sender = ReportSender(self.topics, self._client)
        self._state_reader = StateReader(self.topics, self._client)
        self._state_sender = StateSender(self.topics, self._client)
        self.journals = Journals(self._journal_context(GroupQuestion(consumer)), self._new_log, on_fatal)
        file = settings.yaml_file if settings.coordinates else None
        self._catalogue = FileCatalogue(file, limits_of(settings)) if file is not None else None
        self._timer = DueTimer(
            self.journals,
            self.view.members,
            self._sender,
            wall_ms,
            retention_ms=settings.terminal_retention_ms,
            catalogue=self._catalogue.find if self._catalogue is not None else no_catalogue,
        )
        self.view.on_members(self._timer.wake)
        self.skald: SkaldNode | None = None
        self._states: States | None = None
        self._redis: RedisProjection | None = None
        self.waiting = Waiting()
        self._background = Background(on_fatal)
        self._warnings: list[str] = []
        self.metrics = Metrics(self._metric_sources())

    def _journal_context(self, question: GroupQuestion) -> JournalContext:
        settings = self.settings
        return JournalContext(
            topics=self.topics,
            limits=limits_of(settings),
            secrecy=Secrecy(
                settings.secret_words,
                settings.digest_key.get_secret_value().encode(),
                self.view.members.secret_paths,
            ),
            members=self.view.members,
            forwarder=self._sender,
            now_ms=wall_ms,
            is_ours=question.is_ours,
            batch_max=settings.batch_max_events,
        )

    def _new_log(self, partition: int) -> PartitionLog:
        transactional_id = f"{self.settings.topic_prefix}{self.settings.app}-{partition}"
        return PartitionLog(partition, topics=self.topics, transactional_id=transactional_id, client=self._client)

    # -- start --------------------------------------------------------------------------------------------------------
    # -----------

    async def start(self) -> None:
        """Everything that must stand before the consumer subscribes. Waits until a broker answers. Raises ConfigError,
        AdmissionError, KafkaError, HostError.
        """
        if self._catalogue is not None:
            await asyncio.to_thread(self._catalogue.open)
        tune_consumers()
        report = await until_answered(self._client, self._ensure_topics, self.waiting)
        self._warnings += report.warnings
        for warning in report.warnings:
            log.warning("topics.warning", text=warning)
        identity = await asyncio.to_thread(
            claim_identity, self.settings.data_dir, self.settings.skald_id, on_wait=WaitNotice()
        )
        self._background.spawn("partitions", self._watch_partitions())
        self._background.spawn("view", self.view.run())
        self._background.spawn("state-reader", self._state_reader.run())
        await self._sender.start()
        self._states = States(self._state_reader, self._state_sender, skald_id=identity.skald_id)
        self.skald = SkaldNode(
            self.settings,
            self.topics,
            self._client,
            self.view,
            self._sender,
            self._states,
            identity,
            spawn=self._background.spawn,
            now_ms=wall_ms,
            on_fatal=self._on_fatal,
            waiting=self.waiting,
        )
        await self.skald.start()
        self._redis = RedisProjection(self.settings, self.view, identity.skald_id, self._held)
        self._background.spawn("redis", self._redis.run())
        if self.settings.coordinates:
            self._background.spawn("due", self._timer.run(lambda: self.view.members_caught_up))
            if self._catalogue is not None:
                self._background.spawn("catalogue", self._catalogue.run())
            self._background.spawn("omissions", InputWatch(self.journals, self._client).run())
            self._background.spawn("group", watch_membership(self._consumer))
            self._background.spawn("state-sweeper", self._new_sweeper().run())
        if self.settings.worker_modules and not self.settings.runs_workers:
            log.warning("workers.ignored", reason="SKALDS_ROLE=coordinator runs no workers")
        identity = self.skald.identity
        log.info("skald.up", skald=identity.skald_id, incarnation=identity.incarnation, replaces=identity.replaces)

    async def _ensure_topics(self) -> TopicReport:
        return await ensure_topics(
            self.topics.specs(), self._client, replication_factor=self.settings.kafka_replication_factor
        )

    def _new_sweeper(self) -> StateSweeper:
        return StateSweeper(
            self.view,
            self._state_reader,
            self._state_sender,
            lambda: [journal.partition for journal in self.journals if journal.opened.is_set()],
            retention_ms=self.settings.terminal_retention_ms,
        )

    async def _watch_partitions(self) -> None:
        try:
            await PartitionWatch(self.topics.specs(), self._client).run()
        except TopicResizedError as error:
            self.journals.halt(error)

    # -- stop ---------------------------------------------------------------------------------------------------------
    # -----------

    @property
    def identity(self) -> Identity | None:
        """Who this process is now; None before it is known."""
        return self.skald.identity if self.skald is not None else None

    @property
    def stop_most_s(self) -> float:
        """What the workers here may take to stop, in seconds."""
        return self.skald.supervisor.stop_most_s if self.skald is not None else 0.0

    async def may_rejoin(self) -> bool:
        """Whether a process that the consumer group has given up may join it again."""
        return self.skald is not None and await self.skald.admission.may_rejoin()

    async def leave(self) -> None:
        """Stop the workers, then say that they are gone. The coordinator goes on meanwhile."""
        if self.skald is not None:
            await self.skald.leave()

    async def close(self) -> None:
        """Stop the rest. Bounded in time."""
        await self._background.close()
        await self.journals.close()
        if self.skald is not None:
            await self.skald.stop()
        await asyncio.gather(_stopped(self._sender), _stopped(self._state_sender))

    # -- what others read

    def _held(self) -> Sequence[str]:
        return self.skald.held() if self.skald is not None else ()

    def readiness(self) -> Mapping[str, bool]:
        """What must be true for this node to do its work."""
        ready = {
            "view_caught_up": self.view.is_caught_up,
            "lease_valid": self.skald is not None and self.skald.lease.is_valid,
        }
        if self.settings.coordinates:
            ready |= {"journals_open": self.journals.all_open, "reading_inputs": self._reading()}
        if self.settings.runs_workers:
            ready["workers_loaded"] = self.skald is not None and self.skald.catalogue is not None
        return ready

    def banners(self) -> Sequence[str]:
        """Sentences for the person at the page."""
        down = self._redis is not None and self.settings.redis_enabled and not self._redis.up
        return [
            *self._warnings,
            *(self._catalogue.problems if self._catalogue is not None else ()),
            *admission.banners(self.view, self.settings),
            *(["Redis does not answer: its keys are out of date, nothing else is affected."] if down else []),
        ]

    def web_context(self) -> WebContext:
        def catalogue() -> Catalogue:
            return (self.skald.catalogue if self.skald is not None else None) or Catalogue({}, {})

        return WebContext(
            settings=self.settings,
            view=self.view,
            skald_id=lambda: self.identity.skald_id if self.identity else "",
            incarnation=lambda: self.identity.incarnation if self.identity else "",
            readiness=self.readiness,
            metrics=self.metrics.render,
            describe_class=lambda name: catalogue().classes.get(name),
            not_loadable=lambda: catalogue().not_loadable,
            banners=self.banners,
            task_metrics=lambda task_id: self.skald.supervisor.metrics(task_id) if self.skald is not None else None,
            log_files=lambda: self.skald.log_files if self.skald and self.settings.runs_workers else None,
        )

    def _metric_sources(self) -> MetricSources:
        return MetricSources(
            rows=lambda: self.view.rows,
            members=lambda: self.view.members,
            held=lambda: self._held(),
            journals=lambda: [journal.statistics for journal in self.journals],
            journals_open=lambda: sum(1 for journal in self.journals if journal.opened.is_set()),
            lease_remaining_ms=lambda: self.skald.lease.remaining_ms if self.skald is not None else None,
            lease_lapses=lambda: self.identity.lapses if self.identity is not None else 0,
            view_caught_up=lambda: self.view.is_caught_up,
            redis_up=lambda: self._redis is not None and self._redis.up,
            lease_ms=self.settings.lease_ms,
            version=__version__,
            states=lambda: self._states.statistics if self._states is not None else StateStatistics(),
        )


async def _stopped(sender: ReportSender | StateSender) -> None:
    with suppress(Exception):  # the edge of stopping: what can't be closed must not keep the rest open
        async with asyncio.timeout(STOP_S):
            await sender.stop()


class WaitNotice:
    """Says once that a former process is still ending."""

    said = False

    def __call__(self, lock: str) -> None:
        if not self.said:
            self.said = True
            log.info("skald.waiting_for_former_process", lock=lock)
