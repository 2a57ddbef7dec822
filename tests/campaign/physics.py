"""Numbers: random cells against supercells counted by hand, and what must be refused."""

from __future__ import annotations

from typing import Any

import numpy as np
from harness import Fault, Tally, explore


def _brute_force(positions: Any, cell: Any, pbc: Any, cutoff: float) -> list[tuple[int, int, float]]:
    """All pairs, from every image that can matter, without a neighbour list."""
    heights = 1.0 / np.maximum(np.linalg.norm(np.linalg.pinv(cell), axis=0), 1e-9)
    span = positions @ np.linalg.pinv(cell)
    spread = span.max(0) - span.min(0) if len(span) else np.zeros(3)
    counts = [int(np.ceil(cutoff / h + s)) if p else 0 for h, p, s in zip(heights, pbc, spread, strict=True)]
    shifts = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in counts), indexing="ij"), -1).reshape(-1, 3)
    found = []
    for shift in shifts:
        vectors = positions[None] - positions[:, None] + shift @ cell
        distances = np.linalg.norm(vectors, axis=-1)
        near = distances < cutoff
        if not shift.any():
            np.fill_diagonal(near, False)
        found += [(int(i), int(j), float(distances[i, j])) for i, j in np.argwhere(near)]
    return sorted(found)


def cells(seconds: float, seed: int) -> Tally:
    """Neighbour lists of random cells, skewed and small ones included; energies of cells against their supercells."""
    import torch

    from egnn_md.models.potential import Potential, PotentialConfig
    from egnn_md.neighbors import GraphBuilder, neighbor_list

    torch.manual_seed(0)
    size = {"hidden_dim": 8, "message_dim": 8, "n_vectors": 2, "n_layers": 2, "n_radial": 4, "cutoff": 3.5}
    model = Potential(PotentialConfig((1, 6, 8), (0.0, 0.0, 0.0), **size)).double().eval()

    def energy(numbers: Any, positions: Any, cell: Any) -> tuple[float, Any]:
        graph = GraphBuilder(3.5, 0.5)(positions, numbers, cell, np.array([True] * 3))
        prediction = model(graph)
        return float(prediction.energy), prediction.forces.numpy()

    def case(number: int) -> Any:
        rng = np.random.default_rng((seed, number))

        def lists() -> None:
            n = int(rng.integers(1, 9))
            cell = np.diag(rng.uniform(1.5, 9.0, 3)) + rng.normal(scale=1.0, size=(3, 3))
            pbc = rng.random(3) < 0.8
            positions = rng.normal(scale=4.0, size=(n, 3))
            try:
                index, shift = neighbor_list(positions, cell, pbc, 3.5)
            except ValueError as error:
                if "volume" in str(error):
                    return
                raise
            vectors = positions[index[1]] - positions[index[0]] + (0.0 if shift is None else shift @ cell)
            distances = np.linalg.norm(vectors, axis=1)
            ours = sorted(zip(index[0].tolist(), index[1].tolist(), distances.tolist(), strict=True))
            true = _brute_force(positions, np.where(pbc[:, None], cell, 0.0), pbc, 3.5)
            if [pair[:2] for pair in ours] != [pair[:2] for pair in true] or not np.allclose(
                [pair[2] for pair in ours], [pair[2] for pair in true], atol=1e-9
            ):
                raise Fault(f"{len(ours)} pairs in place of {len(true)}")

        def supercells() -> None:
            n = int(rng.integers(1, 5))
            cell = np.diag(rng.uniform(3.0, 6.0, 3)) + rng.normal(scale=0.5, size=(3, 3))
            grid = (np.stack(np.meshgrid(*[np.arange(2)] * 3, indexing="ij"), -1).reshape(-1, 3) + 0.5) / 2
            positions = (grid[rng.permutation(8)[:n]] + rng.normal(scale=0.03, size=(n, 3))) @ cell
            numbers = rng.choice([1, 6, 8], n)
            one, forces = energy(numbers, positions, cell)
            repeats = rng.integers(1, 3, 3)
            shifts = np.stack(np.meshgrid(*map(np.arange, repeats), indexing="ij"), -1).reshape(-1, 3)
            repeated = np.concatenate([positions + s @ cell for s in shifts])
            many, all_forces = energy(np.tile(numbers, len(shifts)), repeated, cell * repeats[:, None])
            scale = max(1.0, float(np.abs(forces).max()))
            if abs(many / len(shifts) - one) > 1e-8 * scale or np.abs(all_forces[:n] - forces).max() > 1e-8 * scale:
                raise Fault(f"a supercell of {repeats.tolist()} differs by {many / len(shifts) - one:.1e} eV")

        def extremes() -> None:
            cell = np.diag(10.0 ** rng.uniform(-6, 9, 3))
            pbc = rng.random(3) < 0.7
            positions = rng.normal(size=(int(rng.integers(1, 200)), 3)) * 10.0 ** rng.uniform(-1, 8)
            try:
                neighbor_list(positions, cell, pbc, 5.0)
            except ValueError as error:
                if type(error) is not ValueError:  # numpy's own is one too
                    raise

        act = (lists, supercells, extremes)[number % 3]
        return f"cells seed {seed} number {number} ({act.__name__})", act

    tally = Tally("cells")
    explore(tally, case, seconds)
    tally.show()
    return tally


OUTSIDE = (
    "a wrong charge",
    "an ion for a neutral model",
    "NaN",
    "infinity",
    "coincident",
    "flat",
    "Pu",
    "nothing",
)


def refusals(seconds: float, seed: int) -> Tally:
    """Molecules and ions that are right, and what no potential may answer: by all the ways of asking one."""
    from ase import Atoms
    from ase.build import molecule

    from egnn_md.calculators import EGNNCalculator
    from egnn_md.predict import Geometry, Predictor

    ions, neutral = Predictor("egnn-xtb-1"), Predictor("organic-xtb")
    ammonia, tetrahedron = molecule("NH3"), molecule("CH4")
    ammonium = Atoms("NH4", tetrahedron.positions * 1.03 / 1.09)
    hydroxide = Atoms("OH", [[0, 0, 0], [0, 0, 0.97]])
    known = [(molecule("H2O"), 0), (ammonia, 0), (ammonium, 1), (hydroxide, -1), (molecule("CH3CH2OH"), 0)]

    def case(number: int) -> Any:
        rng = np.random.default_rng((seed, number))
        which, wrong = int(rng.integers(len(known))), (*OUTSIDE, "")[number % (len(OUTSIDE) + 1)]
        atoms, charge = known[which][0].copy(), float(known[which][1])
        atoms.rattle(0.02, rng=rng)
        predictor = ions
        if wrong == "a wrong charge":
            charge += float(rng.choice([-2, -1, 1, 2]))
        elif wrong == "an ion for a neutral model":
            predictor, charge = neutral, float(rng.choice([-1, 1]))
        elif wrong in ("NaN", "infinity"):
            atoms.positions[int(rng.integers(len(atoms))), int(rng.integers(3))] = np.nan if wrong == "NaN" else np.inf
        elif wrong == "coincident":
            atoms.positions[0] = atoms.positions[1]
        elif wrong == "flat":
            atoms.cell, atoms.pbc = [[5, 0, 0], [5, 0, 0], [0, 0, 5]], True
        elif wrong == "Pu":
            atoms.numbers[0] = 94
        elif wrong == "nothing":
            atoms = atoms[:0]
        geometry = atoms.positions, np.asarray(atoms.numbers, np.int64), np.asarray(atoms.cell), atoms.pbc, charge

        def call() -> None:
            predictor(*geometry)

        def many() -> None:
            water = known[0][0]
            predictor.many([Geometry(water.positions, np.asarray(water.numbers, np.int64)), Geometry(*geometry)])

        def ase() -> None:
            atoms.info["charge"] = charge
            atoms.calc = EGNNCalculator(predictor.models[0])
            atoms.get_potential_energy()

        ask = (call, many, ase)[int(rng.integers(3))]

        def act() -> None:
            try:
                ask()
            except ValueError as error:
                if not wrong:
                    raise Fault(f"what is right was refused: {error}") from error
                return
            if wrong:
                raise Fault(f"{wrong}: answered")

        return f"refusals seed {seed} number {number} ({wrong or 'right'}, {ask.__name__})", act

    tally = Tally("refusals")
    explore(tally, case, seconds)
    tally.show()
    return tally
