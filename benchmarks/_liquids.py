"""Chunks of liquid for timing: molecules on a cubic lattice at the density of the liquid, none too close."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ase import Atoms

FloatArray = NDArray[np.float64]
SPACING = {"H2O": 3.104, "CH3CH2OH": 4.59}
"""Å: the cube that a molecule fills in the liquid (0.997 and 0.789 g/cm³)."""


def lattice(name: str, shape: tuple[int, int, int]) -> Atoms:
    """A periodic box of shape[0] x shape[1] x shape[2] molecules of "H2O" or "CH3CH2OH", all turned alike."""
    from ase import Atoms
    from ase.build import molecule

    unit = molecule(name)
    body = _roomiest(unit.positions - unit.positions.mean(0), SPACING[name])
    sites = np.array(list(np.ndindex(shape))) * SPACING[name]
    positions = (sites[:, None] + body).reshape(-1, 3)
    box = np.array(shape) * SPACING[name]
    return Atoms(np.tile(unit.numbers, len(sites)), positions, cell=box, pbc=True)


def _roomiest(body: FloatArray, spacing: float, trials: int = 300) -> FloatArray:
    """`body` (n_atoms, 3) turned so that on a cubic lattice it stays farthest from its images; of random turns."""
    neighbors = np.array([shift for shift in np.ndindex(3, 3, 3) if shift != (1, 1, 1)]) - 1.0
    turns = np.linalg.qr(np.random.default_rng(0).normal(size=(trials, 3, 3)))[0]
    turned = np.einsum("ai,tij->taj", body, turns * np.linalg.det(turns)[:, None, None])
    images = turned[:, None] + spacing * neighbors[:, None]
    gaps = np.linalg.norm(turned[:, None, :, None] - images[:, :, None], axis=-1).min((1, 2, 3))
    roomiest: FloatArray = turned[gaps.argmax()]
    return roomiest


def droplet(name: str, n_molecules: int) -> Atoms:
    """The `n_molecules` of such a lattice that lie next to its middle, without periodicity."""
    side = max(3, round(n_molecules ** (1 / 3)) + 2)
    box = lattice(name, (side, side, side))
    size = len(box) // side**3
    middle = box.positions.reshape(-1, size, 3).mean(1)
    nearest = np.argsort(np.linalg.norm(middle - middle.mean(0), axis=1), kind="stable")[:n_molecules]
    drop = box[(nearest[:, None] * size + np.arange(size)).ravel()]
    drop.pbc = False
    drop.cell = np.zeros((3, 3))
    return drop
