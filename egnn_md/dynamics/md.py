"""Molecular dynamics of an ase structure with any ase calculator, into a run folder that survives a kill.

    trajectory.*   a frame every `interval` steps
    log.csv        energies and temperature of the same steps
    last.extxyz    the last good structure, with velocities
    state.npz      positions, momenta, cell, step, random numbers: resume goes on from here
    summary.json   what happened, in numbers
    plot.png       energies and temperature

The state is saved at the start, at every stop and, while running, every `state_seconds` (10 s unless told). A resumed
run cuts trajectory and log back to the state's step and goes on; with the same calculator it gives what the
uninterrupted run would have given, but for the ensemble npt in OpenMM, whose barostat forgets how far it had adapted.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from egnn_md.dynamics.guard import refusals
from egnn_md.dynamics.integrators import check_ensemble, degrees_of_freedom, make_integrator, set_velocities
from egnn_md.dynamics.observers import check_log
from egnn_md.dynamics.openmm_engine import orient
from egnn_md.dynamics.settings import MDSettings, SettingsError
from egnn_md.dynamics.simulation import Integrate, Simulation
from egnn_md.dynamics.starting_structures import StructureError
from egnn_md.dynamics.state import RestartState, RunError, atom_arrays, build_atoms, prepare_folder, take_over
from egnn_md.dynamics.trajectory import Trajectory
from egnn_md.storage import releasing_on_error

if TYPE_CHECKING:
    from ase import Atoms


def start(
    atoms: Atoms,
    settings: MDSettings,
    folder: Path,
    information: dict[str, Any] | None = None,
    overwrite: bool = False,
    topology: Any = None,
    integrate: Integrate = make_integrator,
) -> Simulation:
    """Begin a run of `atoms`, whose calculator is set, in an empty or new folder.

    `information` (JSON values: the model's name, …) goes into the summary. `topology`: mdtraj's, of these atoms, for
    trajectory formats that keep residues and bonds. `integrate` makes the integrator. Raises SettingsError if ensemble
    and structure do not go together, StructureError if the calculator refuses the structure, RunError for the folder,
    StorageError if another process has it.
    """
    check_ensemble(atoms, settings)
    energy = _first_energy(atoms)
    info = {
        name: float(atoms.info[name]) for name in ("charge", "spin", "multiplicity") if atoms.info.get(name) is not None
    }
    atoms = _with_calculator(build_atoms(atom_arrays(atoms), info), atoms.calc)
    if settings.engine == "openmm":
        orient(atoms)
    rng = np.random.Generator(np.random.PCG64(settings.seed))
    set_velocities(atoms, settings.temperature, rng)
    progress = {
        "status": "running",
        "reference_energy": energy,
        "degrees_of_freedom": degrees_of_freedom(atoms, settings.ensemble),
        "wall_s": 0.0,
        "max_extrapolation": None,
    }
    trajectory = Trajectory(folder, settings.format)
    begun = (atoms, settings, folder, information or {}, rng, progress, trajectory)
    with releasing_on_error(prepare_folder(folder, overwrite)) as hold:
        trajectory.begin(atoms, topology)
        simulation = Simulation(*begun, hold, integrate=integrate)
        simulation.record()
        simulation.save_state()
    return simulation


def resume(
    state: RestartState,
    folder: Path,
    calculator: Any,
    steps: int | None = None,
    integrate: Integrate = make_integrator,
) -> Simulation:
    """Go on with the run whose state was read from `folder`; `steps` is a new total.

    Raises RunError if it blew up, or its files are not what the state says, and StorageError if another process has the
    folder.
    """
    if state.progress["status"] == "blew_up":
        raise RunError(
            f"the run in {folder} blew up after step {state.step}: going on would blow up again. "
            f"Start anew from {folder / 'last.extxyz'}, with a smaller timestep or from a relaxed structure"
        )
    settings = state.settings if steps is None else replace(state.settings, steps=steps)
    if settings.steps < state.step:
        raise SettingsError(f"steps {settings.steps}: the run in {folder} is at step {state.step} already")
    trajectory = Trajectory(folder, settings.format)
    with releasing_on_error(take_over(folder, state)) as hold:
        trajectory.reopen()
        for name, mark in state.marks.items():
            mark.restore(folder / name)
        check_log(folder / "log.csv", state.step, settings.interval, settings.timestep)
    rng = np.random.Generator(np.random.PCG64())
    rng.bit_generator.state = state.rng
    atoms = _with_calculator(state.atoms(), calculator)
    progress = {**state.progress, "status": "running"}
    begun = (atoms, settings, folder, state.information, rng, progress, trajectory, hold, state.step, state.memory)
    with releasing_on_error(hold):
        return Simulation(*begun, integrate=integrate)


def _first_energy(atoms: Atoms) -> float:
    try:
        energy = float(atoms.get_potential_energy())
    except refusals() as error:
        raise StructureError(str(error)) from error
    if not math.isfinite(energy):
        raise StructureError("the calculator gives no finite energy for this structure")
    return energy


def _with_calculator(atoms: Atoms, calculator: Any) -> Atoms:
    atoms.calc = calculator
    return atoms
