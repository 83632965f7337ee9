"""Tells apart how long the seeds, the planted bugs and the rest of this layer took."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """A line of seconds by file."""
    took: Counter[str] = Counter()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, ()):
            path = Path(report.fspath)
            if path.parent.name == "simulation":
                took[path.stem] += report.duration
    if took:
        line = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in took.most_common())
        terminalreporter.write_line(f"simulation: {line}")
