"""docs/testing.md: its tests pass in a fresh pytest, with the plugin alone; and what the plugin costs who does not
use it.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from skalds_streams.testing import worker
from skalds_streams.testing.worker import WorkerEnv, worker_env
from skalds_streams.testing.worker.blocking import BlockingEnv
from tests.unit.test_testing_worker import Cam

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "testing.md").read_text()
FILES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, flags=re.DOTALL))
PLUGINS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
WAIT_S = 100.0

UNUSED = """
import sys

def test_nothing_is_imported():
    loaded = {name for name in sys.modules if name.startswith("skalds_streams")}
    own = {"skalds_streams", "skalds_streams.version", "skalds_streams.testing", "skalds_streams.testing.plugin"}
    assert loaded == own
    assert not {"faust", "aiokafka", "pydantic", "structlog"} & sys.modules.keys()
"""
LEFT = """
import asyncio
import pytest
from importer import Importer

def test_one_that_is_never_closed(worker_env):
    asyncio.run(worker_env(Importer, {"source": "a"}).running())

def test_a_fixture_of_the_same_name_wins(devcluster):
    assert devcluster == "mine"

@pytest.fixture
def devcluster():
    return "mine"
"""


def run_pytest(directory: Path, *options: str) -> str:
    """A pytest of its own, in which the package is as good as installed, whatever is installed here."""
    installed = directory / "installed" / "skalds_streams-0.dist-info"
    installed.mkdir(parents=True, exist_ok=True)
    points = [f"{name} = {module}" for name, module in PLUGINS.items()]
    (installed / "entry_points.txt").write_text("\n".join(["[pytest11]", *points]))
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: skalds-streams\nVersion: 0\n")
    files = (path.relative_to(ROOT) for path in (ROOT / "skalds_streams").rglob("*.py"))
    (installed / "RECORD").write_text("".join(f"{path},,\n" for path in files))
    (directory / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    (directory / "conftest.py").write_text(
        "import pytest\n@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options],
        cwd=directory,
        env={"PYTHONPATH": f"{installed.parent}:{ROOT}", "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_tests_of_the_page_pass(tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "test_left.py").write_text(LEFT)
    assert re.search(r"^11 passed", run_pytest(tmp_path), flags=re.MULTILINE)


def test_who_does_not_use_the_plugin_pays_nothing(tmp_path: Path) -> None:
    (tmp_path / "test_unused.py").write_text(UNUSED)
    assert "1 passed" in run_pytest(tmp_path)
    fixtures = run_pytest(tmp_path, "--fixtures")
    assert "worker_env" in fixtures
    assert "devcluster" in fixtures


def test_it_can_be_left_out(tmp_path: Path) -> None:
    assert "worker_env" not in run_pytest(tmp_path, "--fixtures", "-p", "no:skalds_streams")


def test_the_table_and_the_blocking_handle_have_all_that_there_is() -> None:
    names = {name for name in vars(worker_env(Cam)) | vars(WorkerEnv) if not name.startswith("_")}
    assert names - {"start", "close", "abandon", "is_over", "in_process"} <= set(re.findall(r"env\.(\w+)", PAGE))
    assert {name for name in vars(BlockingEnv) if not name.startswith("_")} == names - {"abandon", "in_process"}
    for name in worker.__all__:
        assert name in PAGE or name in ("BlockingEnv", "Error", "Report", "WorkerEnv"), name
