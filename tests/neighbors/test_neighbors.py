"""Neighbour lists against brute force: any cell, and after any history of moves."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from egnn_md.neighbors import GraphBuilder, VerletList, neighbor_list
from egnn_md.neighbors.lists import ALL_PAIRS_ATOMS, complete_cell

CUTOFF = 3.0
TRICLINIC = np.array([[5.0, 0.0, 0.0], [1.5, 4.5, 0.0], [-1.0, 0.8, 4.0]])
SMALL = np.array([[2.1, 0.0, 0.0], [0.4, 1.9, 0.0], [0.3, -0.5, 2.3]])
PBCS = [np.array(pbc) for pbc in itertools.product([False, True], repeat=3)]
OPEN = np.array([False, False, False])
FULL = np.array([True, True, True])


def brute_force(positions, cell, pbc, cutoff):
    """{(i, j, S)} of all pairs closer than cutoff: every shift that could matter, one by one."""
    box = complete_cell(cell, pbc) if pbc.any() else np.eye(3)
    heights = 1.0 / np.linalg.norm(np.linalg.inv(box), axis=0)
    spread = np.ptp(positions @ np.linalg.inv(box), axis=0)
    reach = np.where(pbc, np.ceil(cutoff / heights + spread).astype(int), 0)
    found = set()
    for shift in itertools.product(*(range(-n, n + 1) for n in reach)):
        vectors = positions[None] - positions[:, None] + np.array(shift) @ box
        i, j = np.nonzero(np.linalg.norm(vectors, axis=-1) < cutoff)
        found |= {(a, b, shift) for a, b in zip(i.tolist(), j.tolist(), strict=True) if a != b or any(shift)}
    return found


def close_edges(pairs, shifts, positions, cell, cutoff):
    """{(i, j, S)} of the pairs closer than cutoff, from both ends; fails if one stands twice."""
    i, j = np.asarray(pairs)
    shifts = np.zeros((len(i), 3)) if shifts is None else np.asarray(shifts)
    i, j, shifts = np.concatenate([i, j]), np.concatenate([j, i]), np.concatenate([shifts, -shifts])
    assert np.array_equal(shifts, np.rint(shifts))
    rows = list(zip(i.tolist(), j.tolist(), map(tuple, shifts.astype(int).tolist()), strict=True))
    assert len(set(rows)) == len(rows)
    distances = np.linalg.norm(positions[j] - positions[i] + shifts @ cell, axis=1)
    return {row for row, d in zip(rows, distances, strict=True) if d < cutoff}


def scattered(n, cell, rng, closest=1.0):
    """n positions in the cell, none closer than `closest` to another or its image."""
    images = np.array(list(itertools.product([-1, 0, 1], repeat=3))) @ cell
    points = np.empty((0, 3))
    while len(points) < n:
        trial = rng.random(3) @ cell
        if (np.linalg.norm(points[:, None] + images - trial, axis=-1) > closest).all():
            points = np.vstack([points, trial])
    return points


@pytest.mark.parametrize("pbc", PBCS, ids=str)
@pytest.mark.parametrize("cell", [TRICLINIC, SMALL], ids=["triclinic", "smaller than the cutoff"])
def test_list_is_brute_force(cell, pbc):
    rng = np.random.default_rng(0)
    positions = rng.random((20, 3)) @ (2 * cell) - 3.0  # outside the cell too
    edges = neighbor_list(positions, cell, pbc, CUTOFF)
    assert edges[0].shape[1] > 0
    assert close_edges(*edges, positions, cell, CUTOFF) == brute_force(positions, cell, pbc, CUTOFF)
    assert 2 * edges[0].shape[1] == len(brute_force(positions, cell, pbc, CUTOFF))
    assert (edges[1] is None) == (not pbc.any())


def test_large_isolated_structure_is_brute_force():
    positions = np.random.default_rng(1).random((100, 3)) * 9.0
    edges = neighbor_list(positions, np.zeros((3, 3)), OPEN, CUTOFF)
    assert close_edges(*edges, positions, np.eye(3), CUTOFF) == brute_force(positions, np.eye(3), OPEN, CUTOFF)


MOVES = st.sampled_from(
    ["jitter", "drift", "kick", "wrap", "translate", "strain", "shear", "cell only", "swap", "pbc", "grow", "shrink"]
)


def apply(move, positions, cell, pbc, rng):
    """One thing that an engine or a user may do between two calls."""
    n = len(positions)
    if move == "jitter":
        positions = positions + rng.normal(0, 0.02, (n, 3))
    elif move == "drift":
        positions = positions + rng.normal(0, 0.12, (n, 3))
    elif move == "kick":
        positions = positions.copy()
        positions[rng.integers(n)] += rng.normal(0, 1.0, 3)
    elif move == "wrap":
        positions = positions + (rng.integers(-2, 3, (n, 3)) * pbc * (rng.random((n, 1)) < 0.5)) @ cell
    elif move == "translate":
        positions = positions + rng.normal(0, 5.0, 3)
    elif move in ("strain", "shear"):
        strain = rng.normal(0, 0.01, (3, 3)) if move == "shear" else np.diag(rng.normal(0, 0.02, 3))
        positions, cell = positions @ (np.eye(3) + strain), cell @ (np.eye(3) + strain)
    elif move == "cell only":
        cell = cell @ (np.eye(3) + rng.normal(0, 0.02, (3, 3)))
    elif move == "swap":
        positions = positions[rng.permutation(n)]
    elif move == "pbc":
        pbc = PBCS[rng.integers(8)]
    elif move == "grow":
        positions = np.vstack([positions, rng.random(3) @ cell + 0.01])
    elif n > 2:
        positions = np.delete(positions, rng.integers(n), axis=0)
    return positions, cell, pbc


@settings(max_examples=60, deadline=None)
@given(
    cell=st.sampled_from([TRICLINIC, SMALL, 3 * SMALL]),
    pbc=st.sampled_from(PBCS),
    n_atoms=st.sampled_from([2, 5, ALL_PAIRS_ATOMS + 4]),
    moves=st.lists(MOVES, min_size=1, max_size=12),
    skin=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 1000),
)
def test_list_stays_complete_after_any_moves(cell, pbc, n_atoms, moves, skin, seed):
    rng = np.random.default_rng(seed)
    positions = rng.random((n_atoms, 3)) @ cell
    verlet = VerletList(CUTOFF, skin, closest=0.0)
    for move in ["start", *moves]:
        positions, cell, pbc = apply(move, positions, cell, pbc, rng) if move != "start" else (positions, cell, pbc)
        edges = verlet.update(positions, cell, pbc)
        assert close_edges(*edges, positions, cell, CUTOFF) == brute_force(positions, cell, pbc, CUTOFF)


@settings(max_examples=60, deadline=None)
@given(pbc=st.sampled_from(PBCS), n_atoms=st.sampled_from([3, 24]), seed=st.integers(0, 1000))
def test_close_pairs_are_refused_exactly_when_they_are(pbc, n_atoms, seed):
    rng = np.random.default_rng(seed)
    cell = 2 * TRICLINIC
    positions = scattered(n_atoms, cell, rng)
    verlet = VerletList(CUTOFF, 0.5)
    target = rng.normal(0, 0.05, 3)
    for fraction in np.linspace(0.0, 1.0, 9):  # atom 1 walks towards atom 0
        moved = positions.copy()
        moved[1] += fraction * (positions[0] + target - positions[1])
        if brute_force(moved, cell, pbc, 0.1):
            with pytest.raises(ValueError, match=r"atoms \d+ and \d+ .* closer than 0.1 Å"):
                verlet.update(moved, cell, pbc)
        else:
            verlet.update(moved, cell, pbc)


def test_close_pair_is_named_and_the_list_recovers():
    positions = np.array([[0.0, 0, 0], [2.0, 0, 0], [4.0, 0, 0], [4.05, 0, 0]])
    verlet = VerletList(CUTOFF)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"atoms 2 and 3 .* 0.050 Å"):
            verlet.update(positions, np.zeros((3, 3)), OPEN)
    positions[3, 0] = 5.0
    assert verlet.update(positions, np.zeros((3, 3)), OPEN)[0].shape == (2, 6)
    with pytest.raises(ValueError, match="atom 0 and its own periodic image"):
        verlet.update(positions[:1], np.diag([0.05, 5.0, 5.0]), FULL)


def test_same_tensors_while_the_list_holds():
    rng = np.random.default_rng(2)
    cell = 2 * TRICLINIC
    start = scattered(24, cell, rng)
    verlet = VerletList(CUTOFF, 0.8)
    edges, shifts = verlet.update(start, cell, FULL)
    for _ in range(20):  # |u| stays below 0.4 Å
        steps = rng.normal(size=start.shape)
        steps *= 0.39 * rng.random((24, 1)) / np.linalg.norm(steps, axis=1, keepdims=True)
        again = verlet.update(start + steps, cell, FULL)
        assert again[0] is edges
        assert again[1] is shifts
    assert verlet.n_builds == 1
    far = start.copy()
    far[3] += [0.5, 0.0, 0.0]
    assert verlet.update(far, cell, FULL)[0] is not edges
    assert verlet.n_builds == 2


@pytest.mark.parametrize("fraction", [0.98, 1.02, 1.5, 2.0])
@pytest.mark.parametrize("kind", ["displaced", "compressed", "sheared", "both"])
def test_list_holds_up_to_the_skin_and_not_beyond(fraction, kind):
    """Dense enough that a skin used up, by displacement or by strain, costs pairs at once."""
    rng = np.random.default_rng(8)
    skin, cell = 0.4, 12.0 * np.eye(3) + 0.8
    positions = rng.random((400, 3)) @ cell
    verlet = VerletList(CUTOFF, skin, closest=0.0)
    pairs = verlet.update(positions, cell, FULL)[0]
    by_moving = {"displaced": 1.0, "compressed": 0.0, "sheared": 0.0, "both": 0.5}[kind]
    length = 0.5 * by_moving * fraction * skin
    limit = (CUTOFF + by_moving * skin) / (CUTOFF + skin)  # σ (cutoff + skin) - cutoff = 2|u| at fraction 1
    stretch = 1.0 - (1.0 - limit) * fraction
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0] if kind == "sheared" else np.eye(3)
    deformation = turn @ np.diag([stretch, 1.0, 1.0]) @ turn.T
    directions = rng.normal(size=positions.shape)
    u = length * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    moved, strained = positions @ deformation + u, cell @ deformation
    edges = verlet.update(moved, strained, FULL)
    expected = neighbor_list(moved, strained, FULL, CUTOFF)
    assert close_edges(*edges, moved, strained, CUTOFF) == close_edges(*expected, moved, strained, CUTOFF)
    assert (edges[0] is pairs) == (fraction < 1)


def test_positions_array_may_be_reused():
    """Engines change one array in place: the list must remember, not refer."""
    rng = np.random.default_rng(3)
    positions, cell = rng.random((24, 3)) @ TRICLINIC, TRICLINIC.copy()
    verlet = VerletList(CUTOFF, 0.5, closest=0.0)
    verlet.update(positions, cell, FULL)
    for _ in range(2):
        positions += rng.normal(0, 2.0, positions.shape)
        edges = verlet.update(positions, cell, FULL)
        assert close_edges(*edges, positions, cell, CUTOFF) == brute_force(positions, cell, FULL, CUTOFF)
        cell *= 1.3
        edges = verlet.update(positions, cell, FULL)
        assert close_edges(*edges, positions, cell, CUTOFF) == brute_force(positions, cell, FULL, CUTOFF)


def test_wrapping_translation_and_small_strain_need_no_rebuild():
    rng = np.random.default_rng(4)
    cell = 2 * TRICLINIC
    positions = scattered(24, cell, rng)
    verlet = VerletList(CUTOFF, 0.8)
    pairs = verlet.update(positions, cell, FULL)[0]
    for _ in range(5):
        positions = positions + rng.integers(-1, 2, (24, 3)) @ cell  # wrapped
        positions = positions + rng.normal(0, 3.0, 3)  # carried along
        strain = np.eye(3) + rng.normal(0, 0.004, (3, 3))  # a barostat
        positions, cell = positions @ strain, cell @ strain
        edges = verlet.update(positions, cell, FULL)
        assert edges[0] is pairs
        assert close_edges(*edges, positions, cell, CUTOFF) == brute_force(positions, cell, FULL, CUTOFF)
    assert verlet.n_builds == 1


def test_small_molecules_keep_every_pair_for_ever():
    rng = np.random.default_rng(5)
    n = ALL_PAIRS_ATOMS
    verlet = VerletList(CUTOFF)
    cell = np.zeros((3, 3))
    edges, shifts = verlet.update(scattered(n, 3 * np.eye(3) * 2, rng), cell, OPEN)
    assert shifts is None
    assert set(zip(*edges.tolist(), strict=True)) == set(itertools.combinations(range(n), 2))
    for scale in (1.0, 5.0, 100.0):
        assert verlet.update(scale * scattered(n, 6 * np.eye(3), rng), cell + scale, OPEN)[0] is edges
    assert verlet.n_builds == 1
    assert verlet.update(np.zeros((1, 3)), cell, OPEN)[0].shape == (2, 0)


@pytest.mark.parametrize("n_atoms", [1, 5, 24, 100])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("pbc", [OPEN, FULL], ids=["isolated", "periodic"])
def test_nan_positions_are_refused_at_first_and_later(n_atoms, bad, pbc):
    rng = np.random.default_rng(6)
    good = scattered(n_atoms, 4 * TRICLINIC, rng)
    broken = good.copy()
    broken[n_atoms // 2, 1] = bad
    fresh, used = VerletList(CUTOFF), VerletList(CUTOFF)
    used.update(good, 4 * TRICLINIC, pbc)
    for verlet in (fresh, used):
        with pytest.raises(ValueError, match=f"atom {n_atoms // 2} .*NaN"):
            verlet.update(broken, 4 * TRICLINIC, pbc)
        verlet.update(good, 4 * TRICLINIC, pbc)


@pytest.mark.parametrize(
    ("cell", "pbc"),
    [
        (np.zeros((3, 3)), FULL),
        (np.diag([5.0, 5.0, 0.0]), FULL),
        (np.array([[5.0, 0, 0], [5.0, 0, 0], [0, 0, 5.0]]), FULL),
        (np.diag([5.0, np.nan, 5.0]), FULL),
    ],
    ids=["none", "flat", "dependent", "nan"],
)
def test_cells_without_volume_are_refused_at_first_and_later(cell, pbc):
    positions = np.array([[0.0, 0, 0], [1.0, 0, 0]])
    used = VerletList(CUTOFF)
    used.update(positions, 5 * np.eye(3), pbc)
    for verlet in (VerletList(CUTOFF), used):
        with pytest.raises(ValueError, match="cell"):
            verlet.update(positions, cell, pbc)


@pytest.mark.parametrize(("cutoff", "skin"), [(0.0, 0.5), (-1.0, 0.5), (np.nan, 0.5), (3.0, -0.1), (3.0, np.nan)])
def test_impossible_radii_are_refused(cutoff, skin):
    with pytest.raises(ValueError, match="cutoff must be positive"):
        VerletList(cutoff, skin)


def test_graph_builder_follows_every_change():
    rng = np.random.default_rng(7)
    build = GraphBuilder(CUTOFF, 0.5)
    positions, numbers = scattered(5, 2 * SMALL, rng), np.array([6, 1, 1, 8, 1])
    first = build(positions, numbers, 2 * SMALL, FULL)
    assert first.positions.dtype == first.cell.dtype == torch.float64
    before = positions.copy()
    positions[0] += 0.01
    assert np.array_equal(first.positions.numpy(), before)  # a copy, not a view
    second = build(positions, numbers, 2.02 * SMALL, FULL)
    assert second.atomic_numbers is first.atomic_numbers
    assert np.array_equal(second.cell[0].numpy(), 2.02 * SMALL)
    assert np.array_equal(second.positions.numpy(), positions)
    third = build(positions, numbers[::-1].copy(), 2.02 * SMALL, np.array([True, False, True]))
    assert third.atomic_numbers.tolist() == numbers[::-1].tolist()
    assert third.pbc.tolist() == [[True, False, True]]
    assert build(positions[:3], numbers[:3], 2.02 * SMALL, OPEN).batch.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("cell", "pbc"), [(2 * SMALL, FULL), (2 * SMALL, np.array([True, False, True])), (SMALL, OPEN)]
)
def test_graph_depends_on_the_structure_alone(cell, pbc):
    """Whatever list is behind it: the pairs within the cutoff, in one order."""
    rng = np.random.default_rng(0)
    n = ALL_PAIRS_ATOMS + 5
    positions, numbers, build = scattered(n, 2 * SMALL, rng), np.ones(n, dtype=np.int64), GraphBuilder(CUTOFF, 1.0)
    for _ in range(6):
        graph = build(positions, numbers, cell, pbc)
        anew = GraphBuilder(CUTOFF, 0.3)(positions, numbers, cell, pbc)
        inside, inside_anew = (g.pair_vectors().norm(dim=1) < CUTOFF for g in (graph, anew))  # as models take them
        assert torch.equal(graph.pairs[:, inside], anew.pairs[:, inside_anew])
        assert pbc.any() == (graph.shifts is not None)
        if pbc.any():
            assert torch.equal(graph.shifts[inside], anew.shifts[inside_anew])
        assert int(inside.sum()) == neighbor_list(positions, cell, pbc, CUTOFF)[0].shape[1]
        positions = positions + rng.normal(0, 0.03, positions.shape) + rng.integers(-1, 2, (n, 3)) * pbc @ cell
    assert build.neighbors.n_builds < 4


@pytest.mark.parametrize(
    ("cell", "periodic", "spread", "message"),
    [
        ([1e6, 6.0, 6.0], [True] * 3, 6.0, "run away"),  # a runaway barostat: killed the interpreter
        ([6.0, 6.0, 0.0], [True, True, False], 1e8, "run away"),
        ([1e-3] * 3, [True] * 3, 0.0, "collapsed"),  # 6 GB
        ([1e-4] * 3, [True] * 3, 0.0, "collapsed"),  # for ever
        ([2e-6, 1e4, 50.0], [True] * 3, 0.0, "collapsed"),  # a volume like any, and a million images
        ([0.155, 346.0, 0.0], [True, True, False], 7e3, "collapsed"),  # a minute: 33 images in each of 97,000 boxes
        ([6.0] * 3, [True] * 3, 1e12, "run away"),
    ],
)
def test_what_would_kill_the_process_is_refused(
    cell: list[float], periodic: list[bool], spread: float, message: str
) -> None:
    positions = np.array([[0.0, 0.0, spread], [0.0, 0.0, 0.0]])
    with pytest.raises(ValueError, match=message):
        neighbor_list(positions, np.diag(cell), np.array(periodic), 5.0)


def test_many_atoms_at_one_place_are_refused() -> None:
    with pytest.raises(ValueError, match="collapsed"):
        neighbor_list(np.zeros((50_000, 3)), np.zeros((3, 3)), np.zeros(3, bool), 5.0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slab_with_atoms_far_above_it_finds_its_pairs(axis: int) -> None:
    """The direction that is not periodic is as long as the atoms reach."""
    rng = np.random.default_rng(axis)
    periodic = np.arange(3) != axis
    positions = rng.random((40, 3)) * np.where(periodic, 6.0, 300.0)
    cell = np.diag(np.where(periodic, 6.0, 0.0))
    index, shift = neighbor_list(positions, cell, periodic, 5.0)
    assert shift is not None
    expected = 0
    for images in np.ndindex(*(3 if p else 1 for p in periodic)):
        moved = positions + np.where(periodic, np.array(images) - 1, 0) @ cell
        near = np.linalg.norm(positions[:, None] - moved, axis=-1) < 5.0
        expected += int(near.sum()) - (40 if not (np.where(periodic, np.array(images) - 1, 0)).any() else 0)
    assert 2 * index.shape[1] == expected
