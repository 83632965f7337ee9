"""Finding worker classes in the user's modules: what is registered, what is not loadable and why."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest
from pydantic import AliasChoices, AliasPath, BaseModel, Field

from skalds_streams.worker import registry
from skalds_streams.worker.frames import encode
from skalds_streams.worker.installed import offers

WriteModule = Callable[[str, str], str]

HEAD = """
from pydantic import BaseModel, Field
from skalds_streams.worker import BaseTaskWorker, run_main_handler

class P(BaseModel):
    fix_frame: int = Field(30, alias="fixFrame")
"""


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WriteModule]:
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def write(name: str, source: str) -> str:
        path = tmp_path.joinpath(*name.split("."))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".py").write_text(dedent(source))
        return name

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


GOOD = '''
from pydantic import BaseModel, Field
from skalds_streams.worker import BaseTaskWorker, run_main_handler

class P(BaseModel):
    fix_frame: int = Field(30, alias="fixFrame", ge=1)
    plain: str = ""

class Cam(BaseTaskWorker[P]):
    """Looks at things.

    Often.
    """

    release_s = 1

    def initialize(self, data: P) -> None: ...

    @run_main_handler
    def run(self) -> None: ...
'''


def test_a_class_is_described_for_documents(write_module: WriteModule) -> None:
    found = registry.load([write_module("good", GOOD)])

    assert found.not_loadable == {}
    described = found.classes["Cam"].describe()
    assert described["module"] == "good"
    assert described["aliases"] == {"fix_frame": "fixFrame"}
    assert described["secret"] == []
    assert described["doc"] == "Looks at things.\n\nOften."
    assert described["schema"]["properties"].keys() == {"fixFrame", "plain"}
    assert (described["isolation"], described["release_s"], described["terminate_s"]) == ("process", 1.0, 2.0)


def test_a_class_may_share_its_host(write_module: WriteModule) -> None:
    source = GOOD.replace("def run(self)", "async def run(self)") + '    isolation = "shared"\n'
    assert registry.load([write_module("shared", source)]).classes["Cam"].describe()["isolation"] == "shared"


@pytest.mark.parametrize(
    "statement", ["raise RuntimeError('no camera driver')", "raise SystemExit('no camera driver')"]
)
def test_a_module_that_raises_is_not_loadable_and_the_others_load(write_module: WriteModule, statement: str) -> None:
    found = registry.load([write_module("bad", statement), write_module("good", GOOD), "missing_module"])

    assert list(found.classes) == ["Cam"]
    assert found.not_loadable.keys() == {"bad", "missing_module"}
    assert "no camera driver" in found.not_loadable["bad"]
    assert "bad.py" in found.not_loadable["bad"]
    assert "No module named 'missing_module'" in found.not_loadable["missing_module"]


def test_two_classes_of_one_name_are_both_not_loadable(write_module: WriteModule) -> None:
    found = registry.load([write_module("one", GOOD), write_module("two", GOOD)])

    assert found.classes == {}
    assert found.not_loadable.keys() == {"one.Cam", "two.Cam"}
    assert "one.Cam and two.Cam" in found.not_loadable["one.Cam"]


def test_two_decorated_methods_make_the_module_not_loadable(write_module: WriteModule) -> None:
    found = registry.load([write_module("twice", GOOD + "\n    @run_main_handler\n    def again(self) -> None: ...\n")])

    assert "Cam has more than one @run_main_handler: again, run" in found.not_loadable["twice"]


def test_imported_classes_count_only_where_they_are_defined(write_module: WriteModule) -> None:
    write_module("good", GOOD)
    assert registry.load([write_module("importer", "from good import Cam")]).classes == {}
    write_module("package.cams", GOOD)
    write_module("package.__init__", "from package.cams import Cam")
    assert list(registry.load(["package", "package.cams"]).classes) == ["Cam"]


def test_classes_that_cannot_run_say_why(write_module: WriteModule) -> None:
    source = HEAD + dedent("""
    class NoMain(BaseTaskWorker[P]):
        def initialize(self, data): ...

    class NoInitialize(BaseTaskWorker[P]):
        @run_main_handler
        def run(self): ...

    class NoModel(BaseTaskWorker):
        def initialize(self, data): ...
        @run_main_handler
        def run(self): ...

    class BadBudget(BaseTaskWorker[P]):
        release_s = -1
        def initialize(self, data): ...
        @run_main_handler
        def run(self): ...

    class BadMemory(BaseTaskWorker[P]):
        memory_max = "plenty"
        def initialize(self, data): ...
        @run_main_handler
        def run(self): ...

    class BadIsolation(BaseTaskWorker[P]):
        isolation = "thread"
        def initialize(self, data): ...
        @run_main_handler
        async def run(self): ...

    class SharedAndBlocking(BaseTaskWorker[P]):
        isolation = "shared"
        def initialize(self, data): ...
        @run_main_handler
        def run(self): ...

    class SharedWithMemory(BadIsolation):
        isolation = "shared"
        memory_max = "512M"

    class TooLittleMemory(BadMemory):
        memory_max = "64K"

    class BadStall(BadBudget):
        release_s = 1
        stall_s = "long"

    class Huge(BaseModel):
        field: int = Field(0, description="x" * 100_000)

    class TooLarge(BaseTaskWorker[Huge]):
        def initialize(self, data): ...
        @run_main_handler
        def run(self): ...
    """)
    found = registry.load([write_module("broken", source)])

    assert found.classes == {}
    reasons = {name.removeprefix("broken."): text for name, text in found.not_loadable.items()}
    assert reasons["NoMain"] == "NoMain has no method with @run_main_handler"
    assert reasons["NoInitialize"] == "NoInitialize does not define: initialize"
    assert "must name its parameters" in reasons["NoModel"]
    assert reasons["BadBudget"] == "BadBudget.release_s is -1: it must be a number of seconds, 0 or more"
    assert reasons["BadStall"] == "BadStall.stall_s is 'long': it must be a number of seconds, 0 or more"
    assert reasons["BadMemory"] == (
        'BadMemory.memory_max is \'plenty\': it must be a number of bytes above 0, or a text like "512M" or "2G"'
    )
    assert reasons["BadIsolation"] == 'BadIsolation.isolation is \'thread\': it must be "process" or "shared"'
    blocking = 'SharedAndBlocking.isolation is "shared", but run (@run_main_handler) is not async: '
    assert reasons["SharedAndBlocking"].startswith(blocking)
    assert reasons["SharedWithMemory"].startswith('SharedWithMemory has memory_max and isolation = "shared": ')
    assert reasons["TooLittleMemory"].startswith("TooLittleMemory.memory_max is '64K': the loaded modules alone take ")
    assert "more than 65536" in reasons["TooLarge"]


POLICY = (
    HEAD
    + """
from skalds_streams.worker import Backoff

class Cam(BaseTaskWorker[P]):
    {}
    def initialize(self, data): ...
    @run_main_handler
    def run(self): ...
"""
)


def test_a_class_says_where_it_runs_and_how_it_is_tried_again(write_module: WriteModule) -> None:
    said = """
    requires = {"gpu": "yes"}
    weight = 2
    max_restarts = 3
    backoff = Backoff(5, 600)
    """
    cam = registry.load([write_module("policy", POLICY.format(said))]).classes["Cam"]
    pauses = {"backoff_first_ms": 5_000, "backoff_most_ms": 600_000}
    assert cam.describe()["options"] == {"requires": {"gpu": "yes"}, "weight": 2, "max_restarts": 3, **pauses}
    assert registry.load([write_module("plain", GOOD)]).classes["Cam"].describe()["options"] == {}


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("weight = 0", "Cam.weight is 0: it must be a whole number from 1 to 10000"),
        ("weight = 1.5", "Cam.weight is 1.5: it must be"),
        ("max_restarts = -1", "Cam.max_restarts is -1: it must be a whole number, 0 or more, or None for no limit"),
        ("max_restarts = True", "Cam.max_restarts is True: it must be"),
        ('requires = "gpu"', 'Cam.requires is \'gpu\': it must be a dict of labels such as {"gpu": "yes"}'),
        ("requires = None", "Cam.requires is None: it must be"),
        ('requires = {"gpu": 1}', "Cam.requires is {'gpu': 1}: it must be"),
        ("backoff = 5", "Cam.backoff is 5: it must be a Backoff, such as Backoff(5, 600)"),
        ("backoff = Backoff('5')", "its pauses must be numbers of seconds"),
        ("backoff = Backoff(float('nan'))", "its pauses must be numbers of seconds"),
        ("backoff = Backoff(longest_s=float('inf'))", "its pauses must be numbers of seconds"),
        ("backoff = Backoff(0)", "Cam.backoff is Backoff(first_s=0, longest_s=60.0): its first pause must be 0.1 s or"),
        ("backoff = Backoff(61)", "its longest no shorter, up to 86400 s"),
    ],
)
def test_a_policy_that_cannot_be_makes_the_class_not_loadable(write_module: WriteModule, said: str, told: str) -> None:
    found = registry.load([write_module("wrong", POLICY.format(said))])
    assert found.classes == {}
    assert told in found.not_loadable["wrong.Cam"]


def test_a_base_of_other_workers_is_no_error(write_module: WriteModule) -> None:
    source = HEAD + dedent("""
    class Shared(BaseTaskWorker[P]):
        def initialize(self, data): ...

    class Cam(Shared):
        @run_main_handler
        def run(self): ...
    """)
    found = registry.load([write_module("shared", source)])

    assert (list(found.classes), found.not_loadable) == (["Cam"], {})


def test_aliases_are_those_that_validation_takes() -> None:
    class Model(BaseModel):
        same: int = Field(0, alias="same")
        choice: int = Field(0, validation_alias=AliasChoices(AliasPath("a", 0), "theChoice", "other"))
        path: int = Field(0, validation_alias=AliasPath("a", 0))
        shown: int = Field(0, serialization_alias="onlyOut")

    assert registry.aliases_of(Model) == {"choice": "theChoice"}


LOCKED = """
from pydantic import BaseModel, SecretStr

from skalds_streams.worker import BaseTaskWorker, run_main_handler


class Door(BaseModel):
    pin: SecretStr


class Params(BaseModel):
    doors: list[Door] = []


class Lock(BaseTaskWorker[Params]):
    def initialize(self, data: Params) -> None:
        pass

    @run_main_handler
    def main(self) -> None:
        pass
"""


def test_a_class_says_which_parameters_are_secret(write_module: WriteModule) -> None:
    found = registry.load([write_module("lock", LOCKED)])
    assert found.classes["Lock"].describe()["secret"] == ["doors.*.pin"]


def test_a_node_with_more_classes_than_fit_into_a_frame_starts_with_some(write_module: WriteModule) -> None:
    large = 'class Large(BaseModel):\n    field: int = Field(0, description="x" * 60_000)\n'
    worker = "class W{}(BaseTaskWorker[Large]):\n    def initialize(self, data): ...\n"
    main = "    @run_main_handler\n    def run(self): ...\n"
    write_module("many", HEAD + large + "".join(worker.format(number) + main for number in range(20)))
    failing = f"raise ValueError('x' * {registry.TRACEBACK_MAX_CHARS})"
    broken = [write_module(f"broken{at}", failing) for at in range(99)]

    found = registry.load(["many", *broken])

    assert list(found.classes) == [f"W{number}" for number in range(len(found.classes))]
    assert 5 < len(found.classes) < 20
    assert found.not_loadable["many.W19"] == registry.LEFT_OUT
    assert len(found.not_loadable) == 20 - len(found.classes) + len(broken)
    encode({"op": "ready", "classes": [item.describe() for item in found.classes.values()], "x": found.not_loadable})


# What installed packages offer


def install(folder: Path, package: str, entry_points: str) -> None:
    """What pip leaves of a package, as far as anybody looks."""
    info = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    info.joinpath("entry_points.txt").write_text(dedent(entry_points))


def test_installed_packages_offer_modules_and_classes(write_module: WriteModule, tmp_path: Path) -> None:
    write_module("acme_cams", GOOD)
    write_module("acme_doors", GOOD.replace("Cam(", "Door(") + HEAD_OF_OTHER)
    points = "[skalds_streams.workers]\ncams = acme_cams\ndoor = acme_doors:Door\n"
    install(tmp_path, "acme-things", points)
    install(tmp_path, "unrelated", "[console_scripts]\nx = nowhere:x\n")

    found = registry.load([], offers())

    assert (found.classes.keys(), found.not_loadable) == ({"Cam", "Door"}, {})
    assert registry.load(["acme_cams"], offers()).classes.keys() == {"Cam", "Door"}, "named twice is no double"


HEAD_OF_OTHER = """

class NotOffered(BaseTaskWorker[P]):
    def initialize(self, data: P) -> None: ...

    @run_main_handler
    def run(self) -> None: ...
"""


def test_an_offer_that_does_not_load_says_why_and_the_others_load(write_module: WriteModule, tmp_path: Path) -> None:
    write_module("good", GOOD)
    write_module("bad", "raise SystemExit('no camera driver')")
    points = "[skalds_streams.workers]\na = bad\nb = good:Nothing\nc = good:BaseModel\nd = good\n"
    install(tmp_path, "acme", points)
    install(tmp_path, "broken", "[skalds_streams.workers]\nthis is no entry point\n")

    found = registry.load([], offers())

    assert list(found.classes) == ["Cam"]
    reasons = found.not_loadable
    assert reasons.keys() == {"bad (package acme)", "good:Nothing (package acme)", "good:BaseModel (package acme)"}
    assert "no camera driver" in reasons["bad (package acme)"]
    assert "Traceback" in reasons["bad (package acme)"]
    assert "has no attribute 'Nothing'" in reasons["good:Nothing (package acme)"]
    assert "neither a module nor a worker class" in reasons["good:BaseModel (package acme)"]


def test_a_class_that_is_offered_twice_names_both_packages(write_module: WriteModule, tmp_path: Path) -> None:
    for name in ("mine", "acme_cams", "other_cams"):
        write_module(name, GOOD)
    install(tmp_path, "acme", "[skalds_streams.workers]\ncams = acme_cams\n")
    install(tmp_path, "other", "[skalds_streams.workers]\ncam = other_cams:Cam\n")

    found = registry.load(["mine"], offers())

    assert found.classes == {}
    assert found.not_loadable.keys() == {"mine.Cam", "acme_cams.Cam", "other_cams.Cam"}
    both = "mine.Cam and acme_cams.Cam (package acme) and other_cams.Cam (package other)"
    assert both in found.not_loadable["mine.Cam"]
