"""The paper's QM9 network beside the same written the long way: largest difference of outputs, and times.

The long way is `_authors_qm9.py`: concatenated edges, molecules padded, all n² pairs. Both have the same weights and
see the same real molecules of --data's qm9.npz, in turns. A training step is forward, backward and Adam.

    python benchmarks/paper_network.py --data DIR
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from _authors_qm9 import LiteralEGNN, pad
from _common import RESERVED_INDEX, make_parser, parse, print_table, write_json


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, model=None)
    parser.add_argument("--batch", type=int, default=96, help="molecules at once")
    parser.add_argument("--repeats", type=int, default=5, help="turns; the median counts")
    options = parse(parser, arguments)
    import numpy as np
    import torch

    from egnn_md.data.qm9 import read_qm9
    from egnn_md.neighbors import molecules_graph
    from egnn_md.paper.authors import from_authors

    torch.manual_seed(0)
    molecules = read_qm9(options.data / "qm9.npz")
    allowed = np.flatnonzero(molecules.index % 20 != RESERVED_INDEX)
    chosen = molecules.select(np.random.default_rng(0).permutation(allowed)[: options.batch])
    numbers = [torch.from_numpy(part) for part in np.split(chosen.atomic_numbers, chosen.starts[1:-1])]
    positions = [torch.from_numpy(part) for part in np.split(chosen.positions, chosen.starts[1:-1])]
    theirs = LiteralEGNN()
    ours = from_authors(theirs.state_dict()).requires_grad_(True)
    padded = pad(numbers, positions)
    counts = torch.from_numpy(chosen.n_atoms)
    flat_positions, flat_numbers = torch.cat(positions), torch.cat(numbers)

    def long_way() -> Any:
        return theirs(padded)[:, 0]

    def our_way() -> Any:
        graph = molecules_graph(flat_positions, flat_numbers, counts, ours.config.reach)
        return ours.network(ours.prepare(graph)).values[:, 0]

    with torch.no_grad():
        a, b = our_way(), long_way()
    difference = float((a - b).abs().max() / b.abs().max())
    times = _times({"long": (long_way, theirs), "ours": (our_way, ours)}, options.repeats)
    rows = [
        [what, times["long"][what], times["ours"][what], times["long"][what] / times["ours"][what]]
        for what in ("forward", "training step")
    ]
    print_table(f"{options.batch} molecules, seconds", ["", "the long way", "ours", "ratio"], rows)
    print(f"\nlargest difference of outputs: {difference:.2e} of the largest output")
    ratios = {row[0].replace(" ", "_") + "_ratio": row[3] for row in rows}
    write_json(options.json, {"largest_relative_difference": difference, **ratios})


def _times(ways: dict[str, tuple[Callable[[], Any], Any]], repeats: int) -> dict[str, dict[str, float]]:
    """Median CPU time of a forward pass and of a training step: the same on a machine that has other work."""
    import torch

    optimizers = {name: torch.optim.Adam(model.parameters(), lr=0.0) for name, (_, model) in ways.items()}
    samples: dict[str, dict[str, list[float]]] = {name: {"forward": [], "training step": []} for name in ways}
    for _ in range(repeats + 1):
        for name, (call, _) in ways.items():
            start = time.process_time()
            with torch.no_grad():
                call()
            middle = time.process_time()
            optimizers[name].zero_grad()
            call().abs().mean().backward()
            optimizers[name].step()
            samples[name]["forward"].append(middle - start)
            samples[name]["training step"].append(time.process_time() - middle)
    return {
        name: {what: sorted(values[1:])[(len(values) - 1) // 2] for what, values in by_what.items()}
        for name, by_what in samples.items()
    }


if __name__ == "__main__":
    main()
