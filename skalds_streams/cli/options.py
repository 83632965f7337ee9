"""The options that every command has, what they add up to (settings, form of the output), and how to run a coroutine.

Imports nothing heavy: every `--help` passes through here.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import click

from skalds_streams.addresses import addresses

if TYPE_CHECKING:
    from skalds_streams.settings import Settings

P = ParamSpec("P")
T = TypeVar("T")
KAFKA_PORT = 9092
"""Of a broker that is named without one."""


@dataclass(frozen=True)
class Options:
    """What `--kafka` and `-o` say, before or after the command's name; after wins."""

    kafka: tuple[str, int] | None = None
    output: str | None = None

    @property
    def json(self) -> bool:
        """Whether the answer is to be one JSON object."""
        return self.output == "json"

    @cached_property
    def settings(self) -> Settings:
        """Environment and `.env`, with `--kafka` on top. Raises ConfigError."""
        from skalds_streams.settings import Settings

        if self.kafka is None:
            return Settings.load()
        return Settings.load(kafka_host=self.kafka[0], kafka_port=self.kafka[1])


class Address(click.ParamType):
    """host:port, the port optional; or several with commas between."""

    name = "host:port"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        """(host, port). An IPv6 address keeps its brackets; of several brokers the text stays as it is."""
        if isinstance(value, tuple):
            return value
        if "," in str(value):
            return self._several(str(value), param, ctx), KAFKA_PORT
        host, colon, port = str(value).rpartition(":")
        if not colon or value.endswith("]"):
            host, port = str(value), str(KAFKA_PORT)
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            self.fail(f"{value!r} is not host:port, e.g. localhost:9092", param, ctx)
        return host, int(port)

    def _several(self, text: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            addresses(text, KAFKA_PORT)
        except ValueError:
            self.fail(f"{text!r} is not host:port,host:port, e.g. kafka-1:9092,kafka-2:9092", param, ctx)
        return text


def common_options(function: Callable[P, T]) -> Callable[P, T]:
    """Add `--kafka` and `-o`; what they say is kept in the context."""

    def keep(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        given = ctx.ensure_object(Options)
        if value is not None and param.name is not None:
            given = replace(given, **{param.name: value})
        ctx.obj = given
        return value

    kafka = click.option(
        "--kafka",
        type=Address(),
        callback=keep,
        expose_value=False,
        help="Kafka broker, or several with commas between. Default: KAFKA_HOST and KAFKA_PORT, else localhost:9092.",
    )
    output = click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "json"]),
        callback=keep,
        expose_value=False,
        help="Form of the answer: for people (table) or one JSON object.",
    )
    return output(kafka(function))


def command_options(function: Callable[Concatenate[Options, P], T]) -> Callable[P, T]:
    """For a command: the common options, handed over as the first argument."""

    @common_options
    @click.pass_context
    @wraps(function)
    def wrapper(ctx: click.Context, /, *args: P.args, **kwargs: P.kwargs) -> T:
        _quieten()
        return function(ctx.ensure_object(Options), *args, **kwargs)

    return wrapper


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run to its end. Ctrl-C cancels it and lets it close what it opened."""
    return asyncio.run(coroutine)


def _quieten() -> None:
    """Libraries log to nobody: an error reaches the person as the one line that the command prints."""
    import structlog

    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    if not structlog.is_configured():
        structlog.configure(
            logger_factory=lambda *_args: structlog.PrintLogger(sys.stderr),
            wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        )
