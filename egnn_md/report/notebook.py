"""Looking at things in a notebook, or from a script: structures, files of structures, run folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from egnn_md.report.page import Page
from egnn_md.report.scene import Scene, atom_signals, thinned

if TYPE_CHECKING:
    from ase import Atoms
    from ase.md.md import MolecularDynamics


def view(what: Atoms | Sequence[Atoms] | MolecularDynamics | str | Path, model: Any = None) -> Page:
    """A page with a molecule that turns and plays: shown by itself in a notebook, `.write("look.html")` elsewhere.

    Parameters
    ----------
    what: ase's Atoms, several of them, ase's dynamics or optimizers (their atoms, as they are now), a file that ase
        reads, a molecule's name or a SMILES, or a folder that `egnn-md md`, `rollout` or `distill` left.
    model: a potential (its name, path or itself) by whose extrapolation signal the atoms can be coloured; run folders
        know theirs.

    Raises OSError or ValueError for a file that cannot be read.

    >>> from ase.build import molecule
    >>> import egnn_md
    >>> page = egnn_md.view(molecule("CH3CH2OH"))
    >>> page.write("ethanol.html").name
    'ethanol.html'
    """
    if isinstance(what, (str, Path)) and (Path(what) / "summary.json").is_file():
        return folder_page(Path(what))
    name, frames = _frames(what)
    chosen = [frames[k] for k in thinned(len(frames), max(map(len, frames), default=1))]
    signals = [] if model is None else atom_signals(model, chosen)
    moving = len({tuple(atoms.numbers) for atoms in chosen}) == 1 and len(chosen) > 1
    labels = [f"{k + 1} of {len(chosen)}: {atoms.get_chemical_formula()}" for k, atoms in enumerate(chosen)]
    times = [float(k) for k in range(len(chosen))] if moving else None
    return Page(name, f"{len(frames)} structure{'s' * (len(frames) != 1)}", scene=Scene(chosen, labels, times, signals))


def folder_page(folder: Path) -> Page:
    """The page of what a verb left in a folder. Raises OSError or ValueError if it cannot be read."""
    if (folder / "distill.json").is_file():
        from egnn_md.report.distillations import distillation_page

        return distillation_page(folder)
    if (folder / "trajectory.npz").is_file():
        from egnn_md.report.particles import rollout_page

        return rollout_page(folder)
    from egnn_md.report.runs import run_page

    return run_page(folder)


def _frames(what: Any) -> tuple[str, list[Atoms]]:
    """A name and the structures."""
    if isinstance(what, (str, Path)):
        if Path(what).exists():
            from ase.io import read

            return Path(what).name, list(read(what, index=":"))
        from egnn_md.dynamics.starting_structures import read_structure

        return str(what), [read_structure(str(what))]
    what = getattr(what, "atoms", what)
    frames = [what] if hasattr(what, "positions") else list(what)
    return frames[0].get_chemical_formula() if len(frames) == 1 else "Structures", frames
