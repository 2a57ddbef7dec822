"""Small flow maps with random weights, and molecules for them to move."""

from __future__ import annotations

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from torch import Tensor

from egnn_md.chemistry.units import BOLTZMANN
from egnn_md.models.flow import FlowConfig, FlowMap


def random_flow(
    seed: int = 0, dtype: torch.dtype = torch.float64, strength: float = 1.0, **settings: object
) -> FlowMap:
    """A flow map of H, C, O that moves molecules by nonsense; `strength` scales its kicks and energies."""
    torch.manual_seed(seed)
    sizes: dict[str, object] = {"hidden_dim": 16, "message_dim": 16, "n_vectors": 4, "n_radial": 6}
    config = FlowConfig((1, 6, 8), (-13.0, -1000.0, -2000.0), **{**sizes, **settings})  # type: ignore[arg-type]
    model = FlowMap(config).to(dtype).eval().requires_grad_(False)
    model.pair_output.weight *= strength
    return model


def moving(name: str = "CH3CH2OH", temperature: float = 300.0, seed: int = 0) -> Atoms:
    """A molecule with velocities."""
    atoms = molecule(name)
    width = np.sqrt(BOLTZMANN * temperature * atoms.get_masses())[:, None]
    atoms.set_momenta(width * np.random.default_rng(seed).standard_normal((len(atoms), 3)))
    return atoms


def inputs(model: FlowMap, atoms: Atoms, substep: float) -> tuple[Tensor, ...]:
    """Arguments of `FlowMap.forward` for these atoms."""
    n = len(atoms)
    return (
        torch.tensor(atoms.positions),
        torch.tensor(atoms.get_momenta()),
        model.species(torch.tensor(atoms.numbers)),
        torch.tensor(atoms.get_masses())[:, None],
        torch.triu_indices(n, n, 1),
        torch.full((n, 1), substep, dtype=torch.float64),
    )
