"""Kafka's class path as a list of jars with sizes and checksums, in a file beside this module.

The list was resolved once by jgo from `ENDPOINT`. Keeping it makes the first start twice as quick (no POM is
fetched), later starts need no jgo and no network, and a jar that is not the one we tested is refused. After a change
of `KAFKA_VERSION`: `python -m skalds_streams.devcluster.jars` writes the new list.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from skalds_streams.devcluster.extra import extra_module

KAFKA_VERSION = "3.9.1"
ENDPOINT = "+".join(
    (
        f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}",
        # the logging backend: Kafka's own archive adds it, its POM does not, and without it the broker fails in silence
        "org.slf4j:slf4j-reload4j:1.7.36",
        "ch.qos.reload4j:reload4j:1.2.25",
    )
)
LIST_PATH = Path(__file__).with_name(f"kafka-{KAFKA_VERSION}.jars")


@dataclass(frozen=True, slots=True)
class Jar:
    """One jar of the class path. `size` is in bytes."""

    group: str
    artifact: str
    version: str
    size: int
    sha256: str

    @property
    def filename(self) -> str:
        """Name of the file, as in every Maven repository."""
        return f"{self.artifact}-{self.version}.jar"

    @property
    def relative_path(self) -> Path:
        """Its place in a Maven repository."""
        return Path(*self.group.split("."), self.artifact, self.version, self.filename)

    def is_whole(self, path: Path) -> bool:
        """Whether `path` holds this jar's bytes; reads all of it."""
        return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == self.sha256


def kafka_jars() -> list[Jar]:
    """The jars of Kafka `KAFKA_VERSION`, Kafka's own first."""
    return [_parse(line) for line in LIST_PATH.read_text().splitlines()]


def _parse(line: str) -> Jar:
    coordinate, size, sha256 = line.split(" ")
    group, artifact, version = coordinate.split(":")
    return Jar(group, artifact, version, int(size), sha256)


def write_list() -> None:
    """Resolve `ENDPOINT` anew from Maven Central and write the list. Takes about half a minute."""
    lines = []
    for artifact in extra_module("jgo").resolve(ENDPOINT):
        data = Path(artifact.resolve()).read_bytes()
        coordinate = f"{artifact.groupId}:{artifact.artifactId}:{artifact.version}"
        lines.append(f"{coordinate} {len(data)} {hashlib.sha256(data).hexdigest()}\n")
    LIST_PATH.write_text("".join(lines))


if __name__ == "__main__":
    write_list()
