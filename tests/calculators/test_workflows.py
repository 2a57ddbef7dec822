"""Programs that take any ASE calculator by its import path, or as an object, take ours."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from egnn_md.calculators import EGNNCalculator


@pytest.mark.filterwarnings("ignore")  # of geomeTRIC
def test_geometric_optimizes_with_the_calculator_by_its_path(
    shipped: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("geometric", reason="geomeTRIC is not installed: pip install geometric")
    from geometric.optimize import run_optimizer

    monkeypatch.chdir(tmp_path)
    stretched = molecule("H2O")
    stretched.positions[1] *= 1.1
    stretched.write("water.xyz")
    progress = run_optimizer(
        engine="ase",
        input="water.xyz",
        ase_class="egnn_md.calculators.EGNNCalculator",
        ase_kwargs=json.dumps({"model": shipped}),
        qccnv=True,
    )
    relaxed = Atoms(stretched.symbols, progress.xyzs[-1], calculator=EGNNCalculator(shipped))
    assert np.linalg.norm(relaxed.get_forces(), axis=1).max() < 0.05


def test_sella_finds_the_flat_ammonia_with_our_hessian(shipped: str) -> None:
    sella = pytest.importorskip("sella", reason="Sella is not installed: pip install sella")
    atoms = molecule("NH3")
    atoms.positions[0, 2] = atoms.positions[1:, 2].mean() + 0.05
    atoms.calc = EGNNCalculator(shipped)
    assert sella.Sella(atoms, order=1, hessian_function=atoms.calc.get_hessian, logfile=None).run(fmax=0.01)
    assert np.ptp(atoms.positions[:, 2]) < 0.02
    masses = np.repeat(atoms.get_masses(), 3) ** -0.5
    curvatures = np.linalg.eigvalsh(atoms.calc.get_hessian(atoms) * masses[:, None] * masses)
    assert (curvatures < -0.1).sum() == 1


def test_charge_and_spin_as_mlipaudit_sets_them(familiar_file: Path) -> None:
    atoms = molecule("H2O")
    atoms.calc = EGNNCalculator(familiar_file)
    plain = atoms.get_potential_energy()
    atoms.info.update(charge=0.0, spin=1.0)
    assert atoms.get_potential_energy() == plain
    atoms.info["charge"] = 1.0
    with pytest.raises(ValueError, match="charge"):
        atoms.get_potential_energy()


def test_json_of_the_import_path_is_all_that_a_workflow_keeps(familiar_file: Path) -> None:
    """What atomate2 and jobflow store: a module, a name and keyword arguments."""
    import importlib

    stored = json.loads(
        json.dumps({"@module": "egnn_md.calculators", "@callable": "EGNNCalculator", "model": str(familiar_file)})
    )
    made = getattr(importlib.import_module(stored.pop("@module")), stored.pop("@callable"))(**stored)
    assert isinstance(made, EGNNCalculator)


def test_ipi_protocol_through_ases_socket_client(familiar_file: Path) -> None:
    """The way for programs that speak i-PI's protocol: FHI-aims, CP2K, …"""
    import threading
    import uuid

    from ase.calculators.socketio import SocketClient, SocketIOCalculator

    name = f"egnn-md-test-{uuid.uuid4().hex}"
    ours = molecule("CH3CH2OH")
    ours.calc = EGNNCalculator(familiar_file)
    asked = molecule("CH3CH2OH")
    asked.rattle(0.05, seed=1)
    expected = asked.copy()
    expected.calc = EGNNCalculator(familiar_file)
    with SocketIOCalculator(unixsocket=name) as server:
        client = threading.Thread(target=lambda: SocketClient(unixsocket=name).run(ours, use_stress=False))
        client.start()
        asked.calc = server
        assert asked.get_potential_energy() == pytest.approx(expected.get_potential_energy(), rel=1e-10)
        np.testing.assert_allclose(asked.get_forces(), expected.get_forces(), rtol=1e-8, atol=1e-8)
    client.join(20)
    assert not client.is_alive()
