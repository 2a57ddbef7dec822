"""Particles in 2 to 10 dimensions, all through the same code: cost, equivariance, errors of trained propagators.

The cost is that of a training step of the paper's velocity EGNN; equivariance is tried in float64 with rotations and
reflections; errors, with --train, are those of integrators trained here on systems made here, beside constant velocity.
An approach by spherical harmonics, such as e3nn's, is bound to three dimensions and has no column here.

    python benchmarks/dimensions.py --train 5 10
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _common import make_parser, parse, print_table, write_json

DIMENSIONS = (2, 3, 5, 10)
SIDES = {"train": 1000, "valid": 200, "test": 500}
CONFIG = """
task = "nbody"
[data]
files = ["nbody.npz"]
[training]
max_steps = {steps}
batch_size = 100
optimizer = "adam"
learning_rate = 5e-3
warmup_steps = 20
schedule = "cosine"
loss_scale = 0.02
substeps = [10, 20]
clip_norm = 1.0
ema_decay = 0.99
validate_every = 200
checkpoint_every = 1000
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__ or "", data=False)
    parser.add_argument("--batch", type=int, default=100, help="systems at once")
    parser.add_argument("--rounds", type=int, default=20, help="measurements of each dimension")
    parser.add_argument("--train", type=int, nargs="*", default=[], help="dimensions to train an integrator in")
    parser.add_argument("--steps", type=int, default=600, help="steps of these trainings")
    options = parse(parser, arguments)
    result: dict[str, Any] = {"cost": cost(options.batch, options.rounds), "equivariance": equivariance()}
    rows = []
    for n_dim in options.train:
        learned, straight = trained(n_dim, options.steps)
        rows.append([n_dim, learned, straight, straight / learned])
        result[f"trained_{n_dim}"] = {"mse": learned, "constant_velocity": straight}
    if rows:
        columns = ["dimensions", "integrator", "constant velocity", "ratio"]
        print_table("mean squared error, frame 30 -> 40, test side", columns, rows)
    write_json(options.json, result)


def cost(batch: int, rounds: int) -> dict[str, float]:
    """Milliseconds of a training step by dimension; the dimensions take turns."""
    import torch

    from egnn_md.models.propagator import Particles, VelocityEGNN, VelocityEGNNConfig

    model = VelocityEGNN(VelocityEGNNConfig(1.0))
    times: dict[int, list[float]] = {n_dim: [] for n_dim in DIMENSIONS}
    for _ in range(rounds):
        for n_dim in DIMENSIONS:
            particles = Particles(torch.randn(batch, 5, n_dim), torch.randn(batch, 5, n_dim), torch.ones(batch, 5, 5))
            start = time.perf_counter()
            model(particles, 1.0)[0].square().mean().backward()
            times[n_dim].append(1e3 * (time.perf_counter() - start))
    ratios = {n: statistics.median(a / b for a, b in zip(times[n], times[3], strict=True)) for n in DIMENSIONS}
    rows = [[n, statistics.median(times[n]), ratios[n]] for n in DIMENSIONS]
    print_table("training step of the velocity EGNN", ["dimensions", "ms", "of 3 dimensions"], rows)
    return {str(n): ratio for n, ratio in ratios.items()}


def equivariance(n_systems: int = 20) -> dict[str, float]:
    """Largest deviation under rotations and reflections over the largest displacement, float64."""
    import torch

    from egnn_md.models import propagator as p

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64)

    torch.manual_seed(0)
    models = {
        "velocity EGNN": p.VelocityEGNN(p.VelocityEGNNConfig(1.0)).double(),
        "integrator": p.IntegratorPropagator(p.IntegratorConfig(1.0)).double(),
    }
    found = {}
    for name, model in models.items():
        for n_dim in DIMENSIONS:
            start = p.Particles(normal(n_systems, 5, n_dim), normal(n_systems, 5, n_dim), torch.ones(1, 1, 1).double())
            start = start._replace(couplings=start.couplings.expand(n_systems, 5, 5).contiguous())
            turn = torch.linalg.qr(normal(n_dim, n_dim))[0]
            mirror = torch.eye(n_dim, dtype=torch.float64)
            mirror[0, 0] = -1.0
            worst = 0.0
            for q in (turn, turn @ mirror):  # one of the two is a rotation, the other a reflection
                moved = start._replace(positions=start.positions @ q, velocities=start.velocities @ q)
                with torch.no_grad():
                    expected, turned = (model(each, 1.0, n_substeps=50)[0] for each in (start, moved))
                size = (expected - start.positions).abs().max()
                worst = max(worst, float((expected @ q - turned).abs().max() / size))
            found[f"{name}, {n_dim}"] = worst
    print_table("equivariance, float64", ["", "relative deviation"], [[k, f"{v:.1e}"] for k, v in found.items()])
    return found


def trained(n_dim: int, steps: int) -> tuple[float, float]:
    """Mean squared errors on the test side: of an integrator trained here, and of constant velocity."""
    import numpy as np

    from egnn_md.checkpoint import load
    from egnn_md.data import nbody
    from egnn_md.evaluation.nbody import squared_errors
    from egnn_md.training.loop import Resources, train

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sides = {
            side: nbody.generate("charged", count, 5, (n_dim, k), n_dim, (30, 40))
            for k, (side, count) in enumerate(SIDES.items())
        }
        nbody.write(folder / "nbody.npz", sides)
        (folder / "config.toml").write_text(CONFIG.format(steps=steps))
        resources = Resources(accelerator="cpu", progress=False)
        model = load(train(folder / "config.toml", output=folder / "run", resources=resources))
    test = sides["test"]
    learned = float(squared_errors(model, test, n_substeps=100).mean())
    flown = test.positions[:, 0] + nbody.duration(30, 40) * test.velocities[:, 0]
    return learned, float(np.square(flown - test.positions[:, 1]).mean())


if __name__ == "__main__":
    main()
