"""The report of a relaxation: the way down, energy and largest force, what moved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from egnn_md.report.charts import lines
from egnn_md.report.page import Page, Table
from egnn_md.report.runs import bond_table
from egnn_md.report.scene import Scene, atom_signals

if TYPE_CHECKING:
    from ase import Atoms

    from egnn_md.dynamics.relax import Relaxation

MOST_STEPS: Final = 256
MOVED: Final = 10


class Way:
    """Remembers the way of a relaxation, every second step less once it is long; `note` is its progress function."""

    def __init__(self, atoms: Atoms) -> None:
        self.atoms, self.every = atoms, 1
        self.steps: list[int] = []
        self.energies: list[float] = []
        self.forces: list[float] = []
        self.frames: list[Atoms] = []

    def note(self, step: int, energy: float, fmax: float) -> None:
        """One step: its number, energy in eV and largest force in eV/Å."""
        if step % self.every:
            return
        self.steps.append(step)
        self.energies.append(energy)
        self.forces.append(fmax)
        self.frames.append(self.atoms.copy())
        if len(self.steps) > MOST_STEPS:
            self.every *= 2
            kept = [k for k, done in enumerate(self.steps) if done % self.every == 0]
            for name in ("steps", "energies", "forces", "frames"):
                setattr(self, name, [getattr(self, name)[k] for k in kept])


def relaxation_page(way: Way, result: Relaxation, start: Atoms, structure: str, model: str) -> Page:
    """The page of a relaxation that went along `way` from `start`. `structure`, `model`: how the user called them."""
    atoms, steps = way.atoms, np.array(way.steps, dtype=np.float64)
    frames = [*way.frames, atoms.copy()]
    times = [*way.steps, result.steps]
    labels = [
        f"step {step}: {energy:.4f} eV, largest force {force:.4f} eV/Å"
        for step, energy, force in zip(times, [*way.energies, result.energy], [*way.forces, result.fmax], strict=True)
    ]
    try:
        signals = atom_signals(model, frames)
    except Exception:  # a model that has gone: the page lacks a colour
        signals = []
    gained = result.energy - result.energy_start
    tiles = [
        ("steps", str(result.steps)),
        ("largest force", f"{result.fmax:.4f} eV/Å"),
        ("energy", f"{result.energy:.4f} eV"),
        ("since the start", f"{gained:+.4f} eV"),
    ]
    if result.extrapolation is not None:
        tiles.append(("extrapolation", f"{result.extrapolation:.2f}"))
    far = result.extrapolation is not None and result.extrapolation > 2
    energies = {"energy": np.array(way.energies) - result.energy}
    return Page(
        title=f"{atoms.get_chemical_formula()}: {'relaxed' if result.converged else 'not converged'}",
        subtitle=f"{structure} with {model}; {len(atoms)} atoms",
        tiles=tiles,
        bad=["largest force"] * (not result.converged) + ["extrapolation"] * far,
        scene=Scene(frames, labels, [float(time) for time in times], signals),
        charts=[
            lines("Energy above the end", steps, energies, "step", "eV"),
            lines("Largest force, powers of ten", steps, {"force": np.log10(way.forces)}, "step", "log₁₀ of eV/Å"),
        ],
        tables=[bond_table([start, atoms]), _moved(start, atoms)],
    )


def _moved(start: Atoms, end: Atoms) -> Table:
    """The atoms that went farthest, after the two structures were laid onto each other."""
    moved = np.linalg.norm(_laid_on(start, end) - end.positions, axis=1)
    rows: list[list[Any]] = [[f"{end.symbols[k]}{k}", float(moved[k])] for k in np.argsort(-moved)[:MOVED]]
    note = f"Root mean square over all atoms {np.sqrt((moved**2).mean()):.3f} Å."
    return Table("What moved farthest", ["atom", "Å"], rows, note)


def _laid_on(start: Atoms, end: Atoms) -> Any:
    """(n_atoms, 3) Å: the start turned and moved onto the end (Kabsch); as it is where there is a cell."""
    if start.pbc.any() or len(start) < 2:
        return start.positions
    a, b = start.positions - start.positions.mean(0), end.positions - end.positions.mean(0)
    u, _, v = np.linalg.svd(a.T @ b)
    mirror = np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ v))])
    return a @ u @ mirror @ v + end.positions.mean(0)
