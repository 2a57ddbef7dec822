"""TorchSim with an EGNN potential: its own validation, and beside the ASE calculator."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from egnn_md.calculators import EGNNCalculator
from egnn_md.checkpoint import save
from egnn_md.models.potential import Potential

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what TorchSim imports
    ts = pytest.importorskip("torch_sim", reason="TorchSim is not installed: pip install 'egnn-md[torchsim]'")


def periodic_water(seed: int) -> Atoms:
    atoms = molecule("H2O")
    atoms.set_cell([[3.5, 0, 0], [0.4, 3.6, 0], [-0.3, 0.5, 3.4 + 0.1 * seed]])
    atoms.pbc = True
    atoms.rattle(0.05, seed=seed)
    return atoms


SYSTEMS = [
    [molecule("CH3CH2OH"), molecule("H2O"), molecule("CH4")],
    [periodic_water(0), periodic_water(1)],
]


def test_torchsim_validates_it(familiar_potential: Callable[..., Potential], tmp_path: Path) -> None:
    from torch_sim.models.interface import validate_model_outputs

    from egnn_md.calculators.torchsim_model import EGNNModel

    save(familiar_potential(elements=(1, 6, 12, 14, 26), reference_energies=(-1.0,) * 5), tmp_path / "m.safetensors")
    model = EGNNModel(tmp_path / "m.safetensors")
    validate_model_outputs(model, torch.device("cpu"), torch.float64)


@pytest.mark.parametrize("systems", SYSTEMS, ids=["molecules", "periodic"])
def test_outputs_are_those_of_the_ase_calculator(systems: list[Atoms], familiar_file: Path) -> None:
    from egnn_md.calculators.torchsim_model import EGNNModel

    state = ts.io.atoms_to_state(systems, torch.device("cpu"), torch.float64)
    output = EGNNModel(familiar_file)(state)
    start = 0
    for k, atoms in enumerate(systems):
        atoms = atoms.copy()
        atoms.calc = EGNNCalculator(familiar_file)
        assert output["energy"][k].item() == pytest.approx(atoms.get_potential_energy(), rel=1e-12)
        expected = atoms.get_forces()
        found = output["forces"][start : start + len(atoms)].numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10 * np.abs(expected).max())
        if atoms.pbc.all():
            expected = atoms.get_stress(voigt=False)
            np.testing.assert_allclose(output["stress"][k].numpy(), expected, atol=1e-10 * np.abs(expected).max())
        else:
            assert output["stress"][k].isnan().all()
        start += len(atoms)


def test_a_relaxation_of_several_molecules(shipped: str) -> None:
    from egnn_md.calculators.torchsim_model import EGNNModel

    model = EGNNModel(shipped, compute_stress=False)
    state: Any = ts.optimize(
        system=[molecule("H2O"), molecule("CH4")],
        model=model,
        optimizer=ts.Optimizer.fire,
        convergence_fn=ts.generate_force_convergence_fn(force_tol=0.01, include_cell_forces=False),
        max_steps=500,
    )
    for atoms in ts.io.state_to_atoms(state):
        atoms.calc = EGNNCalculator(shipped)
        assert np.linalg.norm(atoms.get_forces(), axis=1).max() < 0.02


def test_refusals(familiar_file: Path) -> None:
    from egnn_md.calculators.torchsim_model import EGNNModel

    model = EGNNModel(familiar_file)
    with pytest.raises(ValueError, match="the structure has Si"):
        model(ts.io.atoms_to_state([molecule("SiH4")], torch.device("cpu"), torch.float64))
    charged = ts.io.atoms_to_state([molecule("H2O")], torch.device("cpu"), torch.float64)
    charged._system_extras["charge"] = torch.tensor([1.0])
    with pytest.raises(ValueError, match=r"state\.charge"):
        model(charged)
