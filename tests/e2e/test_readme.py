"""What the README says one can do: `make run` in a terminal, the printed commands in another, the page in a browser,
breaking it by hand, Ctrl-C.

One system serves the whole module; each test waits for what it needs, so each can be run alone. The last one ends it.
"""

from __future__ import annotations

import re
import shlex
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.e2e.conftest import START_S, need
from tests.e2e.terminal import ROOT, Terminal, plain_environment, until

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

SOON_MS = 20_000
RECOVERY_MS = 40_000
COMMAND_S = 30.0
STOP_S = 15.0
EXAMPLES = ("camera", "counter", "flaky")


def cell(page: Page, task_id: str, label: str) -> Locator:
    return page.locator(f'tr[data-id="{task_id}"] td[data-label="{label}"]')


def is_running(page: Page, task_id: str, timeout_ms: float = SOON_MS) -> None:
    from playwright.sync_api import expect

    expect(cell(page, task_id, "Status")).to_have_text("Running", timeout=timeout_ms)


def epoch(page: Page, task_id: str) -> int:
    text = cell(page, task_id, "Skald").inner_text()
    found = re.search(r"epoch (\d+)", text)
    assert found, text
    return int(found[1])


def printed_commands(terminal: Terminal) -> list[str]:
    return re.findall(r"^  (\S*skalds-streams \S.*?)\s*$", terminal.text, flags=re.MULTILINE)


def run(command: str) -> str:
    """One printed command, as typed in another terminal."""
    done = subprocess.run(
        shlex.split(command),
        cwd=ROOT,
        env=plain_environment(COLUMNS="100"),
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )
    assert done.returncode == 0, f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
    assert done.stderr == ""
    return done.stdout


def host_of(terminal: Terminal, task_id: str) -> psutil.Process:
    """The process that runs the task: it has the name of the class."""

    def found() -> psutil.Process | None:
        for process in terminal.processes():
            if process.name() == f"skald:{task_id.capitalize()}":
                return process
        return None

    process: psutil.Process = until(found, f"a process runs {task_id}", COMMAND_S)
    return process


def faust_of(terminal: Terminal) -> psutil.Process:
    return next(item for item in terminal.processes() if "faust -A skalds_streams worker" in " ".join(item.cmdline()))


# -- the tests -----------------------------------------------------------------------------------------------------


def test_the_page_shows_the_three_example_tasks(page: Page, picture: Callable[[str], None]) -> None:
    from playwright.sync_api import expect

    for task_id in EXAMPLES:
        expect(page.locator(f'tr[data-id="{task_id}"]')).to_be_visible(timeout=SOON_MS)
    is_running(page, "camera")
    is_running(page, "counter")
    expect(page.locator("#live-text")).to_have_text("Live")
    assert "secret" not in page.content()
    picture("1 started")


def test_the_printed_commands_do_what_they_say_live_on_the_page(
    terminal: Terminal, page: Page, picture: Callable[[str], None]
) -> None:
    from playwright.sync_api import expect

    listing, update, describe, cancel, assign = printed_commands(terminal)
    assert listing.startswith(".venv/bin/skalds-streams ")
    listed = run(listing)
    assert [task_id for task_id in EXAMPLES if task_id not in listed] == []
    assert "applied" in run(update)
    expect(cell(page, "camera", "Parameters")).to_contain_text('"fps":5', timeout=SOON_MS)
    expect(cell(page, "camera", "Applied")).to_contain_text("applied v2", timeout=SOON_MS)
    described = run(describe)
    assert "Running" in described
    assert "secret" not in described
    picture("2 updated")
    assert "camera: cancelled" in run(cancel)
    expect(cell(page, "camera", "Status")).to_have_text("Cancelled", timeout=SOON_MS)
    run(assign)
    is_running(page, "my-counter")
    assert "camera" in run(f"{listing.removesuffix('ps')}replay --task camera")
    picture("3 cancelled and assigned")


def test_a_killed_host_is_replaced_under_a_higher_epoch(
    terminal: Terminal, page: Page, picture: Callable[[str], None]
) -> None:
    is_running(page, "counter")
    before = epoch(page, "counter")
    host_of(terminal, "counter").send_signal(signal.SIGKILL)
    page.wait_for_function(
        "([id, epoch]) => Number(document.querySelector(`tr[data-id=${id}] [data-label=Skald]`)"
        ".textContent.match(/epoch (\\d+)/)?.[1]) > epoch",
        arg=["counter", before],
        timeout=SOON_MS,
    )
    is_running(page, "counter")
    assert epoch(page, "counter") > before
    picture("4 host killed")


def test_a_killed_faust_process_is_started_again_and_the_tasks_run_again(
    terminal: Terminal, page: Page, picture: Callable[[str], None]
) -> None:
    from playwright.sync_api import expect

    is_running(page, "counter")
    before = epoch(page, "counter")
    faust_of(terminal).send_signal(signal.SIGKILL)
    terminal.wait_for(r"The node ended with signal 9 \(SIGKILL\): starting it again", SOON_MS / 1000)
    expect(page.locator("#live-text")).to_have_text("Not live", timeout=SOON_MS)
    picture("5 connection lost")
    expect(page.locator("#live-text")).to_have_text("Live", timeout=RECOVERY_MS)
    until(lambda: epoch(page, "counter") > before, "the counter has a higher epoch", RECOVERY_MS / 1000)
    is_running(page, "counter", RECOVERY_MS)
    picture("6 faust killed")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """`skalds-streams dev`, or `make run`, with these options."""
    need("make", "setsid")
    started: list[Terminal] = []

    def begin(*options: str, by_make: bool = False) -> Terminal:
        given = ["--data-dir", str(tmp_path), *options]
        by_hand = [str(ROOT / ".venv/bin/skalds-streams"), "dev", *given]
        started.append(Terminal(["make", "run", f"ARGS={shlex.join(given)}"] if by_make else by_hand))
        return started[-1]

    yield begin
    for terminal in started:
        terminal.close()


def test_a_busy_port_is_said_and_another_taken_and_sigterm_ends_it_in_order(start: Callable[..., Terminal]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        running = start("--no-examples", "--port", str(port))
        moved = running.wait_for(rf"Port {port} is busy: the status page listens on (\d+)", START_S)[1]
        address = running.wait_for(r"Status page\s+(http://\S+)", START_S)[1]
        assert address == f"http://127.0.0.1:{moved}/"
        running.wait_for(r"Ctrl-C stops everything", START_S)
        with urllib.request.urlopen(address + "readyz", timeout=5) as answer:
            assert answer.status == 200
        assert len(running.processes()) > 3
        running.process.send_signal(signal.SIGTERM)
        assert running.wait(STOP_S) == 0, running.text
        assert running.processes() == []


@pytest.mark.parametrize("by_make", [True, False])
def test_nothing_is_left_when_the_terminal_is_closed(start: Callable[..., Terminal], *, by_make: bool) -> None:
    running = start("--port", "0", by_make=by_make)
    running.wait_for(r"Ctrl-C stops everything", START_S)
    assert len(running.processes()) > 5
    running.hang_up()
    running.wait(STOP_S)
    assert running.processes() == []


def test_nothing_is_left_after_kill_9(start: Callable[..., Terminal]) -> None:
    running = start("--port", "0")
    running.wait_for(r"Ctrl-C stops everything", START_S)
    assert len(running.processes()) > 5
    running.process.kill()
    until(lambda: not running.processes(), "every process is gone", STOP_S)


def test_ctrl_c_ends_all_of_it_with_exit_code_0(terminal: Terminal) -> None:
    assert len(terminal.processes()) > 5
    terminal.type(b"\x03")
    assert terminal.wait(STOP_S) == 0, terminal.text
    assert terminal.processes() == []
