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
    charge: float | None = None
    """e, as the user or the topology says it; None if nobody does."""


def select_region(
    topology: Any,
    atoms: Iterable[int] | None,
    charge: float | None,
    multiplicity: int,
    system: System | None = None,
    *,
    ions: bool = False,
) -> Region:
    """The particles among `atoms` (None: all) that have an element; massless ones and virtual sites take part too.

    topology: of OpenMM. charge (e) and multiplicity (2S+1) of the region as a whole; `system`, if it holds the
    force field's charges, must agree. ions: whether the model describes charged structures. Raises ValueError for
    indices that are wrong, twice, or none; for an open shell, a charge that the model does not describe, or that is not
    the sum of the formal charges or of the force field's, and for an odd number of electrons.
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
    if not ions:
        _check_electrons([everything[index] for index in particles], numbers, charge or 0, multiplicity)
        if system is not None:
            _check_force_field_charges(system, particles)
    elif multiplicity != 1:
        raise ValueError(f"multiplicity {multiplicity}: the model describes closed shells (multiplicity 1) only")
    else:
        charge = _charge_of([everything[index] for index in particles], particles, charge, system)
    return Region(tuple(particles), numbers, particles == list(range(len(everything))), charge)


def _charge_of(atoms: list[Any], particles: list[int], said: float | None, system: System | None) -> float | None:
    """The total charge, of which the user, the formal charges and the force field must have one opinion."""
    opinions = {} if said is None else {"charge": float(said)}
    if formal := sum(atom.formalCharge or 0 for atom in atoms):
        opinions["the formal charges of the atoms"] = float(formal)
    total = None if system is None else _force_field_charge(system, particles)
    if total is not None:
        opinions["the force field's charges of the atoms"] = float(round(total))
    if len(set(opinions.values())) > 1:
        found = ", ".join(f"{of}: {value:+g} e" for of, value in opinions.items())
        raise ValueError(f"the charge of the {len(atoms)} atoms is not clear ({found}): correct it with charge=")
    return next(iter(opinions.values()), None)


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
    total = _force_field_charge(system, particles)
    if total is not None and round(total):
        raise ValueError(
            f"in the force field the atoms carry a charge of {total:+.2f} e: the model describes neutral structures "
            "only; choose atoms, or a protonation state, that are neutral as a whole"
        )


def _force_field_charge(system: System, particles: list[int]) -> float | None:
    """e; None without charges, or where bonds were cut: what is left need not have a whole charge."""
    if any(system.isVirtualSite(index) for index in particles):
        return None
    for force in system.getForces():
        if isinstance(force, NonbondedForce):
            charges = (force.getParticleParameters(index)[0] for index in particles)
            return float(sum(charge.value_in_unit(elementary_charge) for charge in charges))
    return None
