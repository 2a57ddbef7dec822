"""Small molecules with made-up labels, and property models with random weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ase.build import molecule
from ase.collections import g2

from egnn_md.chemistry.targets import NAMES
from egnn_md.data.qm9 import Molecules
from egnn_md.models.property import PropertyConfig, PropertyModel
from egnn_md.training.property import fit_normalisation

ORGANIC = (1, 6, 7, 8)
SMALL: dict[str, Any] = {"hidden_dim": 8, "message_dim": 8, "n_layers": 1, "n_vectors": 2, "n_radial": 4}


def molecules(seed: int = 0) -> Molecules:
    """ASE's small molecules of H, C, N, O, and some with F on the test side, with made-up labels, some missing."""
    random = np.random.default_rng(seed)
    known = [molecule(name) for name in g2.names if set(molecule(name).numbers) <= set(ORGANIC)]
    known = [atoms for atoms in known if len(atoms) > 1 and atoms.numbers.sum() % 2 == 0]
    foreign = [molecule(name) for name in ("CH3Cl", "CF4", "HF") if 17 not in molecule(name).numbers]
    atoms = known + foreign
    targets = random.normal(size=(len(atoms), len(NAMES)))
    targets += np.array([[len(a)] for a in atoms])
    targets[random.random(targets.shape) < 0.3] = np.nan
    split = np.arange(len(atoms)) % 3
    split[len(known) :] = 2
    return Molecules(
        index=np.arange(1, len(atoms) + 1),
        n_atoms=np.array([len(a) for a in atoms]),
        atomic_numbers=np.concatenate([a.numbers for a in atoms]),
        positions=np.concatenate([a.positions for a in atoms]),
        targets=targets,
        split=split.astype(np.int8),
    )


def model_for(data: Molecules, network: str = "vectors") -> PropertyModel:
    torch.manual_seed(0)
    normalisation = fit_normalisation(data.having(ORGANIC), ORGANIC, network, NAMES)
    model = PropertyModel(PropertyConfig(ORGANIC, **normalisation, network=network, **SMALL))  # type: ignore[arg-type]
    model.familiarity.fit(torch.randn(400, 8), torch.arange(4).repeat(100))
    return model
