"""Failing schedules as files: what was found, by which seed, and the plan that shows it. They are kept under
tests/histories/.
"""

from __future__ import annotations

from pathlib import Path

import orjson

from skalds_streams.testing.simulator.plan import Plan
from skalds_streams.testing.simulator.world import Result

DIRECTORY = Path("tests/histories")


def keep(plan: Plan, result: Result, directory: Path = DIRECTORY) -> Path:
    """Write the plan that breaks a rule. Returns the file."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"simulator-{plan.seed}.json"
    doc = {"v": 1, "seed": plan.seed, "rule": result.rule, "violation": result.violation, "plan": plan.to_doc()}
    path.write_bytes(orjson.dumps(doc, option=orjson.OPT_INDENT_2) + b"\n")
    return path


def load(path: Path) -> Plan:
    """The plan of a file."""
    return Plan.from_doc(orjson.loads(path.read_bytes())["plan"])


def command(seed: int) -> str:
    """The one command that shows it again."""
    return f"python -m skalds_streams.testing.simulator --seed {seed} --trace"
