"""Which particles of an OpenMM topology a potential describes, and what it cannot describe."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from openmm import NonbondedForce, System
from openmm.unit import elementary_charge


@dataclass(frozen=True)
class Region:
    """The particles that take part."""

    particles: tuple[int, ...]
    """Their indices in the topology and the system, in the order of the positions that the potential gets."""
    atomic_numbers: NDArray[np.int64]
    """(n_atoms,), in the same order."""
    whole: bool
    """Whether these are all the particles of the topology, in its order."""


def select_region(
    topology: Any, atoms: Iterable[int] | None, charge: float, multiplicity: int, system: System | None = None
) -> Region:
    """The particles among `atoms` (None: all) that have an element; massless ones and virtual sites take part too.

    topology: of OpenMM. charge (e) and multiplicity (2S+1) of the region as a whole; `system`, if it holds the
    force field's charges, must agree. Raises ValueError for indices that are wrong, twice, or none; for a charge, an
    open shell, formal charges that do not add up to zero and an odd number of electrons.
    """
    everything = list(topology.atoms())
    chosen = list(range(len(everything))) if atoms is None else [int(index) for index in atoms]
    if len(set(chosen)) < len(chosen):
        twice = next(index for index in chosen if chosen.count(index) > 1)
        raise ValueError(f"atom {twice} stands twice among the atoms of the potential")
    outside = [index for index in chosen if not 0 <= index < len(everything)]
    if outside:
        raise ValueError(f"atom {outside[0]} does not exist: the topology has {len(everything)}, counted from 0")
    particles = [index for index in chosen if everything[index].element is not None]
    if not particles:
        raise ValueError("the potential is given no atoms: name some that have an element")
    numbers = np.array([everything[index].element.atomic_number for index in particles], dtype=np.int64)
    _check_electrons([everything[index] for index in particles], numbers, charge, multiplicity)
    if system is not None:
        _check_force_field_charges(system, particles)
    return Region(tuple(particles), numbers, particles == list(range(len(everything))))


def _check_electrons(atoms: list[Any], numbers: NDArray[np.int64], charge: float, multiplicity: int) -> None:
    if charge != 0:
        raise ValueError(f"charge {charge:g}: the model describes neutral structures only")
    if multiplicity != 1:
        raise ValueError(f"multiplicity {multiplicity}: the model describes closed shells (multiplicity 1) only")
    formal = sum(atom.formalCharge or 0 for atom in atoms)
    if formal:
        raise ValueError(
            f"the formal charges of the atoms add up to {formal:+d} e: the model describes neutral structures only; "
            "choose atoms, or a protonation state, that are neutral as a whole"
        )
    if numbers.sum() % 2:
        raise ValueError(
            f"the {len(numbers)} atoms have {numbers.sum()} electrons, an odd number: an ion or a radical, but the "
            "model describes neutral closed-shell structures only; choose atoms, or a protonation state, that are "
            "neutral as a whole (are hydrogens missing?)"
        )


def _check_force_field_charges(system: System, particles: list[int]) -> None:
    """Where the region is made of whole molecules, their charges in the force field must add up to zero."""
    if any(system.isVirtualSite(index) for index in particles):
        return  # bonds were cut: what is left need not be neutral in the force field
    for force in system.getForces():
        if isinstance(force, NonbondedForce):
            charges = (force.getParticleParameters(index)[0] for index in particles)
            total = sum(charge.value_in_unit(elementary_charge) for charge in charges)
            if round(total):
                raise ValueError(
                    f"in the force field the atoms carry a charge of {total:+.2f} e: the model describes neutral "
                    "structures only; choose atoms, or a protonation state, that are neutral as a whole"
                )
