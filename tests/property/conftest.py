"""How hard hypothesis tries, said here only: 5,000 cases a property in CI (and with `HYPOTHESIS_PROFILE=ci`), else 150.

A property that ran fewer fails, whatever made it: a setting of its own, a filter that lets little through. Only one
whose cases are all tried, fewer than that in number, is excused. The last lines of a run say what was tried.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, is_hypothesis_test, settings

IS_CI = bool(os.environ.get("CI")) or os.environ.get("HYPOTHESIS_PROFILE") == "ci"
CASES = 5_000 if IS_CI else 150
TIMEOUT_S = 600
HERE = Path(__file__).parent

settings.register_profile(
    "skalds",
    max_examples=CASES,
    derandomize=IS_CI,
    print_blob=IS_CI,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
)
settings.load_profile("skalds")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """So many cases may take longer than one test elsewhere, if the machine is busy. What they take in all is limited
    by the layer's budget.
    """
    for item in items:
        if item.path.parent == HERE:
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Count the cases of a property that has passed."""
    result = yield
    if is_hypothesis_test(getattr(item, "obj", None)):
        said: str = item.hypothesis_statistics  # type: ignore[attr-defined]  # what --hypothesis-show-statistics prints
        cases = sum(int(number) for number in re.findall(r"(\d+) passing", said))
        exhausted = "Stopped because nothing left to do" in said
        item.user_properties.append(("cases", (cases, exhausted)))
        assert cases >= CASES or exhausted, f"{cases} cases of the {CASES} that conftest asks for:\n{said}"
    return result


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many cases were tried, which properties have fewer altogether, and how far fuzzing came."""
    counted: dict[str, tuple[int, bool]] = {}
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "cases":
                counted[report.nodeid] = value
            elif name == "executions":
                terminalreporter.write_line(f"{value:,} executions of the fuzzed wire parser")
    if not counted:
        return
    terminalreporter.write_line(f"{len(counted)} properties, {CASES:,} cases or more each")
    for name, (cases, exhausted) in counted.items():
        if cases < CASES and exhausted:
            terminalreporter.write_line(f"  but {name.split('::')[-1]}: all {cases:,} that there are")
