"""`python -m skalds_streams.devcluster`: the cluster in the foreground, until Ctrl-C, SIGTERM or SIGHUP."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from skalds_streams.devcluster.cluster import BROKERS_OF_SEVERAL, KAFKA_PORT, REDIS_PORT, DevCluster
from skalds_streams.devcluster.download import PHASE, Progress
from skalds_streams.errors import DevClusterError

WATCH_S = 0.5
BROKERS = ("1", str(BROKERS_OF_SEVERAL))
DEFAULT_DIRECTORY = Path(".skalds/dev")
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command(epilog="Example: python -m skalds_streams.devcluster --brokers 3 --kafka-port 0")
@click.option(
    "--directory", type=click.Path(file_okay=False, path_type=Path), default=DEFAULT_DIRECTORY, show_default=True,
    help="Data and logs; kept for the next run.",
)  # fmt: skip
@click.option(
    "--brokers", type=click.Choice(BROKERS), default=BROKERS[0], show_default=True,
    help="Kafka brokers. Of 3, any one may be lost. Their data is kept apart from that of 1.",
)  # fmt: skip
@click.option(
    "--kafka-port",
    type=click.IntRange(0, 65535),
    default=KAFKA_PORT,
    show_default=True,
    help="The first broker's; the others take those that follow. 0: any free ones.",
)
@click.option(
    "--redis-port", type=click.IntRange(0, 65535), default=REDIS_PORT, show_default=True, help="0: any free one."
)
@click.option("--strict-ports", is_flag=True, help="Fail when a port is busy instead of taking a free one.")
@click.option("--kafka/--no-kafka", default=True, help="Run Kafka.", show_default=True)
@click.option("--redis/--no-redis", default=True, help="Run Valkey, which is Redis-compatible.", show_default=True)
def main(
    directory: Path, brokers: str, kafka_port: int, redis_port: int, strict_ports: bool, kafka: bool, redis: bool
) -> None:
    """Run a real Kafka and a real Valkey on 127.0.0.1 until Ctrl-C. The first run downloads 50 MB."""
    if not (kafka or redis):
        raise click.UsageError("nothing to run")
    console = Console(stderr=True)
    with _stop_signals(), _bars(console) as bars:
        cluster = DevCluster(
            directory, brokers=int(brokers), kafka_port=kafka_port, redis_port=redis_port, strict_ports=strict_ports,
            with_kafka=kafka, with_redis=redis, on_progress=_Reporter(bars),
        )  # fmt: skip
        try:
            cluster.start()
            bars.stop()
            _announce(cluster)
            _watch(cluster)
        except KeyboardInterrupt:
            bars.stop()
            click.echo("stopping", err=True)
        except DevClusterError as error:
            bars.stop()
            raise click.ClickException(str(error)) from error
        finally:
            _ignore_signals()  # stopping is bounded: a second Ctrl-C must not leave a process
            cluster.stop()


class _Reporter:
    """Turns the cluster's progress into bars, one a phase; without a terminal into one line a phase."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, progress: Progress) -> None:
        total = progress.total or None
        if progress.phase not in self._tasks:
            if self._bars.disable:
                click.echo(progress.phase, err=True)
            self._tasks[progress.phase] = self._bars.add_task(progress.phase, total=total)
        self._bars.update(self._tasks[progress.phase], completed=progress.done, total=total)


class _BytesColumn(DownloadColumn):
    """Bytes for the download, nothing for the other phases, whose steps are not bytes."""

    def render(self, task: Task) -> Text:
        """The column of one phase."""
        return super().render(task) if task.description == PHASE else Text()


def _bars(console: Console) -> Bars:
    return Bars(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        _BytesColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _announce(cluster: DevCluster) -> None:
    for moved in cluster.moved_ports:
        click.echo(f"{moved.service}: port {moved.wanted} is busy, using {moved.got}", err=True)
    for server in cluster.servers:
        click.echo(f"{server.name:<7} {server.host}:{server.port}   log: {server.log_path}")
    if len(cluster.brokers) > 1:
        click.echo(f"clients: KAFKA_HOST={cluster.bootstrap}")
    click.echo("Ctrl-C stops; the data stays.")


def _watch(cluster: DevCluster) -> None:
    """Return never: raises `DevClusterError` when a server ends by itself, KeyboardInterrupt at a signal."""
    while True:
        for server in cluster.servers:
            if not server.running:
                raise DevClusterError(f"{server.name} ended by itself; see {server.log_path}")
        time.sleep(WATCH_S)


@contextmanager
def _stop_signals() -> Iterator[None]:
    """Let each of `STOP_SIGNALS` raise KeyboardInterrupt, and put the old handlers back at the end."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = [(number, signal.signal(number, interrupt)) for number in STOP_SIGNALS]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _ignore_signals() -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    main(prog_name="python -m skalds_streams.devcluster")
