"""Labelled frames of one molecule: thermal, along torsions, stretched, inverted, with protons moved."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from _gfn2 import Dropped, Frame, Teacher, langevin
from _molecules import ForceField, Species, canonical, conformer, for_testing
from rdkit import Chem
from rdkit.Chem.rdMolTransforms import SetDihedralDeg

TEMPERATURES = (150.0, 300.0, 450.0, 600.0, 1000.0)


def thermal(species: Species, tag: str, rng: np.random.Generator) -> Iterator[Frame]:
    """Snapshots of force-field motion, each at its own temperature; the last may go on under GFN2-xTB.

    The force field brings the molecule round its torsions at a hundredth of the cost; its bonds are so near to
    GFN2-xTB's that the forces are thermal from the first step (0.85 eV/A rms at 300 K, as after 16 fs of GFN2-xTB).
    """
    molecule = conformer(species.smiles, rng)
    field = ForceField(molecule)
    teacher = Teacher(field.numbers, species.charge)
    positions = field.minimum()
    temperatures = rng.choice(TEMPERATURES, size=4, p=[0.1, 0.3, 0.25, 0.25, 0.1])
    for temperature in temperatures:
        positions, velocities = field.thermal(positions, temperature, 100, rng)
        yield _frame(teacher, positions, species, tag, temperature)
    if rng.random() < 0.15:
        yield from gfn2_motion(teacher, positions, velocities, temperature, {3, 6}, species, tag, rng)


def thermal_for_testing(species: Species, temperature: float, rng: np.random.Generator) -> Iterator[Frame]:
    """One frame after 7.5 fs of GFN2-xTB dynamics from force-field motion."""
    molecule = conformer(species.smiles, rng)
    field = ForceField(molecule)
    positions, velocities = field.thermal(field.minimum(), temperature, 200, rng)
    teacher = Teacher(field.numbers, species.charge)
    yield from gfn2_motion(teacher, positions, velocities, temperature, {5}, species, "thermal", rng, timestep=1.5)


def gfn2_motion(
    teacher: Teacher,
    positions: np.ndarray,
    velocities: np.ndarray,
    temperature: float,
    saved: set[int],
    species: Species,
    tag: str,
    rng: np.random.Generator,
    timestep: float = 1.0,
) -> Iterator[Frame]:
    """Frames of a Langevin run at the steps `saved`."""
    run = langevin(teacher, teacher.numbers, positions, velocities, temperature, max(saved), rng, timestep=timestep)
    for step, (points, _, label) in enumerate(run, 1):
        if step in saved:
            yield Frame(teacher.numbers, points, label, teacher.charge, tag, species.group, temperature, teacher.cell)


def _frame(teacher: Teacher, positions: np.ndarray, species: Species, tag: str, temperature: float) -> Frame:
    return Frame(teacher.numbers, positions, teacher(positions), teacher.charge, tag, species.group, temperature)


def torsion(species: Species, rng: np.random.Generator) -> Iterator[Frame]:
    """Cold to warm frames about two random angles of one bond, conjugated ones rather: over the barrier, too."""
    molecule = conformer(species.smiles, rng)
    atoms = _rotatable(molecule, rng)
    for _ in range(3):
        angle = float(rng.uniform(-180.0, 180.0))
        SetDihedralDeg(molecule.GetConformer(), *atoms, angle)
        field = ForceField(molecule, torsion=(*atoms, angle))
        field.minimum()
        temperature = float(rng.choice([20.0, 100.0, 300.0, 450.0]))
        positions, velocities = field.thermal(field.minimum(), temperature, 40, rng)
        teacher = Teacher(field.numbers, species.charge)
        yield _frame(teacher, positions, species, "torsion", temperature)
        if rng.random() < 0.15:
            yield from gfn2_motion(teacher, positions, velocities, temperature, {3, 6}, species, "torsion", rng)


def _rotatable(molecule: Chem.Mol, rng: np.random.Generator) -> tuple[int, int, int, int]:
    bonds, weights = [], []
    for bond in molecule.GetBonds():
        ends = (bond.GetBeginAtom(), bond.GetEndAtom())
        linear = any(end.GetHybridization() == Chem.HybridizationType.SP for end in ends)
        if bond.IsInRing() or linear or min(end.GetDegree() for end in ends) < 2:
            continue
        hetero = all(end.GetAtomicNum() != 6 for end in ends)
        methyl = any(end.GetAtomicNum() == 6 and end.GetTotalNumHs(includeNeighbors=True) == 3 for end in ends)
        double = bond.GetBondType() == Chem.BondType.DOUBLE
        bonds.append(ends)
        weights.append(0.3 if methyl or double else 4.0 if bond.GetIsConjugated() or hetero else 1.0)
    if not bonds:
        raise Dropped("no rotatable bond")
    begin, end = bonds[rng.choice(len(bonds), p=np.array(weights) / sum(weights))]
    outer = [
        int(rng.choice([n.GetIdx() for n in a.GetNeighbors() if n.GetIdx() != b.GetIdx()]))
        for a, b in ((begin, end), (end, begin))
    ]
    return outer[0], begin.GetIdx(), end.GetIdx(), outer[1]


def distorted(species: Species, rng: np.random.Generator) -> Iterator[Frame | Dropped]:
    """A thermal structure with a bond stretched or pressed, a centre inverted, a proton on its way, rattled."""
    molecule = conformer(species.smiles, rng)
    field = ForceField(molecule)
    positions, _ = field.thermal(field.minimum(), 300.0, 150, rng)
    teacher = Teacher(field.numbers, species.charge)
    bonded = partial(_stretched, molecule), partial(_stretched, molecule), partial(_inverted, molecule)
    for change in (*bonded, partial(proton_moved, field.numbers), _rattled, _scaled):
        changed = change(positions, rng)
        if changed is not None:
            yield attempt(teacher, changed, species.group, "distorted")


def scaled(smiles: str, rng: np.random.Generator) -> Iterator[Frame | Dropped]:
    """Eight structures of a small molecule: near its shape, and all of it shrunk or stretched."""
    group = canonical(Chem.MolFromSmiles(smiles))
    if for_testing(group):
        raise Dropped("for testing")
    molecule = conformer(smiles, rng)
    numbers = np.array([atom.GetAtomicNum() for atom in molecule.GetAtoms()])
    positions = molecule.GetConformer().GetPositions()
    teacher = Teacher(numbers, Chem.GetFormalCharge(molecule))
    for index in range(8):
        scale = rng.uniform(0.95, 1.05) if index < 5 else rng.uniform(0.65, 1.4)
        moved = scale * positions + rng.choice([0.02, 0.05]) * rng.normal(size=positions.shape)
        yield attempt(teacher, moved, group, "small")


def attempt(teacher: Teacher, positions: np.ndarray, group: str, tag: str) -> Frame | Dropped:
    """One frame, or why there is none: the job goes on."""
    try:
        label = teacher(positions := positions - positions.mean(0))
    except Dropped as reason:
        return reason
    return Frame(teacher.numbers, positions, label, teacher.charge, tag, group, 0.0, teacher.cell)


def _stretched(molecule: Chem.Mol, positions: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """One bond outside rings at 0.75 to 1.9 times its length; the smaller side moves."""
    bonds = [bond for bond in molecule.GetBonds() if not bond.IsInRing()]
    if not bonds:
        return None
    bond = bonds[rng.integers(len(bonds))]
    begin, end = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
    side, frontier = {end}, [end]
    while frontier:
        for neighbor in molecule.GetAtomWithIdx(frontier.pop()).GetNeighbors():
            if neighbor.GetIdx() not in side | {begin}:
                side.add(neighbor.GetIdx())
                frontier.append(neighbor.GetIdx())
    if 2 * len(side) > len(positions):
        side, begin, end = set(range(len(positions))) - side, end, begin
    factor = rng.uniform(0.75, 1.0) if rng.random() < 0.3 else rng.uniform(1.0, 1.9)
    moved = positions.copy()
    moved[sorted(side)] += (factor - 1.0) * (positions[end] - positions[begin])
    return moved


def _inverted(molecule: Chem.Mol, positions: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """An atom with three neighbours pushed through their plane, or out of it, up to half an angstrom."""
    centers = [atom for atom in molecule.GetAtoms() if atom.GetDegree() == 3]
    if not centers:
        return None
    weights = np.array([1.0 if center.GetAtomicNum() == 6 else 4.0 for center in centers])
    center = centers[rng.choice(len(centers), p=weights / weights.sum())]
    corners = positions[[neighbor.GetIdx() for neighbor in center.GetNeighbors()]]
    normal = np.cross(corners[1] - corners[0], corners[2] - corners[0])
    normal /= np.linalg.norm(normal)
    height = (positions[center.GetIdx()] - corners[0]) @ normal
    moved = positions.copy()
    moved[center.GetIdx()] += (rng.uniform(-0.5, 0.5) - height) * normal
    return moved


def proton_moved(numbers: np.ndarray, positions: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """A hydrogen of a hydrogen bond somewhere between donor and acceptor."""
    hetero = np.flatnonzero(np.isin(numbers, (7, 8, 9, 15, 16, 17)))
    ways = []
    for hydrogen in np.flatnonzero(numbers == 1):
        distances = np.linalg.norm(positions[hetero] - positions[hydrogen], axis=1)
        for donor in hetero[distances < 1.45]:
            acceptors = hetero[(distances > 1.5) & (distances < 2.9)]
            ways += [(hydrogen, donor, acceptor) for acceptor in acceptors]
    if not ways:
        return None
    hydrogen, donor, acceptor = ways[rng.integers(len(ways))]
    moved = positions.copy()
    straight = positions[donor] + rng.uniform(0.25, 0.75) * (positions[acceptor] - positions[donor])
    moved[hydrogen] = straight + rng.normal(scale=0.08, size=3)
    return moved


def _rattled(positions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(positions + rng.uniform(0.02, 0.09) * rng.normal(size=positions.shape))


def _scaled(positions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(positions * rng.uniform(0.93, 1.1))
