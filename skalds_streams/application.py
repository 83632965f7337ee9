"""The Faust application: settings → app with its topics, agents, table and page. `faust -A skalds_streams worker` runs
it.

Faust gives the consumer group, the agents, the table's place in the rebalance, the web server and the worker's life;
what is decided and written is in `coordinator`.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import threading
from collections.abc import Mapping
from functools import cache
from typing import Any

import faust
import structlog
from faust.web.drivers import aiohttp as web_driver

from skalds_streams.agents import assign, cancel, report, update_attachment
from skalds_streams.edge.runtime import EdgeRuntime
from skalds_streams.errors import ConfigError, SkaldsError
from skalds_streams.hanging import hanging
from skalds_streams.logging import configure_logging, quiet_libraries
from skalds_streams.proxy.access import tls_context
from skalds_streams.runtime import Runtime
from skalds_streams.settings import Settings
from skalds_streams.tables.assignor import StableAssignor
from skalds_streams.tables.consumer import PositionedConsumer
from skalds_streams.tables.ownership import NAME, OwnershipTable
from skalds_streams.tables.recovery import JournalTableManager
from skalds_streams.web.guard import guard
from skalds_streams.web.routes import setup
from skalds_streams.web.waiting import waiting_page

log = structlog.get_logger(__name__)

EXIT_REFUSED = 1
STOP_MOST_S = 8.0
"""Once the workers are gone, an orderly stop takes a second or two. Without a broker Faust would wait for ever."""


class Web(web_driver.Web):  # type: ignore[misc]  # faust has no types
    """Faust's web server without its own pages: `/` is ours, tables and router stay closed."""

    production_blueprints = ()
    debug_blueprints = ()

    async def start_server(self) -> None:
        """Raises ConfigError where the address can't be had."""
        try:
            await super().start_server()
        except OSError as error:
            where = f"{self.app.conf.web_bind}:{self.app.conf.web_port}"
            trouble = ConfigError(f"no page at {where} (SKALDS_WEB_BIND, SKALDS_WEB_PORT): {error.strerror or error}")
            _complain(trouble)
            raise trouble from None


class SkaldBoot(faust.App.BootStrategy):  # type: ignore[misc]  # faust has no types
    """Faust's services without consumer, producer, agents and tables: a skald is in no group, an edge has no Kafka."""

    enable_kafka = False

    def agents(self) -> Any:
        return []


class SkaldsApp(faust.App):  # type: ignore[misc]  # faust has no types
    """A Faust app that starts and stops our runtime around its own services."""

    def __init__(self, settings: Settings) -> None:
        self.skalds = settings
        self.runtime: Runtime | EdgeRuntime
        if settings.is_edge:
            self.runtime = EdgeRuntime(settings, on_fatal=self._fatal, on_done=_end_well)
        else:
            self.runtime = Runtime(
                settings,
                consumer=lambda: self.consumer,
                reading=lambda: bool(self.tables.actives_ready),
                on_fatal=self._fatal,
            )
        super().__init__(f"{settings.topic_prefix}{settings.app}", **_options(settings))
        self.transport.Consumer = PositionedConsumer
        if settings.coordinates and isinstance(self.runtime, Runtime):
            self._declare(self.runtime)
        else:
            self.boot_strategy = SkaldBoot(self)

    def _declare(self, runtime: Runtime) -> None:
        """The table and the agents of a coordinator."""
        settings = self.skalds
        self.table = OwnershipTable(
            self,
            name=NAME,
            partitions=settings.kafka_topic_partitions,
            key_type=bytes,
            value_type=bytes,
            help="task → what is wanted of it and which skald holds it",
            changelog_topic=self._raw_topic(runtime.topics.changelog),
        )
        self.table.attach(runtime.journals)
        self.tables.add(self.table)
        topics, offer = runtime.topics, runtime.journals.offer
        for module, topic in (
            (assign, topics.assign),
            (cancel, topics.cancel),
            (update_attachment, topics.update),
            (report, topics.report),
        ):
            module.register(self, self._raw_topic(topic), offer)

    def _raw_topic(self, name: str) -> Any:
        return self.topic(
            name,
            key_type=bytes,
            value_type=bytes,
            key_serializer="raw",
            value_serializer="raw",
            partitions=self.skalds.kafka_topic_partitions,
            internal=False,
            allow_empty=True,
        )

    async def on_first_start(self) -> None:
        quiet_libraries()
        try:
            _make_data_dir(self.skalds)
            await super().on_first_start()
            await self._start_runtime()
        except SkaldsError as error:
            if not self.should_stop:
                self._refuse(error)
            log.info("start.given_up", why="it is stopped meanwhile", error=str(error))
        if self.runtime.identity is not None:
            self.conf.consumer_group_instance_id = _instance_id(self.runtime.identity.skald_id)

    async def _start_runtime(self) -> None:
        if isinstance(self.runtime, Runtime) and self.conf.web_enabled:
            async with waiting_page(self.skalds, self.runtime.waiting):
                await self.runtime.start()
        else:
            await self.runtime.start()

    async def on_stop(self) -> None:
        leaving = _end_within(self.runtime.stop_most_s + STOP_MOST_S)
        await self.runtime.leave()
        leaving.cancel()
        _end_within(STOP_MOST_S)
        _send_leave_group(self._consumer)
        await super().on_stop()
        await self.runtime.close()

    def start_offset(self, tp: Any) -> int | None:
        """Where a partition of an input is read from; None when it is no input, or its journal is not open yet."""
        runtime = self.runtime
        if not isinstance(runtime, Runtime) or tp.topic not in runtime.topics.inputs:
            return None
        return runtime.journals.next_offset(tp.topic, tp.partition)

    async def may_rejoin(self) -> bool:
        """Whether this process may join the group again, which has given it up."""
        return await self.runtime.may_rejoin()

    async def _wait_for_table_recovery_completed(self) -> bool:
        """A skald has no table that could ever be recovered."""
        return self.skalds.coordinates and bool(await super()._wait_for_table_recovery_completed())

    def _new_web(self) -> Any:
        return Web(self)

    def on_webserver_init(self, web: Any) -> None:
        setup(web.web_app, self.runtime.web_context())

    def _fatal(self, error: BaseException) -> None:
        """End the process because a part of it can't go on."""
        if isinstance(error, SkaldsError):
            _complain(error)
        self.loop.create_task(self.crash(error))

    def _refuse(self, error: SkaldsError) -> None:
        """A clear sentence instead of a traceback, and exit code 1: nothing has been started that needs an orderly
        stop.
        """
        _complain(error)
        os._exit(EXIT_REFUSED)


def _end_well() -> None:
    """As a person does: Faust's worker stops in order at a SIGTERM, with exit code 0."""
    os.kill(os.getpid(), signal.SIGTERM)


def _end_within(seconds: float) -> threading.Timer:
    """End the process if it is still there by then. A thread, as what hangs may be the loop itself."""

    def end() -> None:
        log.error("stop.took_too_long", after_s=seconds, waits_for=hanging())
        os._exit(EXIT_REFUSED)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    return timer


def _make_data_dir(settings: Settings) -> None:
    try:
        (settings.data_dir / "faust").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"SKALDS_DATA_DIR={settings.data_dir} can't be used: {error}") from None


def _options(settings: Settings) -> Mapping[str, Any]:
    return {
        "broker": [f"kafka://{address}" for address in settings.brokers],
        "broker_credentials": _credentials(settings),
        "version": 1,
        "autodiscover": False,
        "datadir": settings.data_dir / "faust",
        "store": "memory://",
        "TableManager": JournalTableManager,
        "PartitionAssignor": StableAssignor,
        "topic_partitions": settings.kafka_topic_partitions,
        "topic_replication_factor": 1,
        "topic_allow_declare": False,
        "topic_disable_leader": True,
        # What a rebalance takes away is delivered again, and positions skip it: no rebalance waits for a backlog.
        "stream_wait_empty": False,
        "table_standby_replicas": 0,
        "consumer_auto_offset_reset": "earliest",
        "broker_session_timeout": 10.0,
        # When a broker that stands still, or whose machine is gone, is given up: the group's coordinator, too, and no
        # journal opens again before the group was asked. Longer than a join, which waits a session for the dead.
        "broker_request_timeout": 20.0,
        "broker_heartbeat_interval": 1.0,
        "broker_commit_interval": 1.0,
        "processing_guarantee": "at_least_once",
        "web_bind": settings.web_bind,
        "web_port": settings.web_port,
        "web_tables_enabled": False,
        "web_router_enabled": False,
        "web_application_options": {"middlewares": [guard(settings)]},
        "recovery_consistency_check": False,
    }


def _credentials(settings: Settings) -> Any:
    if not settings.kafka_username:
        return None
    return faust.SASLCredentials(
        username=settings.kafka_username,
        password=settings.kafka_password.get_secret_value(),
        mechanism="PLAIN",
        ssl_context=tls_context(settings.bootstrap, settings.kafka_username),
    )


def _instance_id(skald_id: str) -> str:
    """The skald id as Kafka takes it for a member of a group: letters, digits, ".", "_" and "-", not too many."""
    plain = "".join(char if char.isascii() and (char.isalnum() or char in "-._") else "_" for char in skald_id)[:200]
    if plain == skald_id:
        return plain
    return f"{plain}-{hashlib.sha256(skald_id.encode()).hexdigest()[:12]}"


def _send_leave_group(consumer: Any) -> None:
    """With an instance id aiokafka keeps silent when it stops, and its partitions stand still for a session timeout.

    Leaving for good, we say so.
    """
    coordinator = getattr(getattr(getattr(consumer, "_thread", None), "_consumer", None), "_coordinator", None)
    if coordinator is not None:
        coordinator._group_instance_id = None


def _complain(error: SkaldsError) -> None:
    """To the real standard error: Faust's worker redirects sys.stderr into its log."""
    stream = sys.__stderr__
    if stream is not None:
        stream.write(f"skalds_streams: {error}\n")
        stream.flush()


@cache
def get_app() -> SkaldsApp:
    """The application of this process, made on first use. Wrong settings end the process with one clear message."""
    try:
        settings = Settings.load()
    except ConfigError as error:
        _complain(error)
        raise SystemExit(2) from None
    configure_logging(settings.log_level)
    return SkaldsApp(settings)
