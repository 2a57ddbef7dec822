"""How well a graph autoencoder gives graphs back: binary cross-entropy, wrong pairs, F1."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from egnn_md.data.frames import DataError, ragged_rows
from egnn_md.evaluation.evaluate import Evaluation, EvaluationError, Request
from egnn_md.evaluation.figures import figure
from egnn_md.paper import random_graphs
from egnn_md.paper.autoencoder import GraphAutoencoder, GraphInput

NOISE_SEED = 0
"""Of validation and test: errors are those of one draw of noise, the same for every model."""


@dataclass(frozen=True, eq=False)
class GraphBatch:
    """Graphs with their noise."""

    graphs: GraphInput
    numbers: tuple[int, ...]
    """Which of the side's graphs they are."""
    share: Tensor
    """(1,): 1/graphs of the whole step."""

    def to(self, device: torch.device | str) -> GraphBatch:
        """The same batch on another device."""
        return replace(self, graphs=self.graphs.to(device), share=self.share.to(device))


class GraphBatches(Dataset[GraphBatch]):
    """The graphs of one side as `Batches`. All pairs are laid out once; a batch is a few gathers."""

    def __init__(self, graphs: random_graphs.RandomGraphs, embedding_dim: int, dtype: torch.dtype) -> None:
        self.n_nodes, self.n_pairs = graphs.n_nodes, graphs.n_nodes * (graphs.n_nodes - 1)
        self.first_node, self.first_pair = (np.cumsum(n) - n for n in (self.n_nodes, self.n_pairs))
        off_diagonal = {n: ~np.eye(n, dtype=bool) for n in np.unique(self.n_nodes)}
        within = {n: np.stack(np.nonzero(chosen)) for n, chosen in off_diagonal.items()}
        self.pairs = np.concatenate([within[n] for n in self.n_nodes], 1)
        joined = [matrix[off_diagonal[len(matrix)]] for matrix in graphs.adjacency()]
        self.adjacency = torch.from_numpy(np.concatenate(joined)).to(dtype)
        noise = np.random.default_rng(NOISE_SEED).standard_normal((self.n_nodes.sum(), embedding_dim))
        self.noise = torch.from_numpy(noise).to(dtype)

    def __len__(self) -> int:
        return len(self.n_nodes)

    def __getitem__(self, indices: list[int]) -> GraphBatch:
        chosen = np.asarray(indices, np.int64)
        n_nodes, n_pairs = self.n_nodes[chosen], self.n_pairs[chosen]
        nodes = ragged_rows(self.first_node[chosen], n_nodes)
        pairs = ragged_rows(self.first_pair[chosen], n_pairs)
        offsets = np.repeat(np.cumsum(n_nodes) - n_nodes, n_pairs)
        graphs = GraphInput(
            pairs=torch.from_numpy(self.pairs[:, pairs] + offsets),
            adjacency=self.adjacency[pairs],
            batch=torch.from_numpy(np.repeat(np.arange(len(chosen)), n_nodes)),
            noise=self.noise[nodes],
        )
        return GraphBatch(graphs, tuple(indices), self.shares(indices))

    def shares(self, indices: list[int]) -> Tensor:
        """(1,): 1/graphs."""
        return torch.tensor([1.0 / len(indices)], dtype=torch.float64)


@dataclass(frozen=True)
class EdgeMetrics:
    """Over all ordered pairs of all graphs, each undirected edge counted twice as in the paper."""

    bce: float
    """Binary cross-entropy, summed over the pairs of a graph and averaged over graphs."""
    error_percent: float
    """Wrong pairs among all pairs."""
    f1: float
    n: int
    """Graphs."""

    @staticmethod
    def of(sums: NDArray[np.float64]) -> EdgeMetrics:
        """From the sums of `edge_sums`."""
        bce, wrong, pairs, true_positive, n = sums.tolist()
        both = 2 * true_positive + wrong  # wrong = false positives + false negatives
        return EdgeMetrics(bce / n, 100 * wrong / pairs, 2 * true_positive / both if both else 1.0, int(n))


def edge_sums(logits: Tensor, graphs: GraphInput) -> Tensor:
    """(5,): Σ of the cross-entropy, wrong pairs, pairs, edges that were found, graphs; float64."""
    joined, found = graphs.adjacency > 0.5, logits > 0
    bce = nn.functional.binary_cross_entropy_with_logits(logits, graphs.adjacency, reduction="none").double().sum()
    counts = [(joined != found).sum(), bce.new_tensor(len(joined)), (joined & found).sum()]
    return torch.stack([bce, *(count.double() for count in counts), graphs.batch[-1].double() + 1])


@torch.no_grad()
def evaluate_side(
    model: GraphAutoencoder,
    side: random_graphs.RandomGraphs,
    batch_size: int = 64,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> NDArray[np.float64]:
    """The sums of `edge_sums` over all graphs."""
    batches = GraphBatches(side, model.config.embedding_dim, model.weight.dtype)
    rows = []
    for first in range(0, len(side), batch_size):
        last = min(first + batch_size, len(side))
        graphs = batches[list(range(first, last))].graphs.to(model.weight.device)
        rows.append(edge_sums(model(graphs), graphs).cpu().numpy())
        progress(last, len(side))
    return cast(NDArray[np.float64], np.sum(rows, axis=0))


def evaluate_file(model: nn.Module, header: Mapping[str, Any], request: Request) -> Evaluation:
    """`egnn-md evaluate` of a graph autoencoder: the test side unless another is asked for."""
    assert isinstance(model, GraphAutoencoder)
    side = request.split or "test"
    if side == "all":
        raise EvaluationError("graphs are divided into sides: --split train, valid or test")
    graphs = random_graphs.read(request.file, side)
    sums = evaluate_side(model, graphs, request.batch_size, request.progress)
    if not np.isfinite(sums).all():
        raise DataError(f"graphs of {request.file} come out as no number")
    found = EdgeMetrics.of(sums)
    return Evaluation(
        values=asdict(found) | {"repeats": graphs.repeats},
        columns=("side", "graphs", "BCE", "% error", "F1"),
        rows=[[side, str(found.n), f"{found.bce:.3g}", f"{found.error_percent:.3g}", f"{found.f1:.4f}"]],
        note=f"cross-entropy per graph; {graphs.repeats} of the graphs are isomorphic to one of an earlier side",
        plot=partial(plot_logits, model, graphs),
    )


@torch.no_grad()
def plot_logits(model: GraphAutoencoder, side: random_graphs.RandomGraphs, picture: Path) -> None:
    """What the decoder gives pairs with and without an edge, and its border."""
    batches = GraphBatches(side, model.config.embedding_dim, model.weight.dtype)
    graphs = batches[list(range(min(len(side), 200)))].graphs.to(model.weight.device)
    logits = model(graphs).cpu().numpy()
    joined = graphs.adjacency.cpu().numpy() > 0.5
    drawn, axes = figure(6.0)
    low, high = np.quantile(logits, (0.001, 0.999))
    bins = np.linspace(low, high, 80)
    axes.hist([logits[joined], logits[~joined]], bins, label=["edge", "no edge"], histtype="step", lw=1.5)
    axes.axvline(0.0, color="0.5", lw=0.8, ls="--", label="probability 1/2")
    axes.set(xlabel="logit of an edge, w |z_i - z_j|² + b", ylabel="pairs", yscale="log")
    axes.legend()
    drawn.savefig(picture, dpi=150)
