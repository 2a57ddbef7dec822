"""Does a flow map sample what force-driven dynamics samples, and how much faster?

Temperatures, and the distributions of all bond lengths, angles and dihedrals (50 bins each) of one long rollout with
a thermostat and the flow map's own energy filter, beside Langevin dynamics with the potential's forces (BAOAB, 0.5 fs,
several copies as one batch, heated first so that they differ). The Jensen-Shannon divergence (bits) of each
distribution stands beside that between the two halves of the reference. Atoms that bonds do not tell apart, such as the
hydrogens of a methyl group, are pooled (--apart: not): which of them is where depends on the few times that the group
turned in one rollout. Speed: one thread's CPU time, one stride and one force-driven step in turn, both through ase.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from _common import load_potential, make_parser, parse, print_table, write_json
from numpy.typing import NDArray

from egnn_md.chemistry.elements import BOUND, COVALENT_RADII, symbol
from egnn_md.chemistry.molecules import environments
from egnn_md.chemistry.units import BOLTZMANN, FS_PER_TIME_UNIT
from egnn_md.dynamics.ase_flow import FlowDynamics, load_flow
from egnn_md.dynamics.batched import Batch, State, Thermostat, run

if TYPE_CHECKING:
    from ase import Atoms

FloatArray = NDArray[np.float64]
TIMESTEP, FRICTION = 0.5, 5.0  # fs, 1/ps
SAMPLE_FS = 10.0
BINS = 50


def bonds_angles_dihedrals(atoms: Atoms) -> dict[str, tuple[int, ...]]:
    """Name -> atoms, from the bonds of `atoms`."""
    n, radii = len(atoms), np.array(COVALENT_RADII)[atoms.numbers]
    bound = atoms.get_all_distances() < BOUND * (radii[:, None] + radii)
    near = [[int(j) for j in np.flatnonzero(bound[i]) if j != i] for i in range(n)]
    found = [(i, j) for i in range(n) for j in near[i] if i < j]
    found += [(i, j, k) for j in range(n) for i in near[j] for k in near[j] if i < k]
    found += [
        (i, j, k, m)
        for j in range(n)
        for k in near[j]
        if j < k
        for i in near[j]
        for m in near[k]
        if len({i, j, k, m}) == 4
    ]
    return {"-".join(f"{symbol(int(atoms.numbers[a]))}{a}" for a in group): group for group in found}


def equivalent(groups: dict[str, tuple[int, ...]], atoms: Atoms) -> dict[str, list[tuple[int, ...]]]:
    """The groups of atoms of each kind, under the names of its first."""
    labels = environments(atoms.numbers, atoms.positions)
    kinds: dict[tuple[str, ...], list[str]] = {}
    for name, group in groups.items():
        forwards = tuple(labels[a] for a in group)
        kinds.setdefault(min(forwards, forwards[::-1]), []).append(name)
    return {names[0]: [groups[name] for name in names] for names in kinds.values()}


def values(positions: FloatArray, group: tuple[int, ...]) -> FloatArray:
    """Lengths (Å), angles or dihedrals (degrees) along a trajectory (n_frames, n_atoms, 3)."""
    steps = np.diff(positions[:, group], axis=1)
    if len(group) == 2:
        length: FloatArray = np.linalg.norm(steps[:, 0], axis=1)
        return length
    if len(group) == 3:
        a, b = -steps[:, 0], steps[:, 1]
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        return np.degrees(np.arccos(cosine))
    one, other = np.cross(steps[:, 0], steps[:, 1]), np.cross(steps[:, 1], steps[:, 2])
    axis = steps[:, 1] / np.linalg.norm(steps[:, 1], axis=1, keepdims=True)
    return np.degrees(np.arctan2((np.cross(one, axis) * -other).sum(1), (one * other).sum(1)))


def divergence(a: FloatArray, b: FloatArray, edges: FloatArray) -> float:
    """Jensen-Shannon divergence of two samples, bits."""
    p, q = (np.histogram(sample, edges)[0] / len(sample) for sample in (a, b))

    def information(x: FloatArray, y: FloatArray) -> float:
        known = x > 0
        return float((x[known] * np.log2(x[known] / y[known])).sum())

    return 0.5 * information(p, 0.5 * (p + q)) + 0.5 * information(q, 0.5 * (p + q))


def reference(model_name: str, atoms: Atoms, options: Any) -> FloatArray:
    """Force-driven positions, (n_copies, n_frames, n_atoms, 3)."""
    model = load_potential(model_name, "float32")
    batch, generator = Batch(model, [atoms] * options.copies), torch.Generator().manual_seed(options.seed)
    frames: list[FloatArray] = []

    def langevin(state: State, ps: float, temperature: float, **observers: Any) -> State:
        target = torch.full((options.copies,), temperature, dtype=torch.float64)
        thermostat = Thermostat(target, FRICTION, generator)
        return run(batch, state, round(1e3 * ps / TIMESTEP), TIMESTEP, thermostat=thermostat, **observers)

    def keep(step: int, state: State) -> None:
        frames.append(state.positions.double().numpy().reshape(options.copies, len(atoms), 3))

    hot = 2.0 * options.temperature
    state = batch.start(torch.full((options.copies,), hot, dtype=torch.float64), generator)
    state = langevin(langevin(state, options.equilibration, hot), options.equilibration, options.temperature)
    every = round(SAMPLE_FS / TIMESTEP)
    langevin(state, options.ps / options.copies, options.temperature, every=every, observe=keep)
    return np.stack(frames, 1)


def rollout(atoms: Atoms, options: Any) -> tuple[FloatArray, FloatArray, float]:
    """Positions (n_frames, n_atoms, 3), temperature of each atom over time (n_frames, n_atoms), fraction accepted."""
    atoms = atoms.copy()
    rng = np.random.default_rng(options.seed)
    width = np.sqrt(BOLTZMANN * options.temperature * atoms.get_masses())[:, None]
    atoms.set_momenta(width * rng.standard_normal((len(atoms), 3)))
    settings = {"temperature_K": options.temperature, "friction": FRICTION, "rng": rng, "compile": options.compile}
    dynamics = FlowDynamics(atoms, options.flow, options.stride, energy_filter=not options.no_filter, **settings)
    for _ in range(round(2e3 * options.equilibration / options.stride)):
        dynamics.step()
    positions, temperatures, dynamics.accepted = [], [], 0
    steps, every = round(1e3 * options.ps / options.stride), max(1, round(SAMPLE_FS / options.stride))
    for step in range(1, steps + 1):
        dynamics.step()
        if not np.isfinite(atoms.positions).all() or np.abs(atoms.positions - atoms.positions.mean(0)).max() > 20.0:
            raise SystemExit(f"the rollout blew up after {step * options.stride * 1e-3:.3f} ps")
        if step % every == 0:
            positions.append(atoms.positions.copy())
            temperatures.append((atoms.get_momenta() ** 2).sum(1) / atoms.get_masses() / (3.0 * BOLTZMANN))
    return np.array(positions), np.array(temperatures), dynamics.accepted / steps


def speed(atoms: Atoms, options: Any, rounds: int) -> dict[str, float]:
    """CPU milliseconds of a stride and of a force-driven step, and the ratio of simulated times per second."""
    from ase.md.langevinbaoab import LangevinBAOAB

    from egnn_md.calculators import EGNNCalculator

    forced, strided = atoms.copy(), atoms.copy()
    forced.calc = EGNNCalculator(options.model, dtype="float32", compile=options.compile)
    langevin = {"temperature_K": options.temperature, "T_tau": 1e3 / FRICTION / FS_PER_TIME_UNIT}
    md = LangevinBAOAB(forced, TIMESTEP / FS_PER_TIME_UNIT, rng=np.random.default_rng(0), **langevin)
    flow = FlowDynamics(
        strided, options.flow, options.stride, temperature_K=options.temperature, rng=0, compile=options.compile
    )
    spent: dict[str, list[float]] = {"stride": [], "step": []}
    for count in range(rounds + 3):
        for name, dynamics in (("stride", flow), ("step", md)):
            began = time.process_time()
            dynamics.step()
            if count >= 3:
                spent[name].append(time.process_time() - began)
    stride, step = (1e3 * float(np.median(spent[name])) for name in ("stride", "step"))
    return {"stride_ms": stride, "step_ms": step, "ratio": (options.stride / stride) / (TIMESTEP / step)}


def compare(true: FloatArray, made: FloatArray, kinds: dict[str, list[tuple[int, ...]]]) -> list[dict[str, Any]]:
    """Divergence of each distribution from the reference, and between the reference's halves."""
    rows, half = [], len(true) // 2
    for name, groups in kinds.items():
        parts = [
            np.concatenate([values(part.reshape(-1, *part.shape[-2:]), group) for group in groups])
            for part in (true[:half], true[half:], made)
        ]
        whole = np.concatenate(parts[:2])
        low, high = (-180.0, 180.0) if len(groups[0]) == 4 else (min(map(np.min, parts)), max(map(np.max, parts)))
        edges = np.linspace(low, high, BINS + 1)
        row = {"name": name, "js": divergence(whole, parts[2], edges), "js_halves": divergence(*parts[:2], edges)}
        rows.append({**row, "mean": float(whole.mean()), "mean_rollout": float(parts[2].mean())})
    return rows


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    from ase.build import molecule

    parser = make_parser(__doc__ or "", data=False)
    parser.add_argument("--flow", default="ethanol-flow", help="shipped name or path of a flow map")
    parser.add_argument("--molecule", default="CH3CH2OH", help="a name that ase.build.molecule knows")
    parser.add_argument("--stride", type=float, default=10.0, help="fs")
    parser.add_argument("--ps", type=float, default=200.0, help="of the rollout, and of the reference in all")
    parser.add_argument("--copies", type=int, default=20, help="of the reference, side by side")
    parser.add_argument("--equilibration", type=float, default=1.0, help="ps of the reference, hot and again at T")
    parser.add_argument("--temperature", type=float, default=300.0, help="K")
    parser.add_argument("--no-filter", action="store_true", help="accept every stride")
    parser.add_argument("--reference", type=Path, help="npz of the reference: read if it is there, else written")
    parser.add_argument("--rounds", type=int, default=200, help="of the timing")
    parser.add_argument("--compile", action="store_true", help="compile both sides")
    parser.add_argument("--apart", action="store_true", help="a distribution for each bond, angle and dihedral")
    parser.add_argument("--seed", type=int, default=0)
    options = parse(parser, arguments)
    options.flow = load_flow(options.flow)
    atoms = molecule(options.molecule)
    result: dict[str, Any] = {"speed": speed(atoms, options, options.rounds)}
    print_table("speed", ["stride ms", "0.5 fs step ms", "times faster"], [list(result["speed"].values())])
    positions, temperatures, accepted = rollout(atoms, options)
    elements = {symbol(int(z)): float(temperatures[:, atoms.numbers == z].mean()) for z in np.unique(atoms.numbers)}
    result |= {"temperature_K": float(temperatures.mean()), "by_element": elements, "accepted": accepted}
    result["temperature_error"] = float(temperatures.mean(1).reshape(10, -1).mean(1).std(ddof=1) / 10**0.5)
    row = [result["temperature_K"], result["temperature_error"], *elements.values(), accepted]
    print_table(f"{options.ps:g} ps of rollout", ["T/K", "±", *elements, "accepted"], [row])
    if options.reference is not None and options.reference.exists():
        true = np.load(options.reference)["positions"]
    else:
        true = reference(options.model, atoms, options)
        if options.reference is not None:
            np.savez(options.reference, positions=true)
    groups = bonds_angles_dihedrals(atoms)
    kinds = {name: [group] for name, group in groups.items()} if options.apart else equivalent(groups, atoms)
    rows = compare(true, positions, kinds)
    result |= {"distributions": rows, "worst_excess": max(row["js"] - row["js_halves"] for row in rows)}
    print_table("Jensen-Shannon divergence, bits", list(rows[0]), [list(row.values()) for row in rows])
    print(f"\nlargest excess over the reference's halves: {result['worst_excess']:.4f} bits")
    write_json(options.json, result)
    return result


if __name__ == "__main__":
    main()
