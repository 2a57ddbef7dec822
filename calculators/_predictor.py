"""Structures as arrays to energies and forces: what the engines here call. Gives way to `egnn_md.predict`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from egnn_md.calculators.extrapolation import EXTRAPOLATION_LIMIT, warn_of_extrapolation
from egnn_md.calculators.model_source import ModelSource, parse_device, parse_dtype
from egnn_md.graph import Graph
from egnn_md.models.potential import Potential
from egnn_md.neighbors import GraphBuilder
from egnn_md.neighbors.lists import DEFAULT_SKIN

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


class Geometry(NamedTuple):
    positions: FloatArray
    atomic_numbers: IntArray
    cell: FloatArray
    pbc: BoolArray


@dataclass(frozen=True)
class Result:
    energy: float
    forces: FloatArray
    energies: FloatArray
    stress: FloatArray | None
    extrapolation: float


def refuse_charge(charge: float) -> None:
    """Raise ValueError for what the models do not describe."""
    if charge:
        raise ValueError(f"charge {charge:g}: this model describes neutral structures only")


class Predictor:
    def __init__(
        self,
        model: str | Path | Potential,
        *,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "float64",
        skin: float = DEFAULT_SKIN,
        compile: bool = False,
    ) -> None:
        source = ModelSource.of(model)
        self.model = source.load(parse_device(device), parse_dtype(dtype))
        if compile:
            self.model.compile_forces()
        self.label, self.skin = source.label, skin
        self.cutoff, self.elements = self.model.config.cutoff, self.model.config.elements
        self.graphs = GraphBuilder(self.cutoff, skin, device=self.model.device)
        self.warned = False

    def check(self, atomic_numbers: IntArray) -> None:
        self.model.check_elements(torch.from_numpy(np.asarray(atomic_numbers)))

    def __call__(
        self,
        positions: FloatArray,
        atomic_numbers: IntArray,
        cell: FloatArray,
        pbc: BoolArray,
        *,
        stress: bool = False,
    ) -> Result:
        graph = self.graphs(np.ascontiguousarray(positions), atomic_numbers, cell, pbc)
        return self._results(graph, [len(positions)], stress)[0]

    def many(self, structures: Sequence[Geometry], *, stress: bool = False) -> list[Result]:
        graphs = [GraphBuilder(self.cutoff, 0.0, device=self.model.device)(*structure) for structure in structures]
        return self._results(Graph.collate(graphs), [graph.n_atoms for graph in graphs], stress)

    def _results(self, graph: Graph, n_atoms: list[int], stress: bool) -> list[Result]:
        prediction = self.model(graph, stress=stress)
        energy = prediction.energy.tolist()
        forces = prediction.forces.numpy(force=True).astype(np.float64)
        if not math.isfinite(sum(energy) + float(np.vdot(forces, forces))):
            raise ValueError("the potential gave an energy or forces that are not finite for this structure")
        largest = float(prediction.extrapolation.max())
        if largest > EXTRAPOLATION_LIMIT and not self.warned:
            self.warned = True
            warn_of_extrapolation(largest, "this warning comes once", stacklevel=3)
        ends = np.cumsum(n_atoms)[:-1]
        parts = zip(
            energy,
            np.split(forces, ends),
            np.split(prediction.energies.numpy(force=True), ends),
            [None] * len(n_atoms) if prediction.stress is None else prediction.stress.numpy(force=True),
            np.split(prediction.extrapolation.numpy(force=True), ends),
            strict=True,
        )
        return [Result(e, f, shares, s, float(x.max())) for e, f, shares, s, x in parts]
