"""Rollouts of files of many molecules: what a worker does with a chunk of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from egnn_md.chemistry.elements import UnsupportedElement
from egnn_md.dynamics.flow_many import ManyStrides
from egnn_md.dynamics.settings import MDSettings, SettingsError
from egnn_md.dynamics.starting_structures import StructureError, check_structure
from egnn_md.jobs.chunks import Answer, Emit
from egnn_md.jobs.source import as_atoms
from egnn_md.models.flow import FlowMap, UnknownMolecule

if TYPE_CHECKING:
    from ase import Atoms

ATOMS_AT_ONCE: Final = 1000
Numbered = list[tuple[int, "Atoms"]]


@dataclass(frozen=True)
class RolloutWorker:
    """See `egnn_md.jobs.chunks.Worker`. `settings.timestep` is the stride; the flow map's own energy is tested."""

    model: str
    """A shipped flow map's name or the path of a checkpoint."""
    settings: MDSettings
    energy_filter: bool = True
    columns = ("steps", "accepted", "energy_start", "energy", "mean_temperature_K")
    read = staticmethod(as_atoms)

    def open(self) -> Callable[[Numbered, Emit], None]:
        """Load the model. Raises CheckpointError, SettingsError."""
        from egnn_md.dynamics.ase_flow import load_flow

        model = load_flow(self.model)

        def work(structures: Numbered, emit: Emit) -> None:
            sound = []
            for index, atoms in structures:
                if reason := refusal(model, atoms):
                    emit(index, Answer.failed(reason))
                else:
                    sound.append((index, atoms))
            while sound:
                ends = np.cumsum([len(atoms) for _, atoms in sound])
                taken = max(1, int((ends <= ATOMS_AT_ONCE).sum()))
                _roll_out(model, sound[:taken], self, emit)
                sound = sound[taken:]

        return work


def refusal(model: FlowMap, atoms: Atoms) -> str:
    """Why the flow map cannot move a structure; empty if it can."""
    from egnn_md.dynamics.ase_flow import check_options

    try:
        check_structure(atoms, "it")
        check_options(atoms, None, 1.0)
        model.check_molecule(np.asarray(atoms.numbers, np.int64), atoms.positions)
    except (StructureError, SettingsError, UnsupportedElement, UnknownMolecule) as error:
        return str(error)
    return "" if len(atoms) > 1 else "it has one atom: nothing flows"


def _roll_out(model: FlowMap, sound: Numbered, worker: RolloutWorker, emit: Emit) -> None:
    """One batch from start to end; its noise depends on its first molecule's place and the seed."""
    settings, kept = worker.settings, worker.energy_filter and worker.settings.ensemble == "nvt"
    many = ManyStrides(
        [atoms for _, atoms in sound],
        model,
        settings.timestep,
        temperature_K=settings.temperature if settings.ensemble == "nvt" else None,
        friction=settings.friction,
        seed=(settings.seed + 1_000_003 * sound[0][0]) % 2**63,
        energy_filter=kept,
    )
    frames: list[list[Atoms]] = [[] for _ in sound]
    energies, temperatures = [], []
    for step in range(0, settings.steps + 1, settings.interval):
        many.run(step - many.n_steps)
        energies.append(many.energy.numpy())
        for mine, frame, energy in zip(frames, many.frames(), energies[-1], strict=True):
            mine.append(_told(frame, float(energy), step, settings.timestep))
        temperatures.append([mine[-1].get_temperature() for mine in frames])
    for k, (index, _) in enumerate(sound):
        row: dict[str, Any] = {
            "steps": many.n_steps,
            "accepted": int(many.accepted[k]) / max(1, many.n_steps),
            "energy_start": float(energies[0][k]),
            "energy": float(energies[-1][k]),
            "mean_temperature_K": float(np.mean([values[k] for values in temperatures])),
            "status": "ok" if np.isfinite(frames[k][-1].positions).all() else "blew up",
        }
        emit(index, Answer(frames[k], row))


def _told(frame: Atoms, energy: float, step: int, stride: float) -> Atoms:
    from ase.calculators.singlepoint import SinglePointCalculator

    frame.calc = SinglePointCalculator(frame, energy=energy)
    frame.info |= {"step": step, "time_ps": round(step * stride * 1e-3, 9)}
    return frame
