"""Which machine this is: never the same answer on two machines, whatever a container's image or host name says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from skalds_streams.skald import machine
from skalds_streams.skald.identity import claim_identity
from skalds_streams.skald.machine import INITIAL_NAMESPACES, machine_id


class Machine:
    """What a process sees of the machine that it runs on."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        (root / "ns").mkdir(parents=True)
        self.mounted = str(root / "machine-id")
        for name, file in {
            "MACHINE_ID": "machine-id",
            "BOOT_ID": "boot",
            "MOUNTS": "mounts",
            "NAMESPACES": "ns",
        }.items():
            monkeypatch.setattr(machine, name, str(root / file))

    def is_like(self, *, file: str | None, boot: str | None, container: bool, mounted: bool = False) -> None:
        for name, text in (("machine-id", file), ("boot", boot)):
            path = self.root / name
            path.unlink(missing_ok=True)
            if text is not None:
                path.write_text(text + "\n")
        mounts = "22 1 0:21 / / rw - overlay overlay rw\n"
        if mounted:
            mounts += f"23 22 8:1 /etc/machine-id {self.mounted} ro - ext4 /dev/sda1 ro\n"
        (self.root / "mounts").write_text(mounts)
        for name, number in INITIAL_NAMESPACES.items():
            link = self.root / "ns" / name
            link.unlink(missing_ok=True)
            link.symlink_to(f"{name}:[{4026532001 if container and name == 'pid' else number}]")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path / "machine", monkeypatch)


def test_a_machine_is_the_same_after_a_reboot(here: Machine) -> None:
    here.is_like(file="m1", boot="b1", container=False)
    before = machine_id()
    here.is_like(file="m1", boot="b2", container=False)
    assert machine_id() == before == "m1"


def test_a_containers_file_may_come_from_its_image(here: Machine) -> None:
    here.is_like(file="from-the-image", boot="b1", container=True)
    one = machine_id()
    here.is_like(file="from-the-image", boot="b2", container=True)
    assert (one, machine_id()) == ("boot:b1", "boot:b2")


def test_a_file_that_is_mounted_into_a_container_is_the_machines(here: Machine) -> None:
    here.is_like(file="m1", boot="b1", container=True, mounted=True)
    assert machine_id() == "m1"


@pytest.mark.parametrize("file", [None, "", "uninitialized"])
def test_without_the_file_it_is_the_boot(here: Machine, file: str | None) -> None:
    here.is_like(file=file, boot="b1", container=False)
    assert machine_id() == "boot:b1"


def test_without_anything_it_is_no_machine_that_was_ever_there(here: Machine) -> None:
    here.is_like(file=None, boot=None, container=False)
    assert machine_id() != machine_id()


@pytest.mark.parametrize(
    ("boot", "container", "is_replaced"),
    [("b1", True, True), ("b2", True, False), ("b1", False, True), ("b2", False, True), (None, True, False)],
)
def test_who_may_say_that_the_former_process_has_ended(
    here: Machine, tmp_path: Path, boot: str | None, container: bool, is_replaced: bool
) -> None:
    here.is_like(file="m1", boot="b1", container=container)
    first = claim_identity(tmp_path, "node-1")
    os.close(first.lock_fd)
    here.is_like(file="m1", boot=boot, container=container)
    second = claim_identity(tmp_path, "node-1")
    assert second.replaces == ((first.incarnation,) if is_replaced else ())
    os.close(second.lock_fd)
