"""OpenMM as the engine of a run: its integrators move the atoms, their calculator gives the forces.

The Reference platform does it: the integrator's arithmetic is nothing beside a network's, and there it is in double
precision and its checkpoints go on exactly. Positions and velocities in nm and nm/ps on OpenMM's side.
"""

from __future__ import annotations

import base64
import warnings
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from egnn_md.chemistry.units import ANGSTROM_PER_NM, FS_PER_TIME_UNIT, KJ_PER_MOL_PER_EV
from egnn_md.dynamics.settings import MDSettings
from egnn_md.dynamics.state import atom_arrays

if TYPE_CHECKING:
    from ase import Atoms

FloatArray = NDArray[np.float64]

BAROSTAT_INTERVAL: Final = 25
"""Steps between attempts of the Monte Carlo barostat, OpenMM's own default."""
_FS_PER_PS: Final = 1000.0
_VELOCITY: Final = ANGSTROM_PER_NM / _FS_PER_PS * FS_PER_TIME_UNIT
"""1 nm/ps in Å / (Å sqrt(amu/eV))."""


def orient(atoms: Atoms) -> None:
    """Turn a periodic structure so that its cell is as OpenMM wants it: a along x, b in the xy plane, reduced.

    The lattice, and so the physics, stays the same. Does nothing where the cell is so already.
    """
    if not atoms.pbc.all():
        return
    box, rotation = atoms.cell.standard_form()
    box = np.asarray(box) * np.sign(box[0, 0])  # left-handed cells: the opposite vectors span the same lattice
    for row, axis in ((2, 1), (2, 0), (1, 0)):
        box[row] -= box[axis] * np.rint(box[row, axis] / box[axis, axis])
    if np.allclose(box, atoms.cell.array, rtol=0.0, atol=1e-12):
        return
    momenta = atoms.get_momenta() @ rotation.T
    atoms.positions = atoms.positions @ rotation.T
    atoms.cell = box
    atoms.set_momenta(momenta, apply_constraint=False)


class OpenMMIntegrator:
    """An OpenMM Context that moves `atoms`. nve: velocity Verlet; nvt: LangevinMiddleIntegrator (Zhang et al., J. Phys.
    Chem. A 123, 6056, 2019); npt: the same with OpenMM's isotropic MonteCarloBarostat, which scales each atom's place.
    """

    def __init__(self, atoms: Atoms, settings: MDSettings) -> None:
        import openmm

        self.atoms, self.masses = atoms, atoms.get_masses()[:, None]
        self.periodic = bool(atoms.pbc.all())
        self.forces = _CalculatorForces(atoms, self.periodic)
        self.integrator = _integrator(settings)
        platform = openmm.Platform.getPlatformByName("Reference")
        self.context = openmm.Context(self._system(settings), self.integrator, platform)
        self.context.setPositions(atoms.positions / ANGSTROM_PER_NM)
        self.context.setVelocities(atoms.get_velocities() / _VELOCITY)
        self._follow()  # the same numbers on both sides, however they round

    def _system(self, settings: MDSettings) -> Any:
        import openmm

        system = openmm.System()
        if self.periodic:
            system.setDefaultPeriodicBoxVectors(*(self.atoms.cell.array / ANGSTROM_PER_NM))
        fixed = atom_arrays(self.atoms)["fixed"]
        for mass, held in zip(self.masses.ravel().tolist(), fixed.tolist(), strict=True):
            system.addParticle(0.0 if held else mass)  # OpenMM does not move what has no mass
        force = openmm.PythonForce(self.forces)
        force.setUsesPeriodicBoundaryConditions(self.periodic)
        system.addForce(force)
        if settings.ensemble == "npt":
            barostat = openmm.MonteCarloBarostat(settings.pressure, settings.temperature, BAROSTAT_INTERVAL)
            barostat.setRandomNumberSeed(_seed(settings))
            system.addForce(barostat)
        return system

    def step(self) -> None:
        """One step. Raises what the calculator raised, and ValueError for what OpenMM refuses."""
        import openmm

        self.forces.failure = None
        try:
            self.integrator.step(1)
        except openmm.OpenMMException as error:
            raise (self.forces.failure or ValueError(str(error))) from error
        self._follow()

    def _follow(self) -> None:
        """Take positions, velocities and cell over into the atoms."""
        state = self.context.getState(positions=True, velocities=True)
        self.forces.place(state)
        velocities = state.getVelocities(asNumpy=True)._value
        self.atoms.set_momenta(velocities * _VELOCITY * self.masses, apply_constraint=False)

    def memory(self) -> dict[str, Any]:
        """Positions, velocities, cell and random numbers as OpenMM holds them, to the last bit."""
        return {"checkpoint": base64.b64encode(self.context.createCheckpoint()).decode()}

    def restore(self, memory: dict[str, Any]) -> None:
        """Go back to a `memory`. A checkpoint of another version of OpenMM is warned about and left aside."""
        import openmm

        if "checkpoint" not in memory:
            return
        try:
            self.context.loadCheckpoint(base64.b64decode(memory["checkpoint"]))
        except openmm.OpenMMException as error:
            warnings.warn(
                f"OpenMM does not take the run's checkpoint ({error}): going on from its positions and velocities, "
                "with other random numbers",
                stacklevel=2,
            )
        self._follow()


class _CalculatorForces:
    """state -> (energy, forces), in kJ/mol and kJ/mol/nm, from the calculator of the atoms."""

    def __init__(self, atoms: Atoms, periodic: bool) -> None:
        self.atoms, self.periodic = atoms, periodic
        self.failure: Exception | None = None

    def __call__(self, state: Any) -> tuple[float, FloatArray]:
        try:
            self.place(state)
            energy = float(self.atoms.get_potential_energy())
            forces = self.atoms.get_forces(apply_constraint=False)
        except Exception as error:  # OpenMM keeps the text alone
            self.failure = error
            raise
        return energy * KJ_PER_MOL_PER_EV, forces * (KJ_PER_MOL_PER_EV * ANGSTROM_PER_NM)

    def place(self, state: Any) -> None:
        """Positions and cell of an OpenMM State into the atoms."""
        self.atoms.positions = state.getPositions(asNumpy=True)._value * ANGSTROM_PER_NM
        if self.periodic:
            self.atoms.cell = state.getPeriodicBoxVectors(asNumpy=True)._value * ANGSTROM_PER_NM

    def __getstate__(self) -> Any:
        raise TypeError("the forces of a run live with it")  # OpenMM pickles what it can: copies of the model, here


def _integrator(settings: MDSettings) -> Any:
    import openmm

    timestep = settings.timestep / _FS_PER_PS
    if settings.ensemble == "nve":
        # Not VerletIntegrator: its velocities belong to half steps, and so would the kinetic energy of the log.
        integrator = openmm.CustomIntegrator(timestep)
        integrator.addUpdateContextState()
        integrator.addComputePerDof("v", "v + 0.5*dt*f/m")
        integrator.addComputePerDof("x", "x + dt*v")
        integrator.addComputePerDof("v", "v + 0.5*dt*f/m")
    else:
        integrator = openmm.LangevinMiddleIntegrator(settings.temperature, settings.friction, timestep)
    integrator.setRandomNumberSeed(_seed(settings))  # in nve nothing draws, but checkpoints hold the generator
    return integrator


def _seed(settings: MDSettings) -> int:
    """Between 1 and 2³¹ - 1: 0 means a random seed to OpenMM."""
    return 1 + settings.seed % (2**31 - 1)
