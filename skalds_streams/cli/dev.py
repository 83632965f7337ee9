"""`skalds-streams dev`: the whole system on this machine until Ctrl-C. What `make run` calls.

Starts the embedded cluster (or uses KAFKA_HOST, REDIS_HOST), then `faust -A skalds_streams worker` with the example
workers, assigns three example tasks, says where the page is and what to try. A worker that dies is started again; one
that keeps dying ends the command.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.machinery import PathFinder
from pathlib import Path
from types import FrameType

import click
from dotenv import dotenv_values
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from skalds_streams.addresses import addresses
from skalds_streams.cli.dev_worker import DevWorker, WorkerDied, assign_examples
from skalds_streams.devcluster import DevCluster
from skalds_streams.devcluster import Progress as ClusterProgress
from skalds_streams.devcluster.ports import choose_port
from skalds_streams.errors import SkaldsError

POLL_S = 0.2
EXAMPLES = "examples.workers"
TRY = (
    "ps",
    "update camera fps=5",
    "describe camera",
    "cancel camera",
    "assign my-counter --class Counter",
)
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, kill, the terminal's window closed."""


class Interrupted(BaseException):
    """One of ENDING has come. A BaseException, so that nothing on its way swallows it."""


@click.command(
    epilog="Example: skalds-streams dev --port 7000   (Ctrl-C stops everything)\n\n"
    "Workers of your own, in the folder of their module: SKALDS_WORKERS=my_workers skalds-streams dev\n\n"
    "KAFKA_HOST or REDIS_HOST set: that one is used instead of an embedded one."
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    default=Path(".skalds/dev"),
    show_default=True,
    help="Data, logs, ids.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=6066, show_default=True, help="Port of the status page.")
@click.option(
    "--brokers",
    type=click.Choice(["1", "3"]),
    default="1",
    show_default=True,
    help="Kafka brokers. Of 3, any one may be lost. Their data is kept apart from that of 1.",
)
@click.option("--examples/--no-examples", default=True, show_default=True, help="Assign the three example tasks.")
def dev(data_dir: Path, port: int, brokers: str, examples: bool) -> None:
    """Run Kafka, Redis, a skald with example workers and a status page on this machine."""
    if brokers != "1" and _given().get("KAFKA_HOST"):
        raise click.UsageError("--brokers is of the embedded Kafka, and KAFKA_HOST is set")
    console = Console(highlight=False)
    under_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    for number in ENDING:
        if number is not signal.SIGHUP or not under_nohup:
            signal.signal(number, _interrupt)
    terminal = _own_the_terminal()
    try:
        _run(console, terminal, data_dir.resolve(), port, int(brokers), examples)
    except Interrupted:
        _say(console, "Stopped.")
    except (SkaldsError, WorkerDied) as error:
        console.print(f"[red]{error}[/red]")
        sys.exit(1)
    finally:
        terminal.give_back()


def _run(console: Console, terminal: _Terminal, data_dir: Path, port: int, brokers: int, examples: bool) -> None:
    data_dir.mkdir(parents=True, exist_ok=True)
    given = _given()
    modules = _modules(given, examples=examples)
    cluster: DevCluster | None = None
    worker: DevWorker | None = None
    try:
        with _progress(console) as progress:
            shown = _Shown(progress)
            cluster = _cluster(given, data_dir, brokers, shown)
            cluster.start()
            shown.phase("Skald")
            environment = _environment(given, cluster, data_dir, _page_port(console, port))
            worker = DevWorker(data_dir, {**environment, "SKALDS_WORKERS": ",".join(modules)})
            worker.start()
            worker.wait_ready()
            if examples and EXAMPLES in modules:
                shown.phase("Example tasks")
                assign_examples(worker)
        for moved in cluster.moved_ports:
            console.print(f"[yellow]Port {moved.wanted} is busy: {moved.service} listens on {moved.got}.[/yellow]")
        _greet(console, worker)
        while not terminal.is_gone:
            worker.watch(console, POLL_S)
    finally:
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)
        _say(console, "Stopping: workers first, then the skald, then the cluster.")
        if worker is not None:
            worker.stop()
        if cluster is not None:
            cluster.stop()


def _modules(given: Mapping[str, str], *, examples: bool) -> list[str]:
    """Those with worker classes: what is given, and the examples beside it when they are wanted or nothing is given.

    They are in the source tree, not in the package that is installed from an index.
    """
    modules = [name.strip() for name in given.get("SKALDS_WORKERS", "").split(",") if name.strip()]
    wanted = EXAMPLES not in modules and (examples or not modules)
    here = PathFinder.find_spec("examples", [os.getcwd(), *sys.path]) is not None
    return [EXAMPLES, *modules] if wanted and here else modules


def _cluster(given: Mapping[str, str], data_dir: Path, brokers: int, shown: _Shown) -> DevCluster:
    return DevCluster(
        data_dir / "cluster",
        brokers=brokers,
        with_kafka=not given.get("KAFKA_HOST"),
        with_redis=not given.get("REDIS_HOST"),
        on_progress=shown,
    )


def _say(console: Console, text: str) -> None:
    """Print, unless the terminal is gone: then there is nobody to tell, and all the more to stop."""
    with suppress(OSError):
        console.print(text)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise Interrupted


def _own_the_terminal() -> _Terminal:
    """Become the terminal's foreground group, so that Ctrl-C reaches us and not the `make` that waits for our exit code
    0.
    """
    try:
        descriptor = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return _Terminal(-1, -1)
    try:
        former = os.tcgetpgrp(descriptor)
        if former != os.getpgrp() or former == os.getpid():
            raise OSError("not in the foreground, or its leader already")
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        os.setpgid(0, 0)
        os.tcsetpgrp(descriptor, os.getpgrp())
    except OSError:
        os.close(descriptor)
        return _Terminal(-1, -1)
    return _Terminal(descriptor, former)


class _Terminal:
    """The terminal that we took from the group that had it; none when the descriptor is -1."""

    def __init__(self, descriptor: int, group: int) -> None:
        self._descriptor, self._group = descriptor, group

    @property
    def is_gone(self) -> bool:
        """Whether its window was closed. The SIGHUP of that may go to a `make` alone, which then waits for us."""
        if self._descriptor < 0:
            return False
        poll = select.poll()
        poll.register(self._descriptor, 0)
        return any(events & select.POLLHUP for _, events in poll.poll(0))

    def give_back(self) -> None:
        if self._descriptor >= 0:
            try:
                os.tcsetpgrp(self._descriptor, self._group)
            except OSError:
                return  # the terminal or its former group is gone: nobody to give it to
            os.close(self._descriptor)


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )


class _Shown:
    """One progress line a phase."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._lines: dict[str, TaskID] = {}

    def __call__(self, step: ClusterProgress) -> None:
        line = self.phase(step.phase)
        self._progress.update(line, total=step.total or None, completed=step.done)

    def phase(self, name: str) -> TaskID:
        if name not in self._lines:
            self._lines[name] = self._progress.add_task(name, total=None)
        return self._lines[name]


def _page_port(console: Console, wanted: int) -> int:
    got = choose_port(wanted, service="status page", strict=False)
    if wanted and got != wanted:
        console.print(f"[yellow]Port {wanted} is busy: the status page listens on {got}.[/yellow]")
    return got


def _given() -> dict[str, str]:
    """What the user has set: the environment, and `.env` where that says nothing."""
    from_file = {name: value for name, value in dotenv_values(".env").items() if value is not None}
    return {**from_file, **os.environ}


def _environment(given: Mapping[str, str], cluster: DevCluster, data_dir: Path, port: int) -> dict[str, str]:
    ours = {
        "SKALDS_WEB_PORT": str(port),
        "SKALDS_DATA_DIR": str(data_dir / "skald"),
        "PYTHONPATH": os.pathsep.join(filter(None, (os.getcwd(), given.get("PYTHONPATH")))),
        "PYTHONUNBUFFERED": "1",
    }
    if not given.get("KAFKA_HOST"):
        several = len(cluster.brokers) > 1
        ours |= {
            "KAFKA_HOST": cluster.bootstrap if several else cluster.kafka_host,
            "KAFKA_PORT": str(cluster.kafka_port),
        }
    if not given.get("REDIS_HOST"):
        ours |= {"REDIS_HOST": cluster.redis_host, "REDIS_PORT": str(cluster.redis_port)}
    copies = str(max(1, len(cluster.brokers)))
    return {"SKALD_ID": "skald-1", "KAFKA_REPLICATION_FACTOR": copies, **given, **ours}


def _greet(console: Console, worker: DevWorker) -> None:
    """Where everything is, and what to try: the commands stand alone on their lines, to be copied whole."""
    environment = worker.environment
    kafka = ",".join(addresses(environment["KAFKA_HOST"], int(environment.get("KAFKA_PORT", "9092"))))
    beside = os.path.relpath(Path(sys.executable).parent / "skalds-streams")
    program = "skalds-streams" if shutil.which("skalds-streams") else beside
    option = "" if kafka in ("localhost:9092", "127.0.0.1:9092") else f" --kafka {kafka}"
    where = f"Status page   [bold]{worker.url}[/bold]\nKafka         {kafka}\nLog           {worker.log_path}"
    console.print(Panel(where, title="skalds_streams", expand=False))
    console.print("Try in another terminal:\n")
    for command in TRY:
        console.print(f"  {program}{option} {command}", soft_wrap=True)
    console.print("\nCtrl-C stops everything.")
