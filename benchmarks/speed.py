"""What does a force call cost? GFN2-xTB stands beside it where tblite is installed.

First ethanol: our calculator, through ase, beside the bare network with its graph ready. Then our calculator beside
GFN2-xTB (tblite through ase) for growing droplets of ethanol and chains of alkane. All on the same thread, one call of
each in turn, atoms moved a little between calls as in dynamics; medians of the thread's processor time, which other
programs on the machine disturb less (of the time that passed, with more threads), and their ratios. --compile: what
`egnn-md compile` brings, in the same run. --ani: ANI-2x beside it, one of its networks and all eight, with torchani's
calculator and cell list, where torchani is installed; the weights are random, on which the time does not depend.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from _common import calculator, gfn2, load_potential, make_parser, parse, print_table, write_json
from _liquids import droplet

from egnn_md.compiled.forces import use_compiled
from egnn_md.dynamics.batched import Batch

if TYPE_CHECKING:
    from ase import Atoms

STEP = 0.003  # Å between calls, about what an atom moves in 0.5 fs
PRECISIONS = ("float32", "float64")


def alkane(n_carbon: int) -> Atoms:
    """An all-trans chain, 3 n_carbon + 2 atoms."""
    from ase import Atoms

    symbols, positions = [], []
    for k in range(n_carbon):
        side = 1.0 if k % 2 else -1.0
        carbon = np.array([1.257 * k, 0.444 * side, 0.0])
        hydrogens = carbon + np.array([[0.0, 0.63 * side, 0.89], [0.0, 0.63 * side, -0.89]])
        positions += [carbon, *hydrogens]
        symbols += ["C", "H", "H"]
        if k in (0, n_carbon - 1):
            outwards = np.array([-0.89 if k == 0 else 0.89, -0.63 * side, 0.0])
            positions.append(carbon + outwards)
            symbols.append("H")
    return Atoms(symbols, positions)


def structures() -> dict[str, Atoms]:
    """About 9, 20, 60 and 150 atoms, compact and long."""
    drops = {f"ethanol x {n}": droplet("CH3CH2OH", n) for n in (1, 2, 7, 17)}
    return drops | {f"C{n}H{2 * n + 2}": alkane(n) for n in (6, 20, 50)}


def interleaved(calls: dict[str, Callable[[np.ndarray], object]], start: np.ndarray, rounds: int) -> dict[str, float]:
    """Median seconds of each call; every round moves the atoms and runs each call once."""
    rng, positions = np.random.default_rng(0), start.copy()
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for count in range(rounds + 2):
        positions = start + STEP * rng.normal(size=start.shape)
        for name, call in calls.items():
            began = clock()
            call(positions)
            if count >= 2:  # the first calls allocate
                seconds[name].append(clock() - began)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def through_ase(atoms: Atoms, engine: Any) -> Callable[[np.ndarray], object]:
    copy = atoms.copy()
    copy.calc = engine

    def call(positions: np.ndarray) -> object:
        copy.positions = positions
        return copy.get_forces()

    return call


def bare_network(atoms: Atoms, model_name: str, dtype: str) -> Callable[[np.ndarray], object]:
    """The potential on a graph that is ready; ethanol's pairs are all within reach, so no list is left out."""
    model = load_potential(model_name, dtype)
    graph = Batch(model, [atoms]).graph(torch.tensor(atoms.positions))
    return lambda positions: model(graph)


def overhead(model: str, rounds: int) -> dict[str, Any]:
    from ase.build import molecule

    ethanol = molecule("CH3CH2OH")
    result: dict[str, dict[str, float]] = {}
    for dtype in PRECISIONS:
        calls = {
            "bare": bare_network(ethanol, model, dtype),
            "calculator": through_ase(ethanol, calculator(model, dtype)),
        }
        seconds = interleaved(calls, ethanol.positions, rounds)
        result[dtype] = {**seconds, "overhead": seconds["calculator"] / seconds["bare"] - 1.0}
    print_table(
        "Ethanol, one force call",
        ("dtype", "bare network ms", "calculator ms", "overhead %"),
        [(name, 1e3 * row["bare"], 1e3 * row["calculator"], 1e2 * row["overhead"]) for name, row in result.items()],
    )
    return result


def beside_gfn2(model: str, rounds: int, largest: int, compiled: bool) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    engines = {dtype: calculator(model, dtype) for dtype in PRECISIONS}
    if compiled:
        engines["float32 compiled"] = calculator(model, "float32", compiled=True)
    for name, atoms in structures().items():
        if len(atoms) > largest:
            continue
        calls = {label: through_ase(atoms, engine) for label, engine in engines.items()}
        seconds = interleaved({**calls, "GFN2-xTB": through_ase(atoms, gfn2(accuracy=1.0))}, atoms.positions, rounds)
        faster = {label: seconds["GFN2-xTB"] / seconds[label] for label in engines}
        rows.append({"structure": name, "n_atoms": len(atoms), "seconds": seconds, "faster": faster})
    print_table(
        "One force call through ase beside GFN2-xTB; x: how many times faster",
        (
            "structure",
            "atoms",
            *(f"{label} ms" for label in (*engines, "GFN2-xTB")),
            *(f"{name} x" for name in engines),
        ),
        [
            (row["structure"], row["n_atoms"], *(1e3 * t for t in row["seconds"].values()), *row["faster"].values())
            for row in rows
        ],
    )
    return rows


def compiled_beside_eager(model: str, rounds: int, largest: int) -> list[dict[str, Any]]:
    """Force calls through the calculator, and a batch of 64 pentanes through the network, eager and compiled."""
    engines = {name: calculator(model, "float32", compiled=name == "compiled") for name in ("eager", "compiled")}
    if not engines["compiled"].compiled:
        raise SystemExit("no compiled force calls here: egnn-md compile says why")
    rows: list[dict[str, Any]] = []
    for name, atoms in (structures() | {"water x 64": droplet("H2O", 64)}).items():
        if len(atoms) <= largest:
            calls = {label: through_ase(atoms, engine) for label, engine in engines.items()}
            seconds = interleaved(calls, atoms.positions, rounds)
            rows.append({"structure": name, "n_atoms": len(atoms), "seconds": seconds})
    pentane = alkane(5)
    networks = {name: load_potential(model, "float32") for name in engines}
    use_compiled(networks["compiled"], "auto")
    batches = {name: Batch(network, [pentane] * 64) for name, network in networks.items()}
    start = batches["eager"].positions.numpy()
    calls = {name: lambda x, batch=batch: batch.evaluate(torch.from_numpy(x)) for name, batch in batches.items()}
    seconds = interleaved(calls, start, max(rounds // 5, 1))
    rows.append({"structure": "64 pentanes", "n_atoms": len(start), "seconds": seconds})
    for row in rows:
        row["ratio"] = row["seconds"]["compiled"] / row["seconds"]["eager"]
    print_table(
        "One force call, float32, eager and compiled",
        ("structure", "atoms", "eager ms", "compiled ms", "ratio", "µs per atom"),
        [
            (row["structure"], row["n_atoms"], *(1e3 * t for t in row["seconds"].values()), row["ratio"],
             1e6 * row["seconds"]["compiled"] / row["n_atoms"])
            for row in rows
        ],
    )  # fmt: skip
    print(f"\n{64 / seconds['eager']:.0f} pentanes a second eager, {64 / seconds['compiled']:.0f} compiled")
    return rows


def ani2x(members: int, neighbors: str = "cell_list") -> Any:
    """torchani's model of the architecture of ANI-2x, float32, with so many networks."""
    from torchani.arch import Assembler
    from torchani.utils import SYMBOLS_2X

    builder = Assembler(periodic_table_index=True)
    builder.set_symbols(SYMBOLS_2X)
    builder.set_global_cutoff_fn("cosine")
    builder.set_aev_computer(radial="ani2x", angular="ani2x", strategy="pyaev")
    builder.set_atomic_networks(ctor="ani2x")
    builder.set_neighborlist(neighbors)
    builder.set_zeros_as_self_energies()
    return builder.assemble(members).requires_grad_(False).float()


def ani_batch(atoms: Atoms, copies: int) -> Callable[[np.ndarray], Any]:
    """Forces of copies of a molecule by one network, side by side (for batches torchani has all pairs alone)."""
    network, numbers = ani2x(1, "all_pairs"), torch.from_numpy(atoms.numbers).expand(copies, -1)

    def call(positions: np.ndarray) -> Any:
        x = torch.from_numpy(positions).float().reshape(copies, len(atoms), 3).requires_grad_()
        return torch.autograd.grad(network((numbers, x)).energies.sum(), x)[0]

    return call


def beside_ani(model: str, rounds: int, compiled: bool) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    ours = calculator(model, "float32", compiled=compiled)
    engines = {"ours": ours, "ANI-2x, 1 network": ani2x(1).ase(), "ANI-2x, 8 networks": ani2x(8).ase()}
    for name, atoms in {"C6H14": alkane(6), "water x 64": droplet("H2O", 64)}.items():
        calls = {label: through_ase(atoms, engine) for label, engine in engines.items()}
        seconds = interleaved(calls, atoms.positions, rounds)
        rows.append({"structure": name, "n_atoms": len(atoms), "seconds": seconds})
    print_table(
        f"One force call through ase, float32, ours {'compiled' if ours.compiled else 'eager'}",
        ("structure", "atoms", *(f"{label} ms" for label in engines)),
        [(row["structure"], row["n_atoms"], *(1e3 * t for t in row["seconds"].values())) for row in rows],
    )
    pentane, network = alkane(5), load_potential(model, "float32")
    use_compiled(network, "auto" if compiled else False)
    batch = Batch(network, [pentane] * 64)
    both = {"ours": lambda x: batch.evaluate(torch.from_numpy(x)), "ANI-2x, 1 network": ani_batch(pentane, 64)}
    seconds = interleaved(both, batch.positions.numpy(), max(rounds // 5, 1))
    rows.append({"structure": "64 pentanes", "n_atoms": len(batch.positions), "seconds": seconds})
    print("\n64 pentanes as a batch, a second: " + ", ".join(f"{name} {64 / t:.0f}" for name, t in seconds.items()))
    return rows


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = make_parser(__doc__ or "", data=False)
    parser.add_argument("--rounds", type=int, default=30, help="calls of each")
    parser.add_argument("--largest", type=int, default=200, help="leave out structures with more atoms")
    parser.add_argument("--compile", action="store_true", help="compiled force calls too, made first if need be")
    parser.add_argument("--ani", action="store_true", help="nothing but ANI-2x beside ours; needs torchani")
    options = parse(parser, arguments)
    if options.ani:
        result = {"beside_ani": beside_ani(options.model, options.rounds, options.compile)}
        write_json(options.json, result)
        return result
    result = {
        "threads": torch.get_num_threads(),
        "overhead": overhead(options.model, 10 * options.rounds),
        "compiled": compiled_beside_eager(options.model, options.rounds, options.largest) if options.compile else None,
        "beside_gfn2": None,
    }
    if importlib.util.find_spec("tblite"):
        result["beside_gfn2"] = beside_gfn2(options.model, options.rounds, options.largest, options.compile)
    write_json(options.json, result)
    return result


if __name__ == "__main__":
    main()
