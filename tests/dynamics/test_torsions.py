"""How bonds turn: dihedrals that ase agrees with, crossings and memory of made-up trajectories."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import molecule

from egnn_md.dynamics.torsions import crossings, dihedral_angles, memory, rotatable, turnings


def test_angles_are_ases() -> None:
    atoms = molecule("CH3CH2OH")
    frames = atoms.positions + np.random.default_rng(0).normal(0, 0.2, (20, *atoms.positions.shape))
    dihedral = rotatable(atoms.numbers, atoms.positions)[0]
    expected = []
    for frame in frames:
        atoms.positions = frame
        expected.append(atoms.get_dihedral(*dihedral))
    difference = dihedral_angles(frames, dihedral) - np.array(expected)
    assert np.abs((difference + 180.0) % 360.0 - 180.0).max() < 1e-8


def test_which_bonds_turn() -> None:
    """Not those of rings, of atoms with one neighbour, nor beside a triple bond."""
    names = {}
    for name in ("CH3CH2OH", "C6H6", "H2O2", "CH3CN", "isobutane", "H2O"):
        atoms = molecule(name)
        found = rotatable(atoms.numbers, atoms.positions)
        names[name] = ["".join(atoms.symbols[k] for k in dihedral) for dihedral in found]
    assert names["CH3CH2OH"][0] in ("CCOH", "HOCC")
    assert len(names["CH3CH2OH"]) == 2
    assert names["H2O2"] == ["HOOH"]
    assert len(names["isobutane"]) == 3
    assert names["C6H6"] == names["CH3CN"] == names["H2O"] == []


def test_trembling_is_no_crossing() -> None:
    rng = np.random.default_rng(0)
    for well in (0.0, 60.0, 180.0, -120.0):
        assert crossings(well + 30.0 * rng.uniform(-1, 1, 1000)) == 0
    steps = np.repeat([60.0, 180.0, 300.0, 60.0, 180.0], 200)
    assert crossings((steps + rng.normal(0, 8, 1000) + 180.0) % 360.0 - 180.0) == 4
    slowly = np.interp(np.arange(1000), [0, 300, 340, 700, 740, 1000], [60.0, 60.0, 180.0, 180.0, 300.0, 300.0])
    assert crossings(slowly + rng.normal(0, 12, 1000)) == 2
    planar = np.repeat([0.0, 180.0, 0.0], 300)
    assert crossings((planar + rng.normal(0, 8, 900) + 180.0) % 360.0 - 180.0) == 2


def test_memory_of_a_bond_that_hops() -> None:
    """Wells left at random with probability p a frame, for either of the other two: exp(-3pt/2)."""
    rng, p = np.random.default_rng(1), 0.02
    hops = rng.choice([0, 1, 2], p=[1 - p, p / 2, p / 2], size=200_000)
    angles = 120.0 * (np.cumsum(hops) % 3) - 120.0
    decay = 1.0 - 1.5 * p
    assert memory(angles) == pytest.approx(0.5 + decay / (1 - decay), rel=0.15)
    assert memory(rng.uniform(-180, 180, 20_000)) == pytest.approx(0.5, abs=0.1)
    assert np.isnan(memory(np.full(100, 60.0)))


def test_a_molecule_that_turns() -> None:
    from ase.build import molecule

    atoms, frames = molecule("H2O2"), []
    for angle in np.repeat([-120.0, 120.0, -120.0], 100):
        atoms.set_dihedral(*rotatable(atoms.numbers, atoms.positions)[0], angle, indices=[3])
        frames.append(atoms.positions.copy())
    (found,) = turnings(atoms.numbers, np.stack(frames))
    assert found.crossings == 2
    assert found.memory > 10
