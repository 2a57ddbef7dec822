"""The graph autoencoder: speed beside one graph at a time, and how much an embedding can hold.

Speed is that of training steps, optimizer included, on Community Small: batches of ours, compiled (as the shipped
configurations train) and not, ours one graph at a time, and a literal implementation (inputs of every edge
concatenated) one graph at a time, as the authors train. They take turns on one thread. With --overfit: 100 Erdős-Rényi
graphs, trained and evaluated on the same, by dimension of the embedding.

    python benchmarks/autoencoder.py
    python benchmarks/autoencoder.py --rounds 0 --overfit 4 8 16
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from _common import make_parser, parse, print_table, write_json

OVERFIT = """
task = "autoencoder"
[data]
files = ["graphs.npz"]
n_train = 100
[model]
embedding_dim = {dim}
[training]
max_steps = {steps}
batch_size = 20
learning_rate = 5e-3
warmup_steps = 50
ema_decay = 0.99
validate_every = 200
checkpoint_every = 1000
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__ or "", data=False)
    parser.add_argument("--batch", type=int, default=32, help="graphs at once")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of the speed")
    parser.add_argument("--overfit", type=int, nargs="*", default=[], metavar="K", help="dimensions to overfit in")
    parser.add_argument("--steps", type=int, default=1500, help="steps of each overfit")
    options = parse(parser, arguments)
    result: dict[str, Any] = {}
    if options.rounds:
        result["speed"] = speed(options.batch, options.rounds)
    rows = [[dim, *overfit(dim, options.steps)] for dim in options.overfit]
    if rows:
        print_table("100 graphs in memory", ["dimension", "% error", "F1"], rows)
        result["overfit"] = {str(dim): [error, f1] for dim, error, f1 in rows}
    write_json(options.json, result)


def speed(batch: int, rounds: int) -> dict[str, float]:
    """Milliseconds a graph of each way, and how many times as fast batches are."""
    import torch

    from egnn_md.nn.compilation import CompiledModule
    from egnn_md.paper.autoencoder import GraphAutoencoder, GraphAutoencoderConfig, GraphInput
    from egnn_md.paper.autoencoder_metrics import GraphBatches
    from egnn_md.paper.random_graphs import generate

    torch.manual_seed(0)
    side = generate("community", {"train": batch}, 0)["train"]
    batches = GraphBatches(side, 8, torch.float32)
    together = batches[list(range(batch))].graphs
    single = [batches[[k]].graphs for k in range(batch)]
    ours, alone, traced = (GraphAutoencoder(GraphAutoencoderConfig()) for _ in range(3))
    literal = literal_like(ours)
    with torch.no_grad():
        parts = torch.cat([literal(graph) for graph in single])
        difference = float((ours(together) - parts).abs().max())

    def training(model: torch.nn.Module, steps: list[GraphInput], compiled: bool = False) -> Callable[[], None]:
        network = CompiledModule(model) if compiled else model
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
        loss = torch.nn.functional.binary_cross_entropy_with_logits

        def run() -> None:
            for graphs in steps:
                optimizer.zero_grad()
                loss(network(graphs), graphs.adjacency, reduction="sum").backward()
                optimizer.step()

        return run

    ways = {
        f"ours, batches of {batch}, compiled": training(traced, [together], compiled=True),
        f"ours, batches of {batch}": training(ours, [together]),
        "ours, one at a time": training(alone, single),
        "literal, one at a time": training(literal, single),
    }
    for way in ways.values():
        way()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.thread_time()  # of the processor: others may be at work too
            way()
            times[name].append(1e3 * (time.thread_time() - start) / batch)
    first = next(iter(times.values()))
    ratios = {n: statistics.median(b / a for a, b in zip(first, each, strict=True)) for n, each in times.items()}
    rows = [[name, statistics.median(times[name]), ratios[name]] for name in times]
    print_table("training, EGNN encoder, 4 layers, 64 features", ["", "ms a graph", "times ours"], rows)
    print(f"\nlargest difference of the literal outputs: {difference:.1e}")
    return ratios | {"largest_difference": difference}


def literal_like(model: Any) -> Any:
    """The EGNN autoencoder with layers as the equations are written, with the weights of `model`."""
    import torch
    from _literal_egnn import LiteralLayer

    from egnn_md.paper.autoencoder import DECODER_UNIT

    class Literal(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            size = model.config.hidden_dim
            self.embedding = torch.nn.Linear(1, size)
            self.embedding.load_state_dict(model.encoder.embedding.state_dict())
            self.layers = torch.nn.ModuleList()
            for layer in model.encoder.layers:
                self.layers.append(LiteralLayer(size, edge_dim=1, velocities=False))
                self.layers[-1].take(layer)
            self.weight = torch.nn.Parameter(DECODER_UNIT * model.weight.detach())
            self.bias = torch.nn.Parameter(DECODER_UNIT * model.bias.detach())

        def forward(self, graphs: Any) -> torch.Tensor:
            row, column = graphs.pairs
            x = graphs.noise
            h = self.embedding(torch.ones(len(x), 1))
            for layer in self.layers:
                h, x = layer(h, x, None, row, column, graphs.adjacency[:, None])
            return self.weight * ((x[row] - x[column]) ** 2).sum(1) + self.bias

    return Literal()


def overfit(dim: int, steps: int) -> tuple[float, float]:
    """% error and F1 on 100 graphs that were trained on."""
    from egnn_md.checkpoint import read_header
    from egnn_md.paper.random_graphs import generate, write
    from egnn_md.training.loop import Resources, train

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "graphs.npz", generate("erdos-renyi", {"train": 100, "valid": 1, "test": 1}, 0))
        (folder / "config.toml").write_text(OVERFIT.format(dim=dim, steps=steps))
        resources = Resources(accelerator="cpu", progress=False)
        found = read_header(train(folder / "config.toml", output=folder / "run", resources=resources))["held_out"]
    return found["test"]["error_percent"], found["test"]["f1"]


if __name__ == "__main__":
    main()
