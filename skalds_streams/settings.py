"""Settings: read once from the environment and `.env`, checked, then handed down as one object.

Upstream's names are read without a prefix (`KAFKA_HOST`, `SKALD_ID` …), ours with `SKALDS_`. Secrets are `SecretStr`
and never print. What does not live here: the order or names of topics (`topics`), and anything that a task or a class
chooses for itself.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from functools import cached_property
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from skalds_streams.addresses import addresses
from skalds_streams.errors import ConfigError

LEASE_MS = 20_000
BEATS_A_LEASE = 10
ATTACHMENTS_BYTES_MOST = 4 * 1024 * 1024
"""A row holds parameters twice, its history masked up to three times as long, and both fit into a record
(`model.row_size`)."""

_OWN_SECRETS = ("KAFKA_PASSWORD", "REDIS_PASSWORD", "SKALDS_WEB_TOKEN", "SKALDS_DIGEST_KEY")

Role = Literal["both", "coordinator", "skald"]
Mode = Literal["node", "edge", "single_process"]


class Settings(BaseSettings):
    """All settings of one process. `Settings.load()` raises `ConfigError` with one line a wrong setting."""

    model_config = SettingsConfigDict(
        env_prefix="SKALDS_", env_file=".env", extra="ignore", populate_by_name=True, frozen=True
    )

    # upstream's names
    skald_id: str | None = Field(None, max_length=512, validation_alias=AliasChoices("SKALD_ID", "skald_id"))
    kafka_host: str = Field("localhost", validation_alias=AliasChoices("KAFKA_HOST", "kafka_host"))
    """One broker, or several with commas between, each with a port of its own or `kafka_port`. Any that answers leads
    to all the others: name one more than may be lost."""
    kafka_port: int = Field(9092, gt=0, lt=65536, validation_alias=AliasChoices("KAFKA_PORT", "kafka_port"))
    kafka_username: str = Field("", validation_alias=AliasChoices("KAFKA_USERNAME", "kafka_username"))
    kafka_password: SecretStr = Field(SecretStr(""), validation_alias=AliasChoices("KAFKA_PASSWORD", "kafka_password"))
    kafka_topic_partitions: int = Field(
        6, ge=1, le=1000, validation_alias=AliasChoices("KAFKA_TOPIC_PARTITIONS", "kafka_topic_partitions")
    )
    kafka_replication_factor: int = Field(
        3, ge=1, le=9, validation_alias=AliasChoices("KAFKA_REPLICATION_FACTOR", "kafka_replication_factor")
    )
    redis_host: str = Field("localhost", validation_alias=AliasChoices("REDIS_HOST", "redis_host"))
    redis_port: int = Field(6379, gt=0, lt=65536, validation_alias=AliasChoices("REDIS_PORT", "redis_port"))
    redis_password: SecretStr = Field(SecretStr(""), validation_alias=AliasChoices("REDIS_PASSWORD", "redis_password"))
    skald_mode: Mode = Field("node", validation_alias=AliasChoices("SKALD_MODE", "skald_mode"))
    """edge: runs the tasks of `yaml_file`, without Kafka. single_process: only the first of them, and ends with it."""
    yaml_file: Path | None = Field(None, validation_alias=AliasChoices("YAML_FILE", "yaml_file"))
    """Tasks in upstream's form (`model.task_file`)."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", validation_alias=AliasChoices("LOG_LEVEL", "log_level")
    )

    # ours
    app: str = Field("skalds", pattern=r"^[a-zA-Z0-9._-]+$", max_length=64)
    """Name of the application: consumer group, transactional ids and the changelog topic start with it."""
    cluster: str = Field("default", pattern=r"^[a-zA-Z0-9._-]+$", max_length=64)
    topic_prefix: str = Field("", pattern=r"^[a-zA-Z0-9._-]*$", max_length=64)
    role: Role = "both"
    """coordinator: decides, runs no workers. skald: runs workers and joins no consumer group, so that hundreds may come
    and go without a rebalance."""
    workers: str = ""
    """Comma-separated modules whose worker classes this node runs, beside those that installed packages offer by entry
    points. Imported by the zygote only."""
    labels: dict[str, str] = Field(default_factory=dict)
    capacity: int = Field(64, ge=0, le=10_000)
    starts_at_once: int = Field(8, ge=1, le=1_000)
    """How many workers of this node may be starting at a time; those of higher priority first. One that has been
    starting for 30 s counts no more."""
    data_dir: Path = Path(".skalds")
    log_max_bytes: int = Field(5_000_000, ge=100_000, le=1_000_000_000)
    """What the log of one task may take on the disk of a node: the newest is kept."""
    log_files_most: int = Field(1_000, ge=1, le=100_000)
    """Tasks whose logs a node keeps. Above, those go that were written to longest ago and do not run."""
    lease_ms: int = Field(LEASE_MS, ge=1_000, le=600_000)
    """How long workers run on when heartbeats are not acknowledged any more. The same on every node: the time between
    heartbeats, and when others count a silent node dead, follow from it."""
    hold_ms: int = Field(15_000, ge=0, le=600_000)
    """How long the tasks of a node that was stopped in order wait for its return."""
    web_bind: str = "127.0.0.1"
    web_port: int = Field(6066, ge=0, lt=65536)
    web_token: SecretStr = SecretStr("")
    web_url: str | None = None
    """Address of this node's page as others reach it; default http://{web_bind}:{web_port}."""
    take_over: bool = False
    """Ask a process that already runs under this skald id to end. For one start: two that both ask would take turns."""
    redis_enabled: bool = True
    digest_key: SecretStr = SecretStr("")
    """Key of the digests of parameters on taskworker.update; the same on every node."""
    secret_names: str = "password,passwd,secret,token,api_key,apikey,access_key,private_key,credential"  # noqa: S105  # names, not a secret
    """Parameters with one of these words in their name are masked wherever they leave a worker."""
    secret_env: str = "SECRET_*"  # noqa: S105  # names, not a secret
    """Comma-separated variables of this node that `secret("env:NAME")` in parameters may name; `*` at the end: all that
    begin so. Whoever may publish events could read any other into a worker, this node's own passwords too."""
    secrets_dirs: str = "/run/secrets,/var/run/secrets"
    """Comma-separated directories with the files that `secret("file:/path")` may name; folders in them do not count."""
    max_record_bytes: int = Field(1_000_000, ge=1_000)
    max_ids_per_event: int = Field(10_000, ge=1)
    max_attachments_bytes: int = Field(256 * 1024, ge=100, le=ATTACHMENTS_BYTES_MOST)
    """Most bytes of a task's parameters as JSON, also of what merged updates make of them."""
    batch_max_events: int = Field(500, ge=1, le=10_000)
    terminal_retention_ms: int = Field(7 * 24 * 3600 * 1000, ge=1_000)

    @field_validator("kafka_host", "redis_host", mode="before")
    @classmethod
    def _blank_is_localhost(cls, value: object) -> object:
        return value if value is None or str(value).strip() else "localhost"

    @field_validator("skald_mode", mode="before")
    @classmethod
    def _any_case(cls, value: object) -> object:
        return value.strip().lower() or "node" if isinstance(value, str) else value

    @field_validator("yaml_file", mode="before")
    @classmethod
    def _blank_is_none(cls, value: object) -> object:
        return value if value is None or str(value).strip() else None

    @model_validator(mode="after")
    def _file_of_an_edge(self) -> Settings:
        if self.is_edge and self.yaml_file is None:
            raise ValueError(f"SKALD_MODE={self.skald_mode} needs YAML_FILE, the file of its tasks")
        if self.is_edge and self.role == "coordinator":
            raise ValueError(f"SKALD_MODE={self.skald_mode} runs workers, SKALDS_ROLE=coordinator runs none")
        return self

    @field_validator("secret_env")
    @classmethod
    def _own_secrets_stay(cls, value: str) -> str:
        for item in _items(value):
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*\*?", item):
                raise ValueError("must be names of variables, comma-separated, each with or without a * at its end")
            for own in _OWN_SECRETS:
                if own == item or (item.endswith("*") and own.startswith(item[:-1])):
                    raise ValueError(f"{item} would let any event read {own} of this node")
        return value

    @field_validator("secrets_dirs")
    @classmethod
    def _absolute(cls, value: str) -> str:
        if not all(Path(item).is_absolute() for item in _items(value)):
            raise ValueError("must be absolute paths, comma-separated")
        return value

    @field_validator("kafka_host")
    @classmethod
    def _is_addresses(cls, value: str) -> str:
        addresses(value, 1)
        return value

    @model_validator(mode="after")
    def _guard_open_web(self) -> Settings:
        if not self.web_token.get_secret_value() and not _is_loopback(self.web_bind):
            raise ValueError(
                f"SKALDS_WEB_BIND={self.web_bind} opens the status page beyond this machine:"
                " set SKALDS_WEB_TOKEN, or bind 127.0.0.1"
            )
        return self

    @classmethod
    def load(cls, **overrides: object) -> Settings:
        """Read environment and `.env`; `overrides` win. Raises ConfigError naming each wrong setting and never its
        value.
        """
        try:
            return cls(**overrides)  # type: ignore[arg-type]  # pydantic checks them
        except ValidationError as error:
            lines = [
                f"{_shown(item['loc'])}: {item['msg']}" for item in error.errors(include_input=False, include_url=False)
            ]
            raise ConfigError("wrong settings:\n  " + "\n  ".join(lines)) from None

    @property
    def brokers(self) -> tuple[str, ...]:
        """host:port of every broker that was named."""
        return addresses(self.kafka_host, self.kafka_port)

    @property
    def bootstrap(self) -> str:
        """The same as one text, with commas between."""
        return ",".join(self.brokers)

    @property
    def worker_modules(self) -> tuple[str, ...]:
        return _items(self.workers)

    @property
    def advertised_url(self) -> str:
        return self.web_url or f"http://{self.web_bind}:{self.web_port}"

    @property
    def beat_ms(self) -> int:
        """Time between an acknowledged heartbeat and the next."""
        return self.lease_ms // BEATS_A_LEASE

    @property
    def hold_beats(self) -> int:
        """Beats of another after which the tasks of a node that is expected back are free."""
        return math.ceil(self.hold_ms / self.beat_ms) + 1

    @cached_property
    def secret_words(self) -> frozenset[str]:
        return frozenset(word.strip().lower() for word in self.secret_names.split(",") if word.strip())

    @cached_property
    def secret_values(self) -> frozenset[str]:
        """Passwords, tokens and keys of this process itself."""
        fields = (getattr(self, name) for name in type(self).model_fields)
        values = (field.get_secret_value() for field in fields if isinstance(field, SecretStr))
        return frozenset(filter(None, values))

    @property
    def secret_variables(self) -> tuple[str, ...]:
        return _items(self.secret_env)

    @property
    def secret_directories(self) -> tuple[str, ...]:
        return tuple(str(Path(item)) for item in _items(self.secrets_dirs))

    @property
    def coordinates(self) -> bool:
        """Whether this node joins the consumer group and decides."""
        return self.role != "skald" and not self.is_edge

    @property
    def is_edge(self) -> bool:
        """Whether this node takes its tasks from a file, and needs no Kafka."""
        return self.skald_mode != "node"

    @property
    def runs_workers(self) -> bool:
        return self.role != "coordinator"

    @cached_property
    def agreed(self) -> Mapping[str, str | int]:
        """The settings that all nodes of a cluster must share, by name; they travel in heartbeats."""
        return {
            "app": self.app,
            "cluster": self.cluster,
            "topic_prefix": self.topic_prefix,
            "lease_ms": self.lease_ms,
            "hold_ms": self.hold_ms,
            "partitions": self.kafka_topic_partitions,
        }

    @cached_property
    def agreed_hash(self) -> str:
        """Digest of `agreed`."""
        return hashlib.sha256("|".join(map(str, self.agreed.values())).encode()).hexdigest()[:12]


def _items(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(",") if item.strip())


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _shown(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) or "settings"
