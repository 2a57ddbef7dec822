"""Laws of the graph autoencoders: symmetry, what breaks it, the paper's decoder, checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from egnn_md.checkpoint import load, save
from egnn_md.paper.autoencoder import DECODER_UNIT, Encoder, GraphAutoencoder, GraphAutoencoderConfig, GraphInput

ENCODERS = get_args(Encoder)


def ring(n: int, dim: int = 4, seed: int = 0) -> GraphInput:
    """A ring of n nodes: all nodes are alike."""
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.tensor([[i, j] for i in range(n) for j in range(n) if i != j]).T
    adjacency = (((pairs[0] - pairs[1]) % n == 1) | ((pairs[1] - pairs[0]) % n == 1)).double()
    noise = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    return GraphInput(pairs, adjacency, torch.zeros(n, dtype=torch.int64), noise)


def model(encoder: str, **options: Any) -> GraphAutoencoder:
    """With weights large enough for every term to matter."""
    torch.manual_seed(1)
    config = GraphAutoencoderConfig(encoder, embedding_dim=4, hidden_dim=8, n_layers=2, **options)  # type: ignore[arg-type]
    made = GraphAutoencoder(config).double().requires_grad_(False)
    for p in made.encoder.parameters():
        p.data = torch.randn(p.shape, dtype=torch.float64) * max(p.shape[-1], 4) ** -0.5
    return made


@pytest.mark.parametrize("encoder", ["egnn", "radial-field"])
def test_the_embedding_moves_with_the_noise(encoder: str) -> None:
    net, graph = model(encoder), ring(6)
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
    mirror = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    z = net.encode(graph)
    assert (z - graph.noise).abs().max() > 1e-2  # something acts
    for q in (turn, turn @ mirror):
        moved = graph._replace(noise=graph.noise @ q + 1.0)
        assert torch.allclose(net.encode(moved), z @ q + 1.0, rtol=0, atol=1e-12 * float(z.abs().max()) + 1e-13)
        assert torch.allclose(net(moved), net(graph), atol=1e-11)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_order_of_nodes_does_not_matter(encoder: str) -> None:
    net, graph = model(encoder), ring(6)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    place = torch.argsort(order)
    moved = graph._replace(pairs=place[graph.pairs], noise=graph.noise[order])
    assert torch.allclose(net(moved), net(graph), atol=1e-11)
    assert net(graph).std() > 0 or encoder == "gnn"


def test_without_noise_alike_nodes_stay_alike() -> None:
    """What the noise is for: all nodes of a ring have one embedding, and all pairs one probability."""
    z = model("gnn").encode(ring(6))
    assert torch.allclose(z, z[:1].expand_as(z), atol=1e-12)
    for encoder in ("noise-gnn", "egnn", "radial-field"):
        z = model(encoder).encode(ring(6))
        assert (z - z[:1]).abs().max() > 1e-3


@pytest.mark.parametrize(("encoder", "size"), [("egnn", 1), ("radial-field", 1), ("gnn", 4), ("noise-gnn", 4)])
def test_only_a_decoder_of_gnns_tells_dimensions_apart(encoder: str, size: int) -> None:
    """As in the authors' code: per dimension a weight, of both signs at the start; with symmetry, one for all."""
    net = model(encoder)
    assert net.weight.shape == (size,)
    assert bool((net.weight > 0).any()) == (size > 1)
    z, graph = torch.randn(6, 4, dtype=torch.float64), ring(6)
    i, j = graph.pairs
    expected = sum(10 * net.weight[k % size] * (z[i, k] - z[j, k]) ** 2 for k in range(4)) + 10 * net.bias
    assert torch.allclose(net.decode(z, graph.pairs), expected)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder_reads_the_edges(encoder: str) -> None:
    graph = ring(6)
    other = graph._replace(adjacency=1 - graph.adjacency)
    assert not torch.allclose(model(encoder).encode(graph), model(encoder).encode(other), atol=1e-6)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_batch_is_a_loop(encoder: str) -> None:
    net, one, other = model(encoder), ring(5), ring(7, seed=1)
    together = GraphInput(
        torch.cat([one.pairs, other.pairs + 5], 1),
        torch.cat([one.adjacency, other.adjacency]),
        torch.cat([one.batch, other.batch + 1]),
        torch.cat([one.noise, other.noise]),
    )
    assert torch.allclose(net(together), torch.cat([net(one), net(other)]), atol=1e-11)


def test_the_decoder_is_the_papers() -> None:
    net = model("egnn")
    net.weight.data.fill_(-0.7 / DECODER_UNIT)
    net.bias.data.fill_(0.3 / DECODER_UNIT)
    z = torch.randn(5, 4, dtype=torch.float64)
    found = net.decode(z, torch.tensor([[0, 3, 2], [1, 4, 2]]))

    def expected(i: int, j: int) -> Tensor:
        return -0.7 * ((z[i] - z[j]) ** 2).sum() + 0.3

    assert torch.allclose(found, torch.stack([expected(0, 1), expected(3, 4), expected(2, 2)]))


def test_soft_edges_silence_pairs() -> None:
    """With φ_inf = 0 no message arrives, so that the edges of the graph no longer matter to the features."""
    graph = ring(6)
    net = model("gnn", soft_edges=True)
    assert not torch.allclose(net.encode(graph), net.encode(graph._replace(adjacency=1 - graph.adjacency)))
    for layer in net.encoder.layers:  # type: ignore[union-attr]
        layer.soft_edge.weight.data.zero_()  # type: ignore[union-attr]
        layer.soft_edge.bias.data.fill_(-1e3)  # type: ignore[union-attr]
    assert torch.allclose(net.encode(graph), net.encode(graph._replace(adjacency=1 - graph.adjacency)))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_checkpoints_hold_the_whole_model(encoder: str, tmp_path: Path) -> None:
    net = model(encoder)
    save(net, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    assert torch.equal(again(ring(6)), net(ring(6)))


def test_what_cannot_be_is_refused() -> None:
    for change in ({"encoder": "transformer"}, {"embedding_dim": 0}, {"hidden_dim": 1.5}):
        with pytest.raises(ValueError, match="must be"):
            GraphAutoencoderConfig(**change)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="radial field does not have"):
        GraphAutoencoderConfig("radial-field", soft_edges=True)
