"""The kinds of structures that `label_organics.py` labels: each is an endless or finite row of jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from _clusters import bound, clusters, collisions, contacts, droplets, interactions, lone_ions, metals
from _contacts import POLYATOMIC, SMALL
from _gfn2 import Dropped, Frame, Job, Teacher
from _molecules import canonical, for_testing, peptide, protonation_state
from _motion import attempt, distorted, scaled, thermal, thermal_for_testing, torsion
from _sources import Ragged, Source
from rdkit import Chem

# Of the structures that others made, the share that is labelled.
CONFORMATIONS = {"monomer": 1.0, "ion_pair": 1.0, "amino_acid_ligand": 0.3, "solvated_amino_acid": 0.1, "water30": 0.2}


def molecules(source: Source, rng: np.random.Generator, chunk: int) -> Iterator[Job]:
    while True:
        yield partial(thermal, source.draw(rng, 16 if rng.random() < 0.7 else 99), "thermal", rng)


def states(source: Source, rng: np.random.Generator, chunk: int) -> Iterator[Job]:
    def job() -> Iterator[Frame]:
        yield from thermal(protonation_state(source.draw(rng, 16), rng), "state", rng)

    while True:
        yield job


def small(source: Source, rng: np.random.Generator, chunk: int) -> Iterator[Job]:
    """Molecules and ions of one to a few atoms: all of them, again and again, shrunk, stretched and rattled."""
    while True:
        yield from (partial(scaled, smiles, rng) for smiles in (*SMALL, *POLYATOMIC))


def peptides(source: Source, rng: np.random.Generator, chunk: int) -> Iterator[Job]:
    def job() -> Iterator[Frame]:
        yield from thermal(peptide(rng), "peptide", rng)

    while True:
        yield job


def torsions(source: Source, rng: np.random.Generator, chunk: int) -> Iterator[Job]:
    while True:
        yield partial(torsion, source.draw(rng, 16), rng)


def rare(source: Source, rng: np.random.Generator, chunk: int) -> Iterator[Job]:
    """Molecules with groups that few have: in motion, and turned about their bonds."""
    while True:
        piece = source.draw_rare(rng)
        yield partial(thermal, piece, "rare", rng)
        yield partial(torsion, piece, rng)


def distortions(source: Source, rng: np.random.Generator, chunk: int) -> Iterator[Job]:
    while True:
        yield partial(distorted, source.draw(rng, 16), rng)


def tests(source: Source, rng: np.random.Generator, chunk: int) -> Iterator[Job]:
    """Unseen molecules of every size alike, 300-600 K; their file is never trained on."""
    for index in rng.permutation(len(source.test)):
        yield partial(thermal_for_testing, source.test[index], float(rng.choice([300.0, 450.0, 600.0])), rng)


def conformations(
    source: Source, rng: np.random.Generator, chunk: int, tags: tuple[str, ...], size: int
) -> Iterator[Job]:
    """The unlabelled structures that others made, monomers of the test side left out."""
    arrays = source.conformations.arrays
    order = np.random.default_rng(0)
    draws, chosen = order.random(len(source.conformations)), []
    for index in order.permutation(len(source.conformations)):
        tag, name = str(arrays["tag"][index]), str(arrays["name"][index])
        if tag not in tags or draws[index] > CONFORMATIONS[tag]:
            continue
        molecule = Chem.MolFromSmiles(name) if tag == "monomer" else None
        if tag != "monomer" or (molecule is not None and not for_testing(canonical(molecule))):
            chosen.append(int(index))
    for index in chosen[chunk * size : (chunk + 1) * size]:
        yield partial(_conformation, source.conformations, index)


def _conformation(conformations: Ragged, index: int) -> Iterator[Frame | Dropped]:
    numbers, positions = conformations.structure(index)
    arrays = conformations.arrays
    teacher = Teacher(numbers, int(arrays["charge"][index]))
    yield attempt(teacher, positions, str(arrays["name"][index]), str(arrays["tag"][index]))


def relabelled(source: Source, rng: np.random.Generator, chunk: int, testing: bool, size: int) -> Iterator[Job]:
    """xtb_frames again, now with charges. gdb % 20 == 0 is for testing, == 7 for neither."""
    gdb = source.frames.arrays["gdb"]
    side = np.flatnonzero((gdb % 20 == 0) if testing else ~np.isin(gdb % 20, (0, 7)))
    for index in np.random.default_rng(1).permutation(side)[chunk * size : (chunk + 1) * size]:
        yield partial(_relabelled, source.frames, int(index))


def _relabelled(frames: Ragged, index: int) -> Iterator[Frame | Dropped]:
    numbers, positions = frames.structure(index)
    arrays = frames.arrays
    yield attempt(Teacher(numbers, 0), positions, f"gdb{arrays['gdb'][index]}", str(arrays["tag"][index]))


# jobs, and frames of a chunk: it should take a minute or two
KINDS: dict[str, tuple[Callable[..., Iterator[Job]], int]] = {
    "ions": (lone_ions, 100),
    "contacts": (contacts, 800),
    "interactions": (interactions, 1000),
    "ionic": (partial(interactions, ionic=0.7), 1000),
    "small": (small, 1000),
    "bound": (bound, 1000),
    "clusters": (clusters, 300),
    "metals": (metals, 300),
    "droplets": (droplets, 200),
    "thermal": (molecules, 500),
    "torsions": (torsions, 500),
    "rare": (rare, 500),
    "distortions": (distortions, 300),
    "states": (states, 300),
    "peptides": (peptides, 150),
    "collisions": (collisions, 250),
    "monomers": (partial(conformations, tags=("monomer", "ion_pair"), size=2000), 2000),
    "ligands": (partial(conformations, tags=("amino_acid_ligand",), size=40), 40),
    "solvated": (partial(conformations, tags=("solvated_amino_acid", "water30"), size=20), 20),
    "relabelled": (partial(relabelled, testing=False, size=1000), 1000),
    "test": (tests, 100),
    "testframes": (partial(relabelled, testing=True, size=300), 300),
}
