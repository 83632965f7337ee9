"""References to secrets: what is one, what may be read, and that a value read leaves in no error."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from skalds_streams.core.redact import cleaner, redact
from skalds_streams.core.references import reference_of
from skalds_streams.errors import ConfigError
from skalds_streams.settings import Settings
from skalds_streams.worker.secrets import EVERYTHING, VALUE_MAX_BYTES, SecretPolicy, Secrets, UnresolvedSecretError

ENV = 'secret("env:SECRET_DB")'


def secrets_of(tmp_path: Path, *, words: tuple[str, ...] = (), paths: tuple[str, ...] = ()) -> Secrets:
    return Secrets(SecretPolicy(["SECRET_*"], [str(tmp_path)], words), paths)


def problem(secrets: Secrets, parameters: Any) -> UnresolvedSecretError:
    with pytest.raises(UnresolvedSecretError) as raised:
        secrets.resolve(parameters)
    return raised.value


@pytest.mark.parametrize("value", ["secret", "secret(", "the secret(env:A)", 'secret("env:A") ', 3, None, ["x"]])
def test_any_other_value_is_left_alone(value: Any) -> None:
    assert reference_of(value) is None
    assert Secrets(SecretPolicy()).resolve({"a": value}) == {"a": value}


@pytest.mark.parametrize(
    "text",
    [
        "secret(hunter22)",
        "secret(env:SECRET_A)",
        'secret("vault:a")',
        'secret("file:here")',
        'secret("env:")',
        'secret("env:A", "env:B")',
        "secret('env:A')",
        'secret("file:/a\nb")',
    ],
)
def test_what_was_meant_as_a_reference_is_refused_and_not_repeated(text: str) -> None:
    error = problem(Secrets(SecretPolicy(["*"])), {"login": {"pin": text}})
    assert str(error) == (
        'login.pin: not a reference to a secret: it must be secret("env:NAME") or secret("file:/path")'
    )
    assert (error.field, error.retryable) == ("login.pin", False)


def test_references_are_resolved_at_any_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_DB", "pa ss")
    (tmp_path / "key").write_bytes(b"two\nlines\r\n")
    given = {"a": ENV, "b": [{"c": f'secret("file:{tmp_path}/key")'}, 3], "d": {"e": None}}
    assert secrets_of(tmp_path).resolve(given) == {"a": "pa ss", "b": [{"c": "two\nlines"}, 3], "d": {"e": None}}
    assert given["a"] == ENV


def test_only_allowed_variables_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_PASSWORD", "canary")
    monkeypatch.setenv("SECRET_EMPTY", "")
    monkeypatch.delenv("SECRET_DB", raising=False)
    secrets = secrets_of(tmp_path)
    error = problem(secrets, {"x": [{"pin": 'secret("env:KAFKA_PASSWORD")'}]})
    assert str(error) == (
        'x.0.pin: secret("env:KAFKA_PASSWORD"): this node lets events read only SECRET_* (SKALDS_SECRET_ENV)'
    )
    assert (error.field, error.retryable) == ("x.0.pin", True)
    assert str(problem(secrets, {"pin": ENV})) == f"pin: {ENV}: there is no such variable in this node's environment"
    assert "it is empty" in str(problem(secrets, {"pin": 'secret("env:SECRET_EMPTY")'}))


def test_only_files_directly_in_an_allowed_directory_are_read(tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    (allowed / "folder").mkdir(parents=True)
    for name in ("outside", "allowed/folder/file", "allowed/plain"):
        (tmp_path / name).write_text("canary")
    (allowed / "link").symlink_to(tmp_path / "outside")
    (allowed / "mounted").symlink_to(allowed / "folder" / "file")  # as Kubernetes mounts them
    secrets = secrets_of(allowed)
    for name in ("plain", "mounted", "folder/../plain"):
        assert secrets.resolve({"a": f'secret("file:{allowed}/{name}")'}) == {"a": "canary"}
    for name in ("../outside", "folder/file", "link"):
        assert "lets events read only files in" in str(problem(secrets, {"a": f'secret("file:{allowed}/{name}")'}))


def test_in_the_terminal_everything_may_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANY_NAME", "canary")
    (tmp_path / "file").write_text("canary")
    given = {"a": 'secret("env:ANY_NAME")', "b": f'secret("file:{tmp_path}/file")'}
    assert Secrets(EVERYTHING).resolve(given) == {"a": "canary", "b": "canary"}


def test_files_that_are_no_secret_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"x" * (VALUE_MAX_BYTES + 1))
    (tmp_path / "most").write_bytes(b"x" * VALUE_MAX_BYTES)
    (tmp_path / "binary").write_bytes(b"\xff")
    secrets = secrets_of(tmp_path)
    assert len(secrets.resolve({"a": f'secret("file:{tmp_path}/most")'})["a"]) == VALUE_MAX_BYTES
    reasons = {"pipe": "no plain file", "large": "more than 65536 bytes", "binary": "not UTF-8", "none": "no such file"}
    for name, reason in reasons.items():
        assert reason in str(problem(secrets, {"a": f'secret("file:{tmp_path}/{name}")'}))


def test_texts_lose_every_secret_that_the_run_has_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_DB", "by-reference\nsecond-line")
    secrets = secrets_of(tmp_path, words=("password",), paths=("doors.*.pin",))
    secrets.resolve({"password": "by-name", "doors": [{"pin": "by-class"}], "url": "rtsp://me:by-url@cam/", "x": ENV})
    secrets.resolve({"password": "refused-later"})
    told = "by-name by-class by-url refused-later | 'by-reference\\nsecond-line' | second-line rtsp://me:other@cam/ fps"
    assert secrets.clean(told) == "*** *** *** *** | '***' | *** rtsp://***@cam/ fps"


def test_a_reference_is_shown_where_a_secret_is_not() -> None:
    given = {"password": ENV, "doors": [{"pin": ENV}, {"pin": "4711"}], "token": "secret(hunter22)"}
    masked = redact(given, {"password", "token"}, ["doors.*.pin"])
    assert masked == {"password": ENV, "doors": [{"pin": ENV}, {"pin": "***"}], "token": "***"}
    assert redact(given, (), ["*"])["password"] == ENV
    assert cleaner(given, {"password"})(f"password: {ENV}: no such variable") == f"password: {ENV}: no such variable"


def policy_of(settings: Settings) -> SecretPolicy:
    return SecretPolicy(settings.secret_variables, settings.secret_directories)


def test_the_settings_never_open_the_nodes_own_secrets() -> None:
    assert policy_of(Settings.load()).allows_variable("SECRET_A")
    own = Settings.load(secret_env="CAM_PASSWORD, DB_*", secrets_dirs="/etc/skalds/")
    policy = policy_of(own)
    assert [policy.allows_variable(name) for name in ("CAM_PASSWORD", "DB_X", "CAM_PASSWORDS", "SECRET_A")] == [
        True,
        True,
        False,
        False,
    ]
    assert SecretPolicy.from_text(policy.to_text()) == SecretPolicy(["CAM_PASSWORD", "DB_*"], ["/etc/skalds"], [])
    for value in ("KAFKA_*", "SKALDS_WEB_TOKEN", "K*", "*"):
        with pytest.raises(ConfigError, match="secret_env"):
            Settings.load(secret_env=value)
    with pytest.raises(ConfigError, match="absolute"):
        Settings.load(secrets_dirs="secrets")
