"""Batches of labelled samples, in an order that depends on the seed and the step alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler


class Batches(Protocol):
    """Samples of any task, indexed by a list of numbers instead of one: a batch is a few array operations.

    A batch is a frozen dataclass with a method `to(device)` and a field `share`, (k,) float64: what the sums of its
    loss are multiplied by, `shares(indices)` unless several processes work on one step.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, indices: list[int], /) -> Any: ...

    def shares(self, indices: list[int]) -> Tensor:
        """One over what the loss of these samples is a mean of."""
        ...


class StepBatch(Dataset[Any]):
    """The part of a step's batch that one of several processes works on."""

    def __init__(self, batches: Batches, rank: int, world_size: int) -> None:
        self.batches, self.rank, self.world_size = batches, rank, world_size

    def __getitem__(self, indices: list[int]) -> Any:
        mine = self.batches[indices[self.rank :: self.world_size]]
        return replace(mine, share=self.batches.shares(indices) * self.world_size)


class StepSampler(Sampler[list[int]]):
    """The samples of each step up to `max_steps`: one permutation after another, of `seed` and the pass alone.

    `first_step` is asked when iteration begins, so that a resumed run goes on where its checkpoint stood.
    """

    def __init__(
        self, n_samples: int, batch_size: int, max_steps: int, seed: int, first_step: Callable[[], int]
    ) -> None:
        self.n_samples, self.max_steps, self.seed, self.first_step = n_samples, max_steps, seed, first_step
        self.batch_size = min(batch_size, n_samples)

    def __len__(self) -> int:
        return self.max_steps

    def __iter__(self) -> Iterator[list[int]]:
        per_pass = self.n_samples // self.batch_size
        order_pass = -1
        order: NDArray[np.int64] = np.empty(0, np.int64)
        for step in range(self.first_step(), self.max_steps):
            this_pass, place = divmod(step, per_pass)
            if this_pass != order_pass:
                order, order_pass = np.random.default_rng([self.seed, this_pass]).permutation(self.n_samples), this_pass
            yield order[place * self.batch_size : (place + 1) * self.batch_size].tolist()
