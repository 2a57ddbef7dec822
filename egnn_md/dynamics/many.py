"""Relaxation and molecular dynamics of files of many structures: what a worker does with a chunk of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from egnn_md.chemistry.elements import UnsupportedElement
from egnn_md.chemistry.structures import NEUTRAL, charge_of, multiplicity_of, said_charge
from egnn_md.compiled.forces import use_compiled
from egnn_md.dynamics.batched import Batch, State, Thermostat, run
from egnn_md.dynamics.batched_neighbors import expected_edges
from egnn_md.dynamics.batched_relax import LARGEST, relax_batched
from egnn_md.dynamics.relax import no_chemistry
from egnn_md.dynamics.settings import MDSettings, SettingsError
from egnn_md.dynamics.starting_structures import StructureError, check_structure
from egnn_md.jobs.chunks import Answer, Emit
from egnn_md.jobs.source import as_atoms
from egnn_md.models.potential import Potential
from egnn_md.neighbors import GraphBuilder
from egnn_md.neighbors.lists import DEFAULT_SKIN
from egnn_md.predict import ChargeError, check_total

if TYPE_CHECKING:
    from ase import Atoms

ATOMS_AT_ONCE: Final = 500
"""Of a batch of molecular dynamics: more gain nothing on a CPU."""
EDGES_AT_ONCE: Final = 60_000
"""Of the same: dense crystals reach this first. It bounds the memory."""
Numbered = list[tuple[int, "Atoms"]]


@dataclass(frozen=True)
class ModelSpec:
    """A model by what another process needs to load it."""

    model: str
    """A shipped name or the path of a checkpoint."""
    device: str = "cpu"
    dtype: str = "float32"

    def load(self) -> Potential:
        """Its force calls are compiled ones, if there are some. Raises CheckpointError; ValueError for other kinds of
        model.
        """
        from egnn_md.checkpoint import load

        model = load(self.model, device=self.device, dtype=getattr(torch, self.dtype))
        if not isinstance(model, Potential):
            raise StructureError(f"{self.model} is a {type(model).__name__}; this needs a potential")
        use_compiled(model, "auto")
        return model


def refusal(model: Potential, atoms: Atoms) -> str:
    """Why the model cannot take a structure; empty if it can."""
    try:
        check_structure(atoms, "it")
        model.check_elements(torch.from_numpy(np.asarray(atoms.numbers, np.int64)))
    except (StructureError, UnsupportedElement) as error:
        return str(error)
    charge, multiplicity = charge_of(atoms), multiplicity_of(atoms)
    if math.isnan(charge) or (abs(charge) > NEUTRAL and not model.config.long_range):
        return "it is charged; the model knows neutral structures only"
    if multiplicity != 1:
        return f"its multiplicity is {multiplicity:g}; the model knows closed shells (1) only"
    said, counted = said_charge(atoms), model.config.charge_response
    doubtful = said is not None or (counted and int(atoms.numbers.sum()) % 2)
    return _contradiction(model, atoms, said) if doubtful and model.config.long_range else ""


def _contradiction(model: Potential, atoms: Atoms, charge: float | None) -> str:
    """Why the structure is not one of this charge (e), or of any; empty if it is."""
    builder = GraphBuilder(model.config.cutoff, 0.0, device=model.device)
    shown = model(builder(atoms.positions, atoms.numbers.astype(np.int64), atoms.cell.array, atoms.pbc)).shown_charge
    assert shown is not None
    try:
        check_total(charge, float(shown), atoms.numbers, counted=model.config.charge_response)
    except ChargeError as error:
        return str(error)
    return ""


@dataclass(frozen=True)
class RelaxWorker:
    """See `egnn_md.jobs.chunks.Worker`. Structures that do not converge are kept, their status says so."""

    spec: ModelSpec
    fmax: float
    """eV/Å."""
    steps: int
    at_once: int | None = None
    """Structures in a force call; None: see `relax_batched`."""
    columns = ("steps", "energy_start", "energy", "fmax", "extrapolation")
    read = staticmethod(as_atoms)

    def open(self) -> Callable[[Numbered, Emit], None]:
        """Load the model."""
        model = self.spec.load()

        def work(structures: Numbered, emit: Emit) -> None:
            sound = _sound(model, structures, emit, LARGEST)
            all_of_them = [atoms for _, atoms in sound]
            for place, end in relax_batched(model, all_of_them, self.fmax, self.steps, self.at_once):
                index, atoms = sound[place]
                row: dict[str, Any] = {name: getattr(end, name) for name in self.columns}
                if not np.isfinite(end.fmax):
                    emit(index, Answer.failed("the potential gave forces that are not finite", **row))
                    continue
                if reason := no_chemistry(end.extrapolation):
                    emit(index, Answer.failed(reason, **row))
                    continue
                relaxed = _with_results(atoms, end.positions, end.energy, None)
                emit(index, Answer((relaxed,), row | {"status": "ok" if end.converged else "not converged"}))

        return work


@dataclass(frozen=True)
class MDWorker:
    """See `egnn_md.jobs.chunks.Worker`. A structure that blows up keeps its frames until then."""

    spec: ModelSpec
    settings: MDSettings
    at_once: int | None = None
    """Structures in a force call; None: as `ATOMS_AT_ONCE` and `EDGES_AT_ONCE` allow."""
    columns = ("steps", "energy_start", "energy", "mean_temperature_K", "drift_meV_per_atom_per_ps", "extrapolation")
    read = staticmethod(as_atoms)

    def open(self) -> Callable[[Numbered, Emit], None]:
        """Load the model."""
        model = self.spec.load()

        def work(structures: Numbered, emit: Emit) -> None:
            sound = _sound(model, structures, emit)
            while sound:
                taken = self.at_once or _fitting([atoms for _, atoms in sound], model.config.cutoff)
                _simulate(model, sound[:taken], self.settings, emit)
                sound = sound[taken:]

        return work


def _fitting(structures: Sequence[Atoms], cutoff: float) -> int:
    """How many of them, from the first, are one batch: at least one."""
    n_atoms = np.cumsum([len(atoms) for atoms in structures])
    n_edges = np.cumsum([expected_edges(atoms, cutoff + DEFAULT_SKIN) for atoms in structures])
    return max(1, int(((n_atoms <= ATOMS_AT_ONCE) & (n_edges <= EDGES_AT_ONCE)).sum()))


def _sound(model: Potential, structures: Numbered, emit: Emit, largest: int | None = None) -> Numbered:
    """Those that the model can take; the others are answered."""
    sound = []
    for index, atoms in structures:
        reason = refusal(model, atoms)
        if not reason and largest is not None and len(atoms) > largest:
            reason = f"it has more than {largest} atoms: relax it in a file of its own"
        if reason:
            emit(index, Answer.failed(reason))
        else:
            sound.append((index, atoms))
    return sound


def _with_results(atoms: Atoms, positions: Any, energy: float, forces: Any) -> Atoms:
    from ase.calculators.singlepoint import SinglePointCalculator

    copy = atoms.copy()
    copy.positions = positions
    copy.calc = SinglePointCalculator(copy, energy=energy, forces=forces)
    return copy


def _simulate(model: Potential, sound: Numbered, settings: MDSettings, emit: Emit) -> None:
    """One batch from start to end; the noise of a batch depends on its first structure's place and the seed."""
    batch = Batch(model, [atoms for _, atoms in sound])
    generator = torch.Generator().manual_seed((settings.seed + 1_000_003 * sound[0][0]) % 2**63)
    target = torch.full((len(sound),), float(settings.temperature), device=model.device)
    state = _with_velocities(batch.start(target, generator), [atoms for _, atoms in sound])
    record = _Record(batch, [atoms for _, atoms in sound], settings)
    record(0, state)
    thermostat = None if settings.ensemble == "nve" else Thermostat(target, settings.friction, generator)
    run(
        batch,
        state,
        settings.steps,
        settings.timestep,
        thermostat=thermostat,
        every=settings.interval,
        observe=record,
    )
    for k, (index, _) in enumerate(sound):
        emit(index, record.answer(k, settings.ensemble == "nve"))


def _with_velocities(state: State, structures: list[Atoms]) -> State:
    """Structures that have velocities keep them."""
    velocities, first = state.velocities.clone(), 0
    for atoms in structures:
        rows = slice(first, first := first + len(atoms))
        if atoms.has("momenta") and atoms.get_momenta().any():
            velocities[rows] = torch.as_tensor(atoms.get_velocities()).to(velocities)
    return replace(state, velocities=velocities)


class _Record:
    """Frames and means of every structure, until it blows up."""

    def __init__(self, batch: Batch, structures: list[Atoms], settings: MDSettings) -> None:
        self.batch, self.structures, self.settings = batch, structures, settings
        self.frames: list[list[Atoms]] = [[] for _ in structures]
        self.rows: list[list[tuple[float, ...]]] = [[] for _ in structures]
        self.alive = np.ones(len(structures), bool)

    def __call__(self, step: int, state: State) -> None:
        time = step * self.settings.timestep * 1e-3  # ps
        kinetic, temperature = self.batch.kinetic_energy(state).cpu(), self.batch.temperature(state, fixed=3).cpu()
        energy, extrapolation = state.energy.cpu(), state.extrapolation.cpu()
        ends = self.batch.n_atoms.cumsum(0).tolist()
        places = state.positions.cpu().numpy(), state.forces.cpu().numpy(), state.velocities.cpu().numpy()
        for k in np.flatnonzero(self.alive):
            rows = slice(ends[k] - len(self.structures[k]), ends[k])
            if blown_up(float(energy[k]), float(kinetic[k]), float(temperature[k]), self.settings.temperature):
                self.alive[k] = False
                continue
            frame = _with_results(self.structures[k], places[0][rows], float(energy[k]), places[1][rows])
            frame.set_velocities(places[2][rows])
            frame.info |= {"step": step, "time_ps": round(time, 9)}
            self.frames[k].append(frame)
            values = (time, float(energy[k]), float(energy[k] + kinetic[k]), float(temperature[k]))
            self.rows[k].append((*values, float(extrapolation[k])))

    def answer(self, k: int, conserved: bool) -> Answer:
        if not self.frames[k]:
            return Answer.failed("the energy of the first frame is not finite")
        times, energies, total, temperatures, extrapolation = np.array(self.rows[k]).T
        slope = float(np.polyfit(times, total, 1)[0]) if conserved and len(times) > 2 else float("nan")
        row: dict[str, Any] = {
            "steps": self.frames[k][-1].info["step"],
            "energy_start": energies[0],
            "energy": energies[-1],
            "mean_temperature_K": temperatures.mean(),
            "drift_meV_per_atom_per_ps": 1e3 * slope / len(self.structures[k]),
            "extrapolation": extrapolation.max(),
            "status": "ok" if self.alive[k] else "blew up",
        }
        return Answer(self.frames[k], {name: _plain(value) for name, value in row.items()})


def _plain(value: Any) -> Any:
    return float(value) if isinstance(value, np.floating) else value


def blown_up(energy: float, kinetic: float, temperature: float, target: float) -> bool:
    """Whether one structure of a batch has left physics: the limits of `guard.Guard`, for a whole structure."""
    from egnn_md.dynamics.guard import HOTTEST_FACTOR, HOTTEST_K

    return not np.isfinite(energy + kinetic) or temperature > max(HOTTEST_K, HOTTEST_FACTOR * target)


def check_settings(settings: MDSettings) -> None:
    """Raise SettingsError for what a batch cannot do."""
    if settings.ensemble == "npt" or settings.engine != "ase":
        raise SettingsError("many structures at once run in nve or nvt with --engine ase; npt and openmm take one")
