"""`FlowDynamics`: rollouts of a flow map as an ase.md object, with observers, trajectories and logs as in ase.

One step is O Ψ O: half of the Langevin friction and noise, the stride, the other half. Ψ preserves the volume of phase
space and is reversible in time, so a Metropolis test of the total energy makes the chain exact: it samples the
canonical ensemble of the potential that supplies the energies, however rough the flow map (generalised hybrid Monte
Carlo; Horowitz, Phys. Lett. B 268, 247, 1991). A stride that fails is taken back, with the momenta turned round.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError
from ase.md.md import MolecularDynamics
from numpy.typing import NDArray

from egnn_md.checkpoint import load
from egnn_md.chemistry.structures import structure_of
from egnn_md.chemistry.units import BOLTZMANN, FS_PER_TIME_UNIT
from egnn_md.dynamics.flow_strides import Strider, Thermostat
from egnn_md.dynamics.settings import SettingsError
from egnn_md.models.flow import FlowMap
from egnn_md.shown import html_table

FloatArray = NDArray[np.float64]


class FlowEnergy(Calculator):  # type: ignore[misc]
    """The energy that a flow map learned beside the flow: good to its card's error, and free along a rollout.

    It has no forces: rollouts are made without.
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy"]
    name = "flow"

    def __init__(self, strider: Strider) -> None:
        super().__init__()
        self.strider = strider

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True) -> Any:
        """ase's entry point. Raises PropertyNotImplementedError for all but the energy."""
        if name not in self.implemented_properties or atoms is None:
            raise PropertyNotImplementedError(f"a flow map gives no {name}: use EGNNCalculator for it")
        return self.strider.energy(atoms.positions)


class FlowDynamics(MolecularDynamics):  # type: ignore[misc]
    """Moves an isolated molecule by strides of a flow map, without forces.

    Parameters
    ----------
    atoms: one molecule, not periodic, without constraints; its masses count: deuterium is slower than hydrogen. Without
        a calculator it is given `FlowEnergy`, so that energies can be logged.
    model: name of a shipped flow map, path of a checkpoint, or a `FlowMap`.
    stride: fs of one step; any length, cut into sub-steps no longer than those of the training.
    temperature_K: of the Langevin thermostat; None: constant energy, as well as the flow map conserves it.
    friction: of the thermostat, 1/ps.
    rng: numpy's generator, or a seed for one; None: random.
    energy_filter: with a thermostat, take back strides that fail a Metropolis test of the total energy, with
        `atoms.calc` for the potential energy. The flow map's own costs nothing; with a calculator of yours the rollout
        samples that one's canonical ensemble, for one energy a stride. None: on where there is a thermostat.
    compile: compile the network: a minute or so at the first step, then about twice as fast.
    options: trajectory, logfile, loginterval, append_trajectory, as in ase.

    Strides themselves conserve momentum and angular momentum to round-off and are reversible in time. `accepted` counts
    the strides kept, out of `nsteps`. Raises SettingsError for options and structures that make no sense,
    UnsupportedElement, UnknownMolecule, CheckpointError.

    >>> from ase.build import molecule
    >>> atoms = molecule("CH3CH2OH")
    >>> dynamics = FlowDynamics(atoms, "ethanol-flow", stride=10.0, temperature_K=300, rng=0)
    >>> dynamics.run(5)  # 50 fs
    True
    >>> dynamics.nsteps
    5
    """

    def __init__(
        self,
        atoms: Atoms,
        model: str | Path | FlowMap = "ethanol-flow",
        stride: float = 10.0,
        *,
        temperature_K: float | None = None,
        friction: float = 5.0,
        rng: np.random.Generator | int | None = None,
        energy_filter: bool | None = None,
        compile: bool = False,
        **options: Any,
    ) -> None:
        check_options(atoms, temperature_K, friction)
        if energy_filter and temperature_K is None:
            raise SettingsError("energy_filter needs a thermostat: give temperature_K")
        masses = atoms.get_masses()
        flow = load_flow(model)
        flow.check_molecule(atoms.numbers, atoms.positions)
        self.strider = Strider(flow, atoms.numbers, masses, stride, compile=compile)
        self.rng = np.random.default_rng(rng)
        self.temperature = temperature_K
        self.thermostat = None
        if temperature_K is not None:
            self.thermostat = Thermostat(masses, temperature_K, friction, 0.5 * stride, self.rng)
        self.energy_filter = temperature_K is not None if energy_filter is None else energy_filter
        self.accepted = 0
        if atoms.calc is None or isinstance(atoms.calc, FlowEnergy):
            atoms.calc = FlowEnergy(self.strider)
        super().__init__(atoms, stride / FS_PER_TIME_UNIT, **options)

    def step(self) -> None:
        """One stride, between two halves of the thermostat."""
        arrays = self.atoms.arrays
        positions, momenta = arrays["positions"], arrays["momenta"]
        if self.thermostat is not None:
            momenta = self.thermostat(momenta)
        before = self._total_energy(momenta) if self.energy_filter else 0.0
        arrays["positions"], new_momenta = self.strider(positions, momenta)
        if not self.energy_filter or self._passes(self._total_energy(new_momenta) - before):
            self.accepted += 1
        else:
            arrays["positions"], new_momenta = positions, -momenta
        if self.thermostat is not None:
            new_momenta = self.thermostat(new_momenta)
        arrays["momenta"] = new_momenta

    def _repr_html_(self) -> str:
        """In a notebook: how far it is, and what it is like."""
        time = f"{self.nsteps} strides, {self.nsteps * self.dt * FS_PER_TIME_UNIT:g} fs"
        temperature = f"{self.atoms.get_temperature():.0f} K"
        return html_table([("done", time), ("kept", str(self.accepted)), ("temperature", temperature)])

    def _total_energy(self, momenta: FloatArray) -> float:
        kinetic = 0.5 * float((momenta**2 / self.masses).sum())
        return float(self.atoms.get_potential_energy()) + kinetic

    def _passes(self, change: float) -> bool:
        """Metropolis: with probability min(1, exp(-ΔE/kT)), 0 for NaN."""
        assert self.temperature is not None
        return change <= 0.0 or self.rng.random() < math.exp(-change / (BOLTZMANN * self.temperature))

    def _refresh_properties(self) -> None:
        """ase asks for forces here after every step; there are none."""


def load_flow(model: str | Path | FlowMap) -> FlowMap:
    """The flow map behind a name or a path. Raises CheckpointError, and SettingsError for another kind of model."""
    flow = model if isinstance(model, FlowMap) else load(model)
    if not isinstance(flow, FlowMap):
        raise SettingsError(f"{model} is a {type(flow).__name__}; this needs a flow map, such as ethanol-flow")
    return flow


def check_options(atoms: Atoms, temperature: float | None, friction: float) -> None:
    """Raise SettingsError for what a flow map cannot move, or a thermostat that makes no sense."""
    if atoms.pbc.any():
        raise SettingsError("flow maps move isolated molecules; this structure is periodic (atoms.pbc)")
    if atoms.constraints:
        raise SettingsError("flow maps do not know constraints: remove them (atoms.set_constraint())")
    if temperature is not None and not 0 < temperature < math.inf:
        raise SettingsError(f"temperature_K must be above 0 K, not {temperature}; None is constant energy")
    if not 0 < friction < math.inf:
        raise SettingsError(f"friction must be above 0 /ps, not {friction}")
    if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.get_momenta()).all()):
        raise SettingsError("positions or momenta are NaN or infinite")
    if unfit := structure_of(atoms).unfit:
        raise SettingsError(f"a flow map cannot move this structure: {unfit}")
