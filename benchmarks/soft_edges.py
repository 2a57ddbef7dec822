"""What inferred edges look like: soft edge weight φ_inf (eq. 8) against distance, by kind of pair and layer.

Takes a model trained with `soft_edges = true`: the paper's N-body model (pairs that repel or attract), a graph
autoencoder (pairs with an edge or without one) or the paper's QM9 network (pairs of elements; it always infers edges),
and a file with a test side.

    python benchmarks/soft_edges.py --model run/model.safetensors --file nbody.npz -o soft_edges.png
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _common import make_parser, parse, print_table, write_json

SAMPLES = 300


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__ or "", data=False)
    parser.set_defaults(model=None)
    parser.add_argument("--file", type=Path, help="data with a test side")
    parser.add_argument("-o", "--output", type=Path, default=Path("soft_edges.png"), help="the picture")
    options = parse(parser, arguments)
    if options.model is None or options.file is None:
        parser.error("give --model and --file")
    from egnn_md.checkpoint import load

    model = load(options.model)
    if not getattr(model.config, "soft_edges", False):
        parser.error(f"{options.model} was not trained with soft_edges = true")
    kinds, network, run = inputs(model, options.file)
    layers = watched(network, run)
    rows, result = [], {}
    for k, (distances, weights) in enumerate(layers):
        for kind, chosen in kinds.items():
            slope = np.corrcoef(distances[chosen], weights[chosen])[0, 1]
            rows.append([k + 1, kind, float(weights[chosen].mean()), float(weights[chosen].std()), float(slope)])
            result[f"layer {k + 1}, {kind}"] = rows[-1][2:]
    columns = ["layer", "pairs", "mean weight", "deviation", "correlation with distance"]
    print_table("soft edges", columns, rows)
    draw(layers, kinds, options.output)
    print(f"\ndrawn: {options.output}")
    write_json(options.json, result)


def inputs(model: Any, file: Path) -> tuple[dict[str, Any], Any, Any]:
    """Kinds of pairs as masks over the edges, the EGNN, and a function that runs the model."""
    from egnn_md.paper.autoencoder import GraphAutoencoder

    if isinstance(model, GraphAutoencoder):
        from egnn_md.paper.autoencoder_metrics import GraphBatches
        from egnn_md.paper.random_graphs import read

        side = read(file, "test")
        batches = GraphBatches(side, model.config.embedding_dim, model.weight.dtype)
        graphs = batches[list(range(min(len(side), SAMPLES)))].graphs
        joined = graphs.adjacency.numpy() > 0.5
        return {"edge": joined, "no edge": ~joined}, model.encoder, lambda: model(graphs)
    from egnn_md.models.property import PropertyModel

    if isinstance(model, PropertyModel):
        return of_molecules(model, file)
    from egnn_md.data import nbody
    from egnn_md.evaluation.nbody import FRAMES, particles_at
    from egnn_md.models.propagator import all_pairs

    start = particles_at(nbody.read(file, "test").select(slice(SAMPLES)), FRAMES[0])
    n_systems, n = start.positions.shape[:2]
    i, j = all_pairs(n_systems, n)
    known = start.couplings[i // n, i % n, j % n].numpy()
    kinds = {"like charges": known > 0, "opposite charges": known < 0}
    if (known >= 0).all():
        kinds = {"spring": known > 0, "no spring": known == 0}
    return kinds, model.network, lambda: model(start, model.config.duration)


def of_molecules(model: Any, file: Path) -> tuple[dict[str, Any], Any, Any]:
    """`inputs` for molecules of H, C, N, O: pairs by their elements."""
    from egnn_md.chemistry.elements import symbol
    from egnn_md.chemistry.targets import NAMES
    from egnn_md.data.qm9 import read_qm9
    from egnn_md.training.property import MoleculeBatches

    side = read_qm9(file).side("test").having(np.array(model.config.elements))
    graph = MoleculeBatches(side, NAMES)[list(range(min(len(side), SAMPLES)))].graph(model.config.reach)
    i, j = graph.atomic_numbers[graph.edge_index].numpy()
    pairs = ((1, 1), (6, 1), (6, 6), (6, 7), (6, 8))
    kinds = {f"{symbol(a)}-{symbol(b)}": ((i == a) & (j == b)) | ((i == b) & (j == a)) for a, b in pairs}
    return {name: chosen for name, chosen in kinds.items() if chosen.any()}, model.network, lambda: model(graph)


def watched(network: Any, run: Any) -> list[tuple[Any, Any]]:
    """(distances, soft edge weights) of all pairs at each layer of the EGNN while the model runs."""
    import torch

    distances: list[Any] = []
    weights: list[Any] = []

    def before(_: Any, given: tuple[Any, ...]) -> None:
        state, edges = given[:2]
        i, j = edges.index
        distances.append((state.positions[i] - state.positions[j]).norm(dim=-1).numpy())

    def after(_: Any, given: Any, logits: Any) -> None:
        weights.append(torch.sigmoid(logits)[:, 0].numpy())

    handles = [layer.register_forward_pre_hook(before) for layer in network.layers]
    handles += [layer.soft_edge.register_forward_hook(after) for layer in network.layers]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return list(zip(distances, weights, strict=True))


def draw(layers: list[tuple[Any, Any]], kinds: dict[str, Any], picture: Path) -> None:
    """A panel a layer: mean and middle half of the weights in bins of distance with equally many pairs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(layers), 3.4), layout="constrained")
    panels = figure.subplots(1, len(layers), sharey=True, squeeze=False)[0]
    for k, (panel, (distances, weights)) in enumerate(zip(panels, layers, strict=True)):
        for kind, chosen in kinds.items():
            order = np.argsort(distances[chosen])
            bins = [part for part in np.array_split(order, 30) if len(part)]
            middle = [distances[chosen][part].mean() for part in bins]
            low, mean, high = (
                [reduce(weights[chosen][part]) for part in bins]
                for reduce in (lambda w: np.quantile(w, 0.25), np.mean, lambda w: np.quantile(w, 0.75))
            )
            (line,) = panel.plot(middle, mean, lw=1.5, label=kind)
            panel.fill_between(middle, low, high, alpha=0.2, color=line.get_color(), lw=0)
        panel.set(title=f"layer {k + 1}", xlabel="distance")
    panels[0].set(ylabel="soft edge weight")
    panels[0].legend()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=150)


if __name__ == "__main__":
    main()
