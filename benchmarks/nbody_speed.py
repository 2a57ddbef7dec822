"""The paper's velocity EGNN beside a literal implementation: same outputs, time of a forward and of a training step.

The literal one concatenates the inputs of every edge, as the equations are written. Batches of 100 systems of 5
particles, one thread, processor time (other work on the machine does not count); the two take turns, and the median
ratio is reported. With 4 neighbours, the maps that act on a particle (6 of ours, 4 of the literal one, 64 x 64 each)
weigh as much as those on its edges (2 of ours, 4 of the literal one, each 4 times): the arithmetic of ours is 1.5 times
less, not more.

    python benchmarks/nbody_speed.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

from _common import make_parser, parse, print_table, write_json


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__ or "", data=False, model=None)
    parser.add_argument("--batch", type=int, default=100, help="systems at once")
    parser.add_argument("--rounds", type=int, default=40, help="measurements of each")
    options = parse(parser, arguments)
    import torch
    from _literal_egnn import LiteralEGNN

    from egnn_md.data.nbody import generate
    from egnn_md.evaluation.nbody import particles_at
    from egnn_md.models.propagator import VelocityEGNN, VelocityEGNNConfig

    torch.manual_seed(0)
    ours = VelocityEGNN(VelocityEGNNConfig(1.0))
    literal = LiteralEGNN.like(ours)
    trajectories = generate("charged", options.batch, 5, 0, frames=(30, 40))
    start, end = (particles_at(trajectories, frame) for frame in (30, 40))
    with torch.no_grad():
        difference = float((ours(start, 1.0)[0] - literal(*start)).abs().max())

    def step(predict: Callable[[], torch.Tensor], model: torch.nn.Module) -> Callable[[], None]:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-9)

        def run() -> None:
            optimizer.zero_grad()
            (predict() - end.positions).square().mean().backward()
            optimizer.step()

        return run

    def forward(predict: Callable[[], torch.Tensor]) -> Callable[[], None]:
        def run() -> None:
            with torch.no_grad():
                predict()

        return run

    def predict_ours() -> torch.Tensor:
        return ours(start, 1.0)[0]

    def predict_literal() -> torch.Tensor:
        return literal(*start)

    forward_times = turns(forward(predict_ours), forward(predict_literal), options.rounds)
    step_times = turns(step(predict_ours, ours), step(predict_literal, literal), options.rounds)
    rows, result = [], {"largest_difference": difference}
    for name, times in (("forward", forward_times), ("training step", step_times)):
        ratio = statistics.median(b / a for a, b in times)
        rows.append([name, *(1e3 * statistics.median(part) for part in zip(*times, strict=True)), ratio])
        result[name.replace(" ", "_") + "_ratio"] = ratio
    print_table("VelocityEGNN, 4 layers, 64 features", ["", "ours, ms", "literal, ms", "times as fast"], rows)
    print(f"\nlargest difference of the outputs: {difference:.1e}")
    write_json(options.json, result)


def turns(one: Callable[[], None], other: Callable[[], None], rounds: int) -> list[tuple[float, float]]:
    """Processor seconds of both, measured in turns."""
    for _ in range(3):
        one()
        other()
    return [(_seconds(one), _seconds(other)) for _ in range(rounds)]


def _seconds(work: Callable[[], None]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
