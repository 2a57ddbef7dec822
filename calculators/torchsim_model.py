"""An EGNN potential in TorchSim: many systems in one call. `pip install 'egnn-md[torchsim]'`, Python 3.12 or newer.

TorchSim counts in eV and Å too; its cells hold vectors in columns, and its stress has ASE's sign.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch_sim.models.interface import ModelInterface

from egnn_md.predict import Geometry, Predictor


class EGNNModel(ModelInterface):  # type: ignore[misc]
    """What TorchSim's integrators and optimizers call.

    model: as `Predictor` takes it, and `device` and `dtype` ("float64", "float32", or torch's) too: those of the
    states. Stress is NaN where a system is not periodic in three directions. Further outputs: `energies` (n_atoms,)
    eV, each atom's share, and `extrapolation` (n_systems,).

    Raises UnsupportedElement and, for a state with `charge` or `spin` that the models do not describe, ValueError.
    """

    def __init__(
        self,
        model: Any = "organic-xtb",
        *,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "float64",
        compute_stress: bool = True,
    ) -> None:
        super().__init__()
        self.predictor = Predictor(model, device=device, dtype=dtype)
        self._device = torch.device(device)
        self._dtype = getattr(torch, str(dtype).removeprefix("torch."))
        self._compute_stress, self._compute_forces = compute_stress, True
        self._memory_scales_with = "n_atoms_x_density"

    @ModelInterface.compute_stress.setter  # type: ignore[untyped-decorator]
    def compute_stress(self, wanted: bool) -> None:
        """Whether stress is computed."""
        self._compute_stress = wanted

    @ModelInterface.compute_forces.setter  # type: ignore[untyped-decorator]
    def compute_forces(self, wanted: bool) -> None:
        """Whether forces are handed back; they come with the energy."""
        self._compute_forces = wanted

    def forward(self, state: Any, **_: Any) -> dict[str, torch.Tensor]:
        """A `SimState` -> energy (n_systems,) eV, forces (n_atoms, 3) eV/Å, stress (n_systems, 3, 3) eV/Å³ and more,
        in the state's dtype, detached.
        """
        charges = _charges(state, self.predictor.ions)
        positions = state.positions.numpy(force=True).astype(np.float64)
        numbers = state.atomic_numbers.numpy(force=True).astype(np.int64)
        cells = np.ascontiguousarray(state.cell.mT.numpy(force=True).astype(np.float64))
        pbc = state.pbc.numpy(force=True).astype(bool)
        cells = cells if pbc.any() else np.zeros_like(cells)
        ends = np.cumsum(np.bincount(state.system_idx.numpy(force=True)))[:-1]
        charges = charges or [None] * len(cells)
        parts = zip(np.split(positions, ends), np.split(numbers, ends), cells, charges, strict=True)
        geometries = [Geometry(x, z, cell, pbc, charge) for x, z, cell, charge in parts]
        results = self.predictor.many(geometries, stress=self._compute_stress and bool(pbc.all()))
        output = {
            "energy": np.array([result.energy for result in results]),
            "energies": np.concatenate([result.energies for result in results]),
            "extrapolation": np.array([result.extrapolation for result in results]),
        }
        if self._compute_forces:
            output["forces"] = np.concatenate([result.forces for result in results])
        if self._compute_stress:
            unknown = np.full((3, 3), np.nan)
            output["stress"] = np.stack([unknown if r.stress is None else r.stress for r in results])
        return {name: torch.from_numpy(array).to(self._device, self._dtype) for name, array in output.items()}


def _charges(state: Any, ions: bool) -> list[float | None]:
    """What the state says of each system's charge; empty if it says nothing, or zeros, which is what it says where
    nobody told it. Raises ValueError for charges and multiplicities that the model does not describe; a spin of 0 or 1
    says nothing.
    """
    spins, charges = (_values(state, name) for name in ("spin", "charge"))
    if not set(spins) <= {0, 1}:
        raise ValueError(f"state.spin is {spins}: this model describes closed shells only")
    if any(charges) and not ions:
        raise ValueError(f"state.charge is {charges}: this model describes neutral structures only")
    return [*charges] if any(charges) else []


def _values(state: Any, name: str) -> list[float]:
    values = getattr(state, name, None)
    return [] if values is None else [float(value) for value in torch.as_tensor(values).flatten().tolist()]
