"""Velocities, degrees of freedom, and ase's integrators in our units; OpenMM's are in openmm_engine.py.

ase.md works in its own time unit, Å sqrt(amu/eV) = 10.18 fs: every time passes through FS_PER_TIME_UNIT here.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from egnn_md.chemistry.units import BOLTZMANN, EV_PER_A3_PER_BAR, FS_PER_TIME_UNIT
from egnn_md.dynamics.settings import MDSettings, SettingsError
from egnn_md.dynamics.state import atom_arrays

if TYPE_CHECKING:
    from ase import Atoms

FloatArray = NDArray[np.float64]

BAROSTAT_TIME_FS: Final = 1000.0
"""Time constant of the barostat: slow against bonds, fast against any run worth the name."""
_REST: Final = 1e-6
"""Momenta below this fraction of the atoms' own count as zero."""


def check_ensemble(atoms: Atoms, settings: MDSettings) -> None:
    """Raise SettingsError if this structure cannot be simulated in this ensemble."""
    if settings.ensemble == "npt" and not atoms.pbc.all():
        raise SettingsError(
            "ensemble npt needs a structure that is periodic in three directions; "
            "this one is not: use nvt, or give the file a cell with pbc"
        )
    kinds = {type(constraint).__name__ for constraint in atoms.constraints}
    if kinds - {"FixAtoms"}:
        raise SettingsError(f"constraints {', '.join(sorted(kinds - {'FixAtoms'}))} are not supported; FixAtoms is")
    if settings.engine == "openmm" and atoms.pbc.any() and not atoms.pbc.all():
        raise SettingsError(
            f"engine openmm needs a structure periodic in all three directions or in none, not {atoms.pbc.tolist()}: "
            "use engine ase"
        )
    if kinds and settings.ensemble == "npt":
        raise SettingsError("fixed atoms do not go with ensemble npt: the cell moves every atom")


def set_velocities(atoms: Atoms, temperature: float, rng: np.random.Generator) -> None:
    """Draw Maxwell-Boltzmann velocities at `temperature` (K), unless the structure has velocities already.

    The total momentum is zero, and for isolated structures the angular momentum too; with fixed atoms neither is
    conserved, and nothing is removed.
    """
    if atoms.has("momenta") and np.any(atoms.get_momenta()):
        return
    fixed = atom_arrays(atoms)["fixed"]
    masses = atoms.get_masses()[:, None]
    velocities = rng.standard_normal((len(atoms), 3)) * np.sqrt(BOLTZMANN * temperature / masses)
    if fixed.any():
        velocities[fixed] = 0.0
    else:
        velocities -= (masses * velocities).sum(0) / masses.sum()
        if not atoms.pbc.any():
            velocities -= np.cross(angular_velocity(atoms, velocities), _centred(atoms))
    atoms.set_velocities(velocities)


def _centred(atoms: Atoms) -> FloatArray:
    centred: FloatArray = atoms.positions - atoms.get_center_of_mass()
    return centred


def _inertia(atoms: Atoms) -> FloatArray:
    x, masses = _centred(atoms), atoms.get_masses()
    inertia: FloatArray = np.eye(3) * float((masses * (x**2).sum(1)).sum()) - np.einsum("a,ai,aj->ij", masses, x, x)
    return inertia


def angular_velocity(atoms: Atoms, velocities: FloatArray) -> FloatArray:
    """ω (3,) of the rigid rotation that carries the angular momentum: I ω = L, no turn about a linear axis."""
    momentum = np.cross(_centred(atoms), atoms.get_masses()[:, None] * velocities).sum(0)
    omega: FloatArray = np.linalg.pinv(_inertia(atoms), rcond=1e-8, hermitian=True) @ momentum
    return omega


def degrees_of_freedom(atoms: Atoms, ensemble: str) -> int:
    """How many degrees of freedom share the kinetic energy: T = 2 E_kin / (n k_B).

    A thermostat drives all 3 n of the free atoms. In nve those are left out that are conserved at zero: the total
    momentum and, for isolated structures, the angular momentum.
    """
    free = 3 * int((~atom_arrays(atoms)["fixed"]).sum())
    if ensemble != "nve" or free < 3 * len(atoms):
        return free
    momenta = atoms.get_momenta()
    scale = float(np.abs(momenta).sum())
    if np.abs(momenta.sum(0)).max() > _REST * scale:
        return free
    free -= 3
    turning = atoms.get_masses()[:, None] * np.cross(angular_velocity(atoms, atoms.get_velocities()), _centred(atoms))
    if not atoms.pbc.any() and np.abs(turning).max() <= _REST * scale:
        moments = np.linalg.eigvalsh(_inertia(atoms))
        free -= int((moments > 1e-8 * moments.max()).sum())  # two axes for a linear molecule, none for an atom
    return free


def make_integrator(atoms: Atoms, settings: MDSettings, rng: np.random.Generator) -> Any:
    """The integrator for these settings: an object with `step()`. Asks the calculator for forces (and stress).

    Engine "openmm": see `OpenMMIntegrator`. Engine "ase": nve: velocity Verlet. nvt: Langevin in the BAOAB splitting
    (Leimkuhler and Matthews, J. Chem. Phys. 138, 174102, 2013). npt: the same with an isotropic Langevin-Hoover
    barostat (Quigley and Probert, J. Chem. Phys. 120, 11432, 2004), which keeps the cell's shape, triclinic or not.
    """
    if settings.engine == "openmm":
        from egnn_md.dynamics.openmm_engine import OpenMMIntegrator

        return OpenMMIntegrator(atoms, settings)
    timestep = settings.timestep / FS_PER_TIME_UNIT
    if settings.ensemble == "nve":
        from ase.md.verlet import VelocityVerlet

        return VelocityVerlet(atoms, timestep)
    from ase.md.langevinbaoab import LangevinBAOAB

    options: dict[str, Any] = {
        "temperature_K": settings.temperature,
        "T_tau": 1000.0 / settings.friction / FS_PER_TIME_UNIT,
        "rng": rng,
    }
    if settings.ensemble == "npt":
        period = BAROSTAT_TIME_FS / FS_PER_TIME_UNIT
        options |= {
            "externalstress": -settings.pressure * EV_PER_A3_PER_BAR,
            "hydrostatic": True,
            "P_tau": period,
            # Martyna, Tobias and Klein, J. Chem. Phys. 101, 4177 (1994): W = (n_f + 3) k_B T τ²
            "P_mass": (3 * len(atoms) + 3) * BOLTZMANN * settings.temperature * period**2,
        }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LangevinBAOAB has not been", category=UserWarning)
        return LangevinBAOAB(atoms, timestep, **options)


def integrator_memory(integrator: Any) -> dict[str, Any]:
    """What an integrator remembers from one step to the next beside the atoms, as JSON values.

    In ase, barostats alone do: the force on the volume was computed with the velocities of half a kick ago, which the
    atoms do not give again.
    """
    if hasattr(integrator, "memory"):
        return dict(integrator.memory())
    if getattr(integrator, "externalstress", None) is None:
        return {}
    return {"p_eps": float(integrator.p_eps), "force_eps": float(integrator.force_eps)}


def restore_memory(integrator: Any, memory: dict[str, Any]) -> None:
    """Give an integrator the memory of `integrator_memory`."""
    if hasattr(integrator, "restore"):
        integrator.restore(memory)
        return
    for name, value in memory.items():
        setattr(integrator, name, value)
