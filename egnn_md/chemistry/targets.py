"""QM9's twelve properties: names, reported units, and what is subtracted from them.

QM9 (Ramakrishnan et al., Sci. Data 2014) gives energies in Hartree. Satorras et al. (arXiv 2102.09844) report them in
meV, and the thermochemical ones relative to free atoms. Here too, with one exception: the references of Cv (2.981
cal/(mol K) an atom) only help the training; the Cv reported is the molecule's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from egnn_md.chemistry.units import BOLTZMANN, EV_PER_HARTREE

MEV_PER_HARTREE: Final = 1e3 * EV_PER_HARTREE
RT: Final = 1e3 * BOLTZMANN * 298.15
"""meV at 298.15 K: H - U of one molecule of an ideal gas."""
ELEMENTS: Final = (1, 6, 7, 8, 9)
"""H, C, N, O, F: all of QM9."""


@dataclass(frozen=True)
class Target:
    """One property."""

    name: str
    unit: str
    """The unit reported."""
    factor: float = 1.0
    """Reported unit per QM9's own."""
    atoms: Mapping[int, float] = field(default_factory=dict)
    """What a free atom of each element has, in QM9's own unit."""
    relative: bool = False
    """Reported relative to the free atoms."""


def _energy(name: str, *atoms: float) -> Target:
    return Target(name, "meV", MEV_PER_HARTREE, dict(zip(ELEMENTS, atoms, strict=False)), bool(atoms))


TARGETS: Final = (
    Target("mu", "D"),
    Target("alpha", "a0^3"),
    _energy("homo"),
    _energy("lumo"),
    _energy("gap"),
    Target("r2", "a0^2"),
    _energy("zpve"),  # of a free atom it is zero
    _energy("u0", -0.500273, -37.846772, -54.583861, -75.064579, -99.718730),
    _energy("u298", -0.498857, -37.845355, -54.582445, -75.063163, -99.717314),
    _energy("h298", -0.497912, -37.844411, -54.581501, -75.062219, -99.716370),
    _energy("g298", -0.510927, -37.861317, -54.598897, -75.079532, -99.733544),
    Target("cv", "cal/(mol K)", 1.0, dict.fromkeys(ELEMENTS, 2.981)),
)
"""In the order of QM9's own files."""
NAMES: Final = tuple(target.name for target in TARGETS)
BY_NAME: Final = {target.name: target for target in TARGETS}


def unit_of(name: str) -> str:
    """Unit of a property; "1" for a name that is none of QM9's (a converted network's plain output)."""
    return BY_NAME[name].unit if name in BY_NAME else "1"
