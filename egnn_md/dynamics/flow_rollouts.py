"""Rollouts of a flow map into a run folder: all that `md.py` says of runs, with strides in place of time steps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from egnn_md.dynamics import md
from egnn_md.dynamics.flow_strides import Strider
from egnn_md.dynamics.settings import MDSettings, SettingsError
from egnn_md.dynamics.simulation import Integrate, Simulation
from egnn_md.dynamics.state import RestartState
from egnn_md.models.flow import FlowMap

if TYPE_CHECKING:
    from ase import Atoms


def start(
    atoms: Atoms,
    model: FlowMap,
    settings: MDSettings,
    folder: Path,
    information: dict[str, Any] | None = None,
    overwrite: bool = False,
    *,
    energy_filter: bool = True,
    compile: bool = False,
) -> Simulation:
    """Begin a rollout of `atoms`; `settings.timestep` is the stride. `energy_filter` is for ensemble nvt.

    With a calculator, energies are the calculator's, otherwise the flow map's own. Errors as of `md.start`, and those
    of `FlowDynamics`.
    """
    if settings.ensemble == "npt":
        raise SettingsError("rollouts are of isolated molecules: ensemble nvt or nve")
    if atoms.calc is None:
        atoms = atoms.copy()
        atoms.calc = own_energy(atoms, model, settings)
    information = {**(information or {}), "energy_filter": energy_filter and settings.ensemble == "nvt"}
    return md.start(atoms, settings, folder, information, overwrite, integrate=_strides(model, information, compile))


def resume(
    state: RestartState,
    folder: Path,
    model: FlowMap,
    calculator: Any = None,
    steps: int | None = None,
    *,
    compile: bool = False,
) -> Simulation:
    """Go on with a rollout; `calculator` as at its start (None: it had none). Errors as of `md.resume`."""
    calculator = calculator or own_energy(state.atoms(), model, state.settings)
    return md.resume(state, folder, calculator, steps, integrate=_strides(model, state.information, compile))


def own_energy(atoms: Atoms, model: FlowMap, settings: MDSettings) -> Any:
    """The calculator of a rollout without one."""
    from egnn_md.dynamics.ase_flow import FlowEnergy

    return FlowEnergy(Strider(model, atoms.numbers, atoms.get_masses(), settings.timestep))


def _strides(model: FlowMap, information: dict[str, Any], compile: bool) -> Integrate:
    def integrate(atoms: Atoms, settings: MDSettings, rng: np.random.Generator) -> Any:
        from egnn_md.dynamics.ase_flow import FlowDynamics

        return FlowDynamics(
            atoms,
            model,
            settings.timestep,
            temperature_K=settings.temperature if settings.ensemble == "nvt" else None,
            friction=settings.friction,
            rng=rng,
            energy_filter=information["energy_filter"],
            compile=compile,
        )

    return integrate
