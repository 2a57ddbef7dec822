"""Compiled force calls are the eager ones, of the model as it is, from the user's own store; or they are not used."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms

from egnn_md.checkpoint import load, save
from egnn_md.compiled import forces, store
from egnn_md.compiled.package import CompilationError, JoinedWeights, NoCompiler, Package
from egnn_md.dynamics.batched import Batch, State, run
from egnn_md.graph import Graph, Prediction
from egnn_md.models.potential import LocalCall, Potential
from egnn_md.neighbors import GraphBuilder
from egnn_md.predict import Geometry, NotCompiledWarning, Predictor

Make = Callable[..., Potential]


@pytest.fixture
def model(packages: Path, random_potential: Make) -> Potential:
    """Other weights and reference energies than those of the example that was compiled."""
    model = random_potential(seed=5, reference_energies=(-1.0, -2.0, -3.0, -4.0, -5.0))
    assert forces.use_compiled(model, "auto")
    return model


def structure(n_atoms: int, seed: int = 0) -> Geometry:
    """Atoms about 1.5 Å apart, most of them in reach of most others."""
    rng = np.random.default_rng(seed)
    side = int(np.ceil(n_atoms ** (1 / 3)))
    lattice = np.array([(x, y, z) for x in range(side) for y in range(side) for z in range(side)][:n_atoms], float)
    positions = 1.5 * lattice + 0.2 * rng.normal(size=(n_atoms, 3))
    return Geometry(positions, rng.choice([1, 6, 7, 8, 9], n_atoms))


@pytest.mark.parametrize("n_atoms", [2, 3, 20, 90])  # one pair is an eager call
def test_compiled_calls_are_eager_calls(model: Potential, n_atoms: int) -> None:
    inputs = forces.example(model, n_atoms)
    assert model.compiled is not None
    for ours, eager in zip(model.compiled(*inputs), model.local_call(*inputs), strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("n_atoms", [1, 2])
def test_structures_without_pairs(model: Potential, n_atoms: int) -> None:
    inputs = torch.zeros(0, 3, dtype=torch.float64), torch.zeros(n_atoms, dtype=torch.int64), torch.zeros(2, 0).long()
    assert model.compiled is not None
    assert torch.equal(model.compiled(*inputs).energies, model.local_call(*inputs).energies)


def test_one_package_serves_every_model_of_the_shape(model: Potential, random_potential: Make) -> None:
    other = random_potential(seed=6)
    assert forces.find(other) == forces.find(model)
    different = [
        random_potential(dtype=torch.float32),
        random_potential(cutoff=4.5),
        random_potential(n_layers=3),
        random_potential(elements=(1, 6, 7, 8, 17)),
    ]
    for potential in different:
        assert not forces.find(potential)
        assert not forces.use_compiled(potential, "auto")


def in_place(model: Potential) -> None:
    with torch.no_grad():
        next(model.network.parameters()).mul_(1.1)


def through_data(model: Potential) -> None:
    """Which no version tells."""
    next(model.network.parameters()).data.mul_(1.1)


def other_memory(model: Potential) -> None:
    weight = next(model.network.parameters())
    weight.data = 1.1 * weight.data


def from_a_state(model: Potential) -> None:
    model.load_state_dict({name: 1.1 * value for name, value in model.state_dict().items()})


@pytest.mark.parametrize("change", [in_place, through_data, other_memory, from_a_state])
@pytest.mark.parametrize("inference", [False, True])
def test_the_weights_are_those_of_now(
    model: Potential, change: Callable[[Potential], None], inference: bool, tmp_path: Path
) -> None:
    inputs = forces.example(model, 8)
    assert model.compiled is not None
    with torch.inference_mode(inference):
        before = model.compiled(*inputs).energies
        model.compiled(*inputs)
    change(model)
    with torch.inference_mode(inference):
        after = model.compiled(*inputs).energies
        assert (after - before).abs().max() > 1e-3
        torch.testing.assert_close(after, model.local_call(*inputs).energies, rtol=1e-10, atol=1e-10)
    assert not any(weight.is_inference() for weight in model.parameters())
    save(model, tmp_path / "model.safetensors")
    torch.testing.assert_close(load(tmp_path / "model.safetensors").state_dict(), model.state_dict(), equal_nan=True)


@pytest.mark.parametrize("wrapped", [False, True])
def test_other_tensors_take_it_away(model: Potential, wrapped: bool) -> None:
    outer = torch.nn.Sequential(model) if wrapped else model
    outer.load_state_dict(outer.state_dict(), assign=True)
    assert model.compiled is None


def test_a_compiled_model_can_be_trained(model: Potential) -> None:
    """Copied, given other memory and called in between, while gradients wait for their way back."""
    inputs = forces.example(model, 8)
    assert model.compiled is not None
    compiled, optimizer = model.compiled, torch.optim.SGD(model.requires_grad_(True).parameters(), lr=1e-4)
    for _ in range(2):
        optimizer.zero_grad()
        loss = model.local_call(*inputs).energies.sum()
        copy.deepcopy(model)
        weight = next(model.parameters())
        weight.data = weight.data.clone()
        with torch.no_grad():
            torch.testing.assert_close(compiled(*inputs).energies, model.local_call(*inputs).energies)
        loss.backward()
        optimizer.step()
    assert model.compiled is compiled
    with torch.no_grad():
        torch.testing.assert_close(compiled(*inputs).energies, model.local_call(*inputs).energies)


def test_without_the_package_weights_have_memory_of_their_own(model: Potential) -> None:
    inputs = forces.example(model, 8)
    assert model.compiled is not None
    model.compiled(*inputs)
    model.drop_compiled()
    assert len(pickle.dumps(model)) < 3 * sum(value.nbytes for value in model.state_dict().values()) + 50_000


def test_threads_that_call_at_once_see_one_memory(model: Potential) -> None:
    inputs, compiled = forces.example(model, 8), model.compiled
    assert isinstance(compiled, forces.CompiledCall)
    for _ in range(20):
        compiled.part()
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda _: compiled(*inputs), range(3)))
        through_data(model)
        torch.testing.assert_close(compiled(*inputs).energies, model.local_call(*inputs).energies)


def test_another_precision_is_not_forced_through_the_package(model: Potential) -> None:
    single = [value.float() if value.is_floating_point() else value for value in forces.example(model, 8)]
    compiled = model.compiled
    assert compiled is not None
    model.float()
    assert model.compiled is None
    assert torch.equal(compiled(*single).gradient, model.local_call(*single).gradient)


def test_models_made_in_inference_mode(packages: Path, random_potential: Make) -> None:
    with torch.inference_mode():
        model = random_potential(seed=5)
        assert forces.use_compiled(model, "auto")
        assert model.compiled is not None
        inputs = forces.example(model, 8)
        torch.testing.assert_close(model.compiled(*inputs).forces, model.local_call(*inputs).forces)


def test_copies_start_without(model: Potential) -> None:
    inputs = forces.example(model, 8)
    assert model.compiled is not None
    expected = model.compiled(*inputs).forces
    pickled = pickle.dumps(model)
    assert len(pickled) < 3 * sum(value.nbytes for value in model.state_dict().values()) + 50_000
    for copied in (copy.deepcopy(model), pickle.loads(pickled)):
        assert copied.compiled is None
        torch.testing.assert_close(copied.local_call(*inputs).forces, expected)
    through_data(model)
    assert not torch.equal(model.compiled(*inputs).forces, expected)


def test_through_the_predictor(packages: Path, random_potential: Make) -> None:
    potential = random_potential(seed=3)
    compiled, eager = (Predictor(potential, compile=choice) for choice in ("auto", False))
    assert compiled.compiled
    assert not eager.compiled
    structures = [structure(n, seed=n) for n in (1, 2, 9, 30)]
    batch = compiled.many(structures)
    for ours, given in zip(batch, structures, strict=True):
        expected = eager(given.positions, given.atomic_numbers)
        again = compiled.fork()(given.positions, given.atomic_numbers)
        for found in (ours, again):
            assert found.energy == pytest.approx(expected.energy, abs=1e-9)
            np.testing.assert_allclose(found.forces, expected.forces, atol=1e-8)
            assert found.extrapolation == pytest.approx(expected.extrapolation, rel=1e-9)


@pytest.mark.parametrize("sizes", [(9, 2, 1, 30, 1, 12), (1, 9, 9), (9, 1, 1)])
def test_a_batch_in_parts(model: Potential, monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...]) -> None:
    """Structures in several calls, atoms without neighbours among them, as in one."""
    build = GraphBuilder(model.config.cutoff)
    asked = [structure(n, seed=n) for n in sizes]
    graph = Graph.collate([build(a.positions, a.atomic_numbers, a.cell, a.pbc) for a in asked])
    sides: list[Prediction] = []
    for pairs in (10**9, 25, 1):
        monkeypatch.setattr("egnn_md.models.potential.PART_PAIRS", pairs)
        sides.append(model(graph))
    backwards = torch.arange(graph.n_pairs - 1, -1, -1)  # pairs that do not lie structure by structure
    sides.append(model(replace(graph, pairs=graph.pairs[:, backwards])))
    for side in sides[1:]:
        for name in ("energy", "energies", "forces", "extrapolation"):
            torch.testing.assert_close(getattr(side, name), getattr(sides[0], name), rtol=1e-10, atol=1e-10)


def test_energy_holds_as_in_eager_runs(model: Potential, random_potential: Make) -> None:
    """The same trajectory as far as round-off lets it be, and a total energy that stays."""
    eager = random_potential(seed=5, reference_energies=(-1.0, -2.0, -3.0, -4.0, -5.0))
    totals = []
    for each in (model, eager):
        batch = Batch(each, [Atoms(a.atomic_numbers, a.positions) for a in (structure(9), structure(12, seed=1))])
        generator, total = torch.Generator().manual_seed(0), []
        start = batch.start(torch.full((2,), 300.0), generator)

        def observe(step: int, state: State, batch: Batch = batch, total: list[torch.Tensor] = total) -> None:
            total.append(state.energy + batch.kinetic_energy(state))

        run(batch, start, 60, 0.1, observe=observe)
        totals.append(torch.stack(total))
    torch.testing.assert_close(*totals, rtol=1e-9, atol=1e-7)
    assert (totals[0] - totals[0][0]).abs().max() < 0.02  # eV, of random forces


def test_stress(packages: Path, random_potential: Make) -> None:
    atoms, cell, pbc = structure(8), np.diag([3.1, 3.2, 3.3]), np.ones(3, dtype=bool)
    potential = random_potential(seed=3)
    found, expected = (
        Predictor(potential, compile=choice)(atoms.positions, atoms.atomic_numbers, cell, pbc, stress=True)
        for choice in ("auto", False)
    )
    assert found.stress is not None
    assert expected.stress is not None
    np.testing.assert_allclose(found.stress, expected.stress, atol=1e-9)


def test_forces_are_the_energys_slope(packages: Path, random_potential: Make) -> None:
    predictor, atoms, step = Predictor(random_potential(seed=3)), structure(9), 1e-4
    assert predictor.compiled
    found = predictor(atoms.positions, atoms.atomic_numbers).forces
    for atom, axis in ((0, 0), (4, 1), (8, 2)):
        energies = []
        for sign in (1, -1):
            moved = atoms.positions.copy()
            moved[atom, axis] += sign * step
            energies.append(predictor(moved, atoms.atomic_numbers).energy)
        assert found[atom, axis] == pytest.approx(-(energies[0] - energies[1]) / (2 * step), abs=1e-5)


def test_a_fresh_process_finds_it(packages: Path, random_potential: Make, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save(random_potential(seed=9), path)
    code = f"from egnn_md.predict import Predictor; print(Predictor({str(path)!r}).compiled)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_no_package_no_word(random_potential: Make) -> None:
    said: list[str] = []
    model = random_potential()
    assert not forces.use_compiled(model, "auto", said.append)
    assert model.compiled is None
    assert said == []


def test_false_means_never(model: Potential) -> None:
    assert not forces.use_compiled(model, False)
    assert model.compiled is None
    with pytest.raises(ValueError, match="must be True, False or 'auto', not 'yes'"):
        forces.use_compiled(model, "yes")  # type: ignore[arg-type]


def test_true_compiles_what_is_not_there(random_potential: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Potential] = []

    def refuse(model: Potential, **_: object) -> None:
        asked.append(model)
        raise CompilationError("the compiler is on strike")

    monkeypatch.setattr(forces, "compile_forces", refuse)
    with pytest.warns(NotCompiledWarning, match="the compiler is on strike; force calls are not compiled"):
        assert not Predictor(random_potential(), compile=True).compiled
    assert len(asked) == 1


def test_without_a_compiler_one_line_says_what_to_install(own_cache: Path, checkpoint_file: Path) -> None:
    """In a process of its own: torch remembers the compiler that it has found."""
    code = f"""
import warnings, torch
from egnn_md.predict import Predictor
with warnings.catch_warnings(record=True) as caught:
    print(Predictor({str(checkpoint_file)!r}, compile=True).compiled, len(caught), caught[0].message)
"""
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PATH": str(own_cache), "CXX": "no-such-compiler"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.startswith("False 1 compiling needs a C++ compiler: install g++ (apt install g++")
    assert len(done.stdout.splitlines()) == 1


def test_a_store_that_others_can_write_to_is_not_used(
    made_packages: Path, own_cache: Path, random_potential: Make
) -> None:
    shutil.copytree(made_packages / "egnn-md", own_cache / "egnn-md")
    assert Predictor(random_potential()).compiled
    (own_cache / "egnn-md").chmod(0o777)
    with pytest.warns(NotCompiledWarning, match="can be written by others"):
        assert not Predictor(random_potential()).compiled


@pytest.mark.parametrize("keep", [0, 1000, -1])
def test_a_cut_package_is_not_used(made_packages: Path, own_cache: Path, random_potential: Make, keep: int) -> None:
    shutil.copytree(made_packages / "egnn-md", own_cache / "egnn-md")
    (path,) = forces.find(random_potential()).values()
    path.write_bytes(path.read_bytes()[:keep])
    assert not Predictor(random_potential()).compiled
    with pytest.raises(CompilationError, match="cannot be loaded"):
        Package(path, JoinedWeights({"w": torch.zeros(1)}))


def test_code_that_differs_from_the_eager_call_is_thrown_away(
    own_cache: Path, made_packages: Path, random_potential: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiler that gets a derivative wrong by a millionth: nothing is kept."""
    right = forces.CompiledCall.__call__

    def wrong(self: forces.CompiledCall, *inputs: torch.Tensor) -> LocalCall:
        found = right(self, *inputs)
        return found._replace(gradient=found.gradient * (1.0 + 1e-6))

    (package,) = made_packages.rglob("package.pt2")
    monkeypatch.setattr(forces, "compile_package", lambda *inputs: shutil.copyfile(package, inputs[-1]))
    monkeypatch.setattr(forces.CompiledCall, "__call__", wrong)
    with pytest.raises(CompilationError, match="thrown away"):
        forces.compile_forces(random_potential())
    assert list(store.make_folder().iterdir()) == []
    monkeypatch.setattr(forces.CompiledCall, "__call__", right)
    forces.compile_forces(random_potential())
    assert list(forces.find(random_potential())) == ["isolated"]


def test_numbers_that_are_none_do_not_pass(random_potential: Make) -> None:
    model = random_potential()

    def nothing(*inputs: torch.Tensor) -> LocalCall:
        return LocalCall(*(torch.full_like(value, torch.nan) for value in model.local_call(*inputs)[:4]))

    with pytest.raises(CompilationError, match="differs"):
        forces.check(model, nothing)


def test_only_potentials_on_the_cpu(random_potential: Make) -> None:
    class Own(Potential):
        pass

    model = random_potential()
    own = Own(model.config)
    half, elsewhere = copy.deepcopy(model).half(), copy.deepcopy(model).to("meta")
    for refused, reason in ((own, "Own is not"), (half, "float16"), (elsewhere, "meta")):
        assert reason in str(forces.refusal(refused))
        assert not forces.use_compiled(refused, "auto")


def test_unknown_elements_are_refused_before_the_code_runs(packages: Path, random_potential: Make) -> None:
    predictor = Predictor(random_potential())
    assert predictor.compiled
    with pytest.raises(ValueError, match="knows H, C, N, O, F; the structure has Na"):
        predictor(np.array([[0.0, 0, 0], [2, 0, 0], [0, 2, 0]]), np.array([1, 11, 1]))


def test_the_verb_finds_what_is_there(packages: Path, checkpoint_file: Path, call: Callable[..., tuple]) -> None:
    code, out, err = call("compile", checkpoint_file, "--dtype", "float64")
    assert (code, err) == (0, [])
    assert "there already" in out
    assert "a force call of 20 atoms, float64" in out
    assert load(checkpoint_file) is not None


def test_the_verb_refuses_in_one_line(call: Callable[..., tuple], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise NoCompiler("compiling needs a C++ compiler: install g++")

    monkeypatch.setattr(forces, "compile_forces", fail)
    code, out, err = call("compile", "organic-xtb")
    assert (code, out, err) == (2, "", ["egnn-md: compiling needs a C++ compiler: install g++"])
    code, _, err = call("compile", "qm9")
    assert code == 2
    assert "only force calls of potentials" in err[0]
