"""What installed packages offer as workers: entry points of the group `skalds_streams.workers`.

    [project.entry-points."skalds_streams.workers"]
    cams = "acme_cams.workers"            # a module: all worker classes that it defines
    door = "acme_doors:Door"              # or one class

Rules: only the zygote looks, as loading an entry point runs the package's code. A package whose list can't be read
hides no other. What does not live here: which classes can run (`registry`).
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, distributions

GROUP = "skalds_streams.workers"


@dataclass(frozen=True, slots=True)
class Offer:
    """One entry point, and the package that it is from."""

    point: EntryPoint
    package: str

    def __str__(self) -> str:
        return f"{self.point.value} (package {self.package})"


def offers(path: Sequence[str] | None = None) -> list[Offer]:
    """All offers, by package and name. Of two copies of a package the first on the path counts, as in an import."""
    found: dict[str, list[Offer]] = {}
    for package in distributions(path=list(sys.path if path is None else path)):
        try:
            points = _points(package)
            if points and (name := package.name).lower() not in found:
                found[name.lower()] = [Offer(point, name) for point in points]
        except Exception:  # noqa: BLE001  # what a broken installation makes of metadata may raise anything
            sys.stderr.write(f"the entry points of an installed package can't be read:\n{traceback.format_exc()}")
    everything = [offer for of_package in found.values() for offer in of_package]
    return sorted(everything, key=lambda offer: (offer.package.lower(), offer.point.name))


def _points(package: Distribution) -> Sequence[EntryPoint]:
    if GROUP not in (package.read_text("entry_points.txt") or ""):
        return ()
    return tuple(package.entry_points.select(group=GROUP))
