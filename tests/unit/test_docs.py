"""The documents say what the code does."""

from __future__ import annotations

from pathlib import Path

import pytest

from skalds_streams.core.transitions import TRANSITIONS, Step, mermaid, step
from skalds_streams.errors import IllegalTransitionError

ROOT = Path(__file__).parents[2]


def test_the_state_picture_is_the_table() -> None:
    assert f"```mermaid\n{mermaid()}\n```" in (ROOT / "docs" / "states.md").read_text()


def test_what_is_not_in_the_table_raises() -> None:
    from skalds_streams.core.row import Status

    for status in Status:
        for what in Step:
            if (status, what) in TRANSITIONS:
                assert step(status, what) is TRANSITIONS[status, what]
            else:
                with pytest.raises(IllegalTransitionError, match=status.value):
                    step(status, what)


def test_every_file_that_the_documents_name_exists() -> None:
    import re

    for name in ("README.md", "ARCHITECTURE.md"):
        for path in re.findall(
            r"`((?:skalds_streams|docs|tests|docker|benchmarks|examples)/[\w./]+)`", (ROOT / name).read_text()
        ):
            assert (ROOT / path).exists(), f"{name} names {path}"


def test_every_test_and_fault_that_the_failure_matrix_names_exists() -> None:
    import re

    from skalds_streams.testing import verifiable
    from skalds_streams.testing.chaos.plan import KINDS

    matrix = (ROOT / "docs" / "failures.md").read_text()
    named = re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", matrix)
    rows = [line for line in matrix.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 30
    assert [row for row in rows if "test_" not in row.rpartition(" | ")[2]] == [], "each is shown by a test"
    for file, name in named:
        assert name in (ROOT / "tests" / "integration" / file).read_text(), f"{file}::{name}"
    kinds = {kind for told in re.findall(r"chaos ((?:\*[a-z -]+\*(?:, )?)+)", matrix) for kind in told.split("*")[1::2]}
    assert kinds == set(KINDS)
    for name in re.findall(r"\*([A-Z]\w+)\*", matrix):
        assert hasattr(verifiable, name), name
