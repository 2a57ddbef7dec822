"""Jobs of several molecules: contacts, clusters about ions, droplets, collisions, lone ions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
from _contacts import (
    MONATOMIC,
    Fragment,
    dock,
    fragment,
    fragments,
    join,
    monatomic,
    rotation,
    small_fragments,
    stack,
    surround,
)
from _gfn2 import Dropped, Frame, Job, Teacher, langevin, thermal_velocities
from _molecules import Species, for_testing
from _motion import attempt, proton_moved
from _sources import Source
from ase.data import atomic_masses

RINGS = (
    *(
        "c1ccccc1",
        "c1cnccn1",
        "O=c1cc[nH]c(=O)[nH]1",
        "c1ccc2[nH]ccc2c1",
        "c1ccncc1",
        "c1cc[nH]c1",
        "c1ccoc1",
        "c1ccsc1",
    ),
    *("Nc1ccccc1", "Oc1ccccc1", "Cc1ccccc1", "Nc1cc[nH]c(=O)n1", "Nc1ncnc2[nH]cnc12", "Fc1ccccc1", "Clc1ccccc1"),
    *("c1ncncn1", "c1c[nH]cn1", "O=[N+]([O-])c1ccccc1", "c1ccc2ccccc2c1", "N#Cc1ccccc1", "Brc1ccccc1", "O=Cc1ccccc1"),
)
"""What stacks."""


class Pool:
    """Thermal pieces for one chunk's clusters: molecules, a third of them ions, water, bare ions."""

    def __init__(self, source: Source, rng: np.random.Generator, count: int = 60) -> None:
        self.rng = rng
        self.ions = [monatomic(symbol) for symbol in MONATOMIC]
        self.water = fragments(source.water[0], 10, rng)
        self.neutral: list[Fragment] = []
        self.charged: list[Fragment] = []
        charged = [piece for piece in source.small if piece.charge]
        for index in range(count):
            pieces = source.ions if index % 3 == 0 else charged if index % 9 == 1 else source.small
            try:
                made = fragments(pieces[rng.integers(len(pieces))], 3, rng)
            except Dropped:
                continue
            (self.charged if made[0].charge else self.neutral).extend(made)

    def alone(self) -> Iterator[Job]:
        """Each piece by itself, in the geometry in which it stands in clusters: their difference is what binds."""
        for piece in (*self.water, *self.neutral, *self.charged):
            yield partial(_alone, piece)

    def draw(self, ionic: float) -> Fragment:
        draw = self.rng.random()
        if draw < ionic:
            row = self.ions if self.rng.random() < 0.5 else self.charged
        else:
            row = self.water if self.rng.random() < 0.2 else self.neutral
        return row[self.rng.integers(len(row))]


def contacts(source: Source, rng: np.random.Generator, chunk: int) -> Iterator[Job]:
    pool = Pool(source, rng)
    yield from pool.alone()
    while True:
        yield partial(_contact, pool, rng)


def _contact(pool: Pool, rng: np.random.Generator) -> Iterator[Frame | Dropped]:
    """A dimer, or a trimer, at four distances of one approach from 0.7 to 2 contacts."""
    first, second = pool.draw(0.35), pool.draw(0.35)
    if abs(first.charge + second.charge) > 2:
        raise Dropped("too highly charged")
    if rng.random() < 0.15:
        first = dock(first, pool.draw(0.2), rng).at(rng.uniform(0.85, 1.2))
    approach = dock(first, second, rng)
    teacher: Teacher | None = None
    ranges = ((0.7, 0.9), (0.85, 1.05), (1.0, 1.4), (1.3, 2.0))
    # from further off a bare dication takes an electron: no closed shell
    dication = 2 in (first.charge, second.charge) and min(first.charge, second.charge) >= 0
    for low, high in ranges[:2] if dication else ranges:
        pair = approach.at(rng.uniform(low, high))
        teacher = teacher or Teacher(pair.numbers, pair.charge)
        yield attempt(teacher, pair.positions, pair.group, "contact")
    if rng.random() < 0.5:
        near = approach.at(rng.uniform(0.75, 1.0))
        moved = proton_moved(near.numbers, near.positions, rng)
        if moved is not None:
            yield attempt(teacher, moved, near.group, "proton")


def interactions(source: Source, rng: np.random.Generator, chunk: int, ionic: float = 0.3) -> Iterator[Job]:
    pool = Pool(source, rng, 60)
    rings = [Species(smiles, smiles, 6, 0, frozenset((1, 6))) for smiles in RINGS if not for_testing(smiles)]
    for index in rng.permutation(len(rings))[:8]:
        pool.neutral.extend(fragments(rings[index], 4, rng))
    while True:
        yield partial(_interaction, pool, rng, ionic)


def _interaction(pool: Pool, rng: np.random.Generator, ionic: float) -> Iterator[Frame | Dropped]:
    """A dimer, stacked or with an atom of each facing the other, at three distances, and each of its pieces by itself:
    their difference is what binds.
    """
    first, second = pool.draw(ionic), pool.draw(ionic)
    if abs(first.charge + second.charge) > 1:
        raise Dropped("too highly charged")
    flat = min(len(first.numbers), len(second.numbers)) > 5
    approach = stack(first, second, rng) if flat and rng.random() < 0.6 else dock(first, second, rng)
    teacher: Teacher | None = None
    for low, high in ((0.8, 0.95), (0.93, 1.08), (1.05, 1.6)):
        pair = approach.at(rng.uniform(low, high))
        teacher = teacher or Teacher(pair.numbers, pair.charge)
        yield attempt(teacher, pair.positions, pair.group, "interaction")
    for piece in (first, second):
        yield from _alone(piece)


def _alone(piece: Fragment) -> Iterator[Frame | Dropped]:
    yield attempt(Teacher(piece.numbers, piece.charge), piece.positions, piece.group, "alone")


def bound(source: Source, rng: np.random.Generator, chunk: int) -> Iterator[Job]:
    pieces = small_fragments(rng)
    ions = [piece for piece in pieces if abs(piece.charge) == 1]
    while True:
        yield partial(_bound, ions, pieces, rng)


def _bound(ions: list[Fragment], pieces: list[Fragment], rng: np.random.Generator) -> Iterator[Frame | Dropped]:
    """An ion and a small molecule, or an ion of the other sign, drawn together as far as they like, protons shared
    among them; then each by itself as it stands there.
    """
    first = ions[rng.integers(len(ions))]
    others = [piece for piece in pieces if piece.charge == 0 or piece.charge * first.charge < 0]
    second = others[rng.integers(len(others))]
    if abs(first.charge + second.charge) > 1:
        raise Dropped("too highly charged")
    pair = dock(first, second, rng).at(rng.uniform(0.85, 1.1))
    teacher = Teacher(pair.numbers, pair.charge)
    teacher.strict = False
    positions = pair.positions
    for _ in range(int(rng.integers(0, 24))):
        positions = positions + np.clip(0.03 * teacher(positions).forces, -0.08, 0.08)
    teacher.strict = True
    temperature = float(rng.choice([100.0, 300.0]))
    velocities = thermal_velocities(pair.numbers, temperature, rng)
    run = langevin(teacher, pair.numbers, positions, velocities, temperature, 9, rng, friction=0.1)
    for step, (points, _, label) in enumerate(run, 1):
        if step % 3 == 0:
            yield Frame(pair.numbers, points - points.mean(0), label, pair.charge, "bound", pair.group, temperature)
    n = len(first.numbers)
    for piece, part in ((first, points[:n]), (second, points[n:])):
        yield from _alone(replace(piece, positions=part))


def clusters(source: Source, rng: np.random.Generator, chunk: int) -> Iterator[Job]:
    pool = Pool(source, rng)
    yield from pool.alone()
    while True:
        yield partial(_cluster, pool, rng)


def _cluster(pool: Pool, rng: np.random.Generator) -> Iterator[Frame | Dropped]:
    """A bare or other ion among ligands, or molecules about each other: as put together, and after some motion."""
    center = pool.draw(0.7)
    count = int(rng.integers(2, 7)) if abs(center.charge) == 2 else int(rng.integers(1, 5))
    counter = [i for i in (*pool.ions, *pool.charged) if i.charge * center.charge < 0 and len(i.numbers) < 12]
    ligands = [pool.water[rng.integers(10)] if rng.random() < 0.6 else pool.draw(0.0) for _ in range(count)]
    if counter and rng.random() < 0.3:
        ligands[0] = counter[rng.integers(len(counter))]
    cluster = surround(center, [ligand for ligand in ligands if len(ligand.numbers) < 14], rng)
    yield from _settled(cluster, "cluster", rng)


def _settled(cluster: Fragment, tag: str, rng: np.random.Generator) -> Iterator[Frame | Dropped]:
    teacher = Teacher(cluster.numbers, cluster.charge)
    positions = cluster.positions - cluster.positions.mean(0)
    yield attempt(teacher, positions, cluster.group, tag)
    temperature = float(rng.choice([200.0, 300.0, 500.0]))
    velocities = thermal_velocities(cluster.numbers, temperature, rng)
    run = langevin(teacher, cluster.numbers, positions, velocities, temperature, 8, rng, friction=0.1, timestep=1.5)
    for step, (points, _, label) in enumerate(run, 1):
        if step in (3, 5, 8):
            yield Frame(cluster.numbers, points, label, cluster.charge, tag, cluster.group, temperature)


def metals(source: Source, rng: np.random.Generator, chunk: int) -> Iterator[Job]:
    pool = Pool(source, rng)
    yield from pool.alone()
    while True:
        yield partial(_metal, pool, rng)


def _metal(pool: Pool, rng: np.random.Generator) -> Iterator[Frame | Dropped]:
    """A metal ion with three to six ligands, up to two of them anions, drawn in before the first label."""
    center = monatomic(str(rng.choice(["Mg", "Ca", "Zn", "Li", "Na", "K"], p=[0.25, 0.2, 0.25, 0.1, 0.1, 0.1])))
    anions = [ion for ion in (*pool.ions, *pool.charged) if ion.charge == -1 and len(ion.numbers) < 12]
    neutral = [piece for piece in pool.neutral if len(piece.numbers) < 12]
    ligands = [anions[rng.integers(len(anions))] for _ in range(rng.integers(0, 3))]
    for _ in range(int(rng.integers(3, 7)) - len(ligands)):
        row = pool.water if rng.random() < 0.7 else neutral
        ligands.append(row[rng.integers(len(row))])
    cluster = surround(center, ligands, rng)
    teacher = Teacher(cluster.numbers, cluster.charge)
    teacher.strict = False
    positions = cluster.positions
    for _ in range(8):
        positions = positions + np.clip(0.02 * teacher(positions).forces, -0.08, 0.08)
    yield from _settled(replace(cluster, positions=positions), "metal", rng)


def droplets(source: Source, rng: np.random.Generator, chunk: int) -> Iterator[Job]:
    """Water cut out of larger clusters, with or without an ion or a molecule in its middle."""
    pool = Pool(source, rng, 30)
    water = np.flatnonzero(np.isin(source.conformations.arrays["tag"], ("water30", "water60")))
    while True:
        numbers, positions = source.conformations.structure(int(rng.choice(water)))
        oxygen, hydrogen = positions[numbers == 8], positions[numbers == 1]
        own = np.linalg.norm(oxygen[:, None] - hydrogen, axis=-1).argsort(axis=1)[:, :2]
        yield partial(_droplet, np.concatenate([oxygen[:, None], hydrogen[own]], axis=1), pool, rng)


def _droplet(waters: np.ndarray, pool: Pool, rng: np.random.Generator) -> Iterator[Frame | Dropped]:
    oxygen = waters[:, 0]
    center = oxygen[rng.integers(len(waters))]
    order = np.argsort(np.linalg.norm(oxygen - center, axis=1))
    count = int(rng.integers(3, 13))
    around = [fragment(np.array([8, 1, 1]), waters[index] - center, 0, "O") for index in order[: count + 4]]
    if rng.random() < 0.4:
        cluster, *rest = around[:count]
    else:
        guest, rest = pool.draw(0.6), around
        turned = (guest.positions - guest.positions.mean(0)) @ rotation(rng).T
        cluster = fragment(guest.numbers, turned, guest.charge, guest.group) if len(turned) > 1 else guest
    for water in rest:
        distances = np.linalg.norm(cluster.positions[:, None] - water.positions, axis=-1)
        if len(cluster.numbers) < 40 and (distances > 0.72 * (cluster.radii[:, None] + water.radii)).all():
            cluster = join(cluster, water, water.positions)
    yield from _settled(cluster, "droplet", rng)


def collisions(source: Source, rng: np.random.Generator, chunk: int) -> Iterator[Job]:
    pool = Pool(source, rng)
    while True:
        yield partial(_collision, pool, rng)


def _collision(pool: Pool, rng: np.random.Generator) -> Iterator[Frame | Dropped]:
    """Two small molecules thrown at each other with 0.5-8 eV: reactions, near and done."""
    first, second = pool.draw(0.15), pool.draw(0.15)
    if len(first.numbers) + len(second.numbers) > 20 or abs(first.charge + second.charge) > 1:
        raise Dropped("too large or too highly charged")
    approach = dock(first, second, rng)
    pair = approach.at(1.0)
    masses = atomic_masses[pair.numbers]
    side = np.arange(len(masses)) < len(first.numbers)
    heavy, light = masses[side].sum(), masses[~side].sum()
    speed = np.sqrt(2 * rng.uniform(0.5, 8.0) * (heavy + light) / (heavy * light))
    velocities = thermal_velocities(pair.numbers, 500.0, rng)
    velocities += np.where(side, light, -heavy)[:, None] / (heavy + light) * speed * approach.line
    teacher = Teacher(pair.numbers, pair.charge)
    run = langevin(teacher, pair.numbers, pair.positions, velocities, 500.0, 36, rng, friction=0.0)
    for step, (points, _, label) in enumerate(run, 1):
        if step % 4 == 0:
            yield Frame(pair.numbers, points - points.mean(0), label, pair.charge, "collision", pair.group, 500.0)


def lone_ions(source: Source, rng: np.random.Generator, chunk: int) -> Iterator[Job]:
    for symbol in MONATOMIC if chunk == 0 else ():
        ion = monatomic(symbol)
        yield lambda ion=ion: [attempt(Teacher(ion.numbers, ion.charge), ion.positions, ion.group, "ion")]
