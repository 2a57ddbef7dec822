"""The ASE calculator: Atoms -> Graph, Prediction -> results. ASE's units are the package's: eV and Å."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import (
    CalculationFailed,
    Calculator,
    PropertyNotImplementedError,
    all_changes,
)
from ase.outputs import Properties, all_outputs
from torch import Tensor

from egnn_md.calculators.ase_inputs import AtomsInputs
from egnn_md.calculators.extrapolation import EXTRAPOLATION_LIMIT, ExtrapolationWarning, warn_of_extrapolation
from egnn_md.calculators.model_source import ModelSource, parse_device, parse_dtype
from egnn_md.calculators.options import refuse_unknown
from egnn_md.graph import Prediction
from egnn_md.models.potential import Potential
from egnn_md.neighbors import GraphBuilder
from egnn_md.neighbors.lists import DEFAULT_SKIN

Model = str | Path | Potential

_PERIODIC: Final = np.array([True, True, True]).tobytes()
_VOIGT: Final = ((0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1))


class OpenShellWarning(UserWarning):
    """An odd number of electrons, but the model describes closed shells."""


class EGNNCalculator(Calculator):  # type: ignore[misc]
    """Energy, forces and stress of neutral closed-shell structures from an EGNN potential.

    Parameters
    ----------
    model: name of a shipped potential, path of a checkpoint, a `Potential`, or a list of those: a committee, whose
        mean is reported and whose spread (standard deviation over the members, ddof 0) stands in
        `results["energy_std"]` (eV) and `results["forces_std"]` ((n_atoms, 3) eV/Å).
    device: "cpu" or "cuda".
    dtype: "float64" or "float32", precision of the network.
    skin: Å by which neighbour lists reach beyond the cutoff, so that they last for several steps.
    compile: compile the force call. The first call takes a minute or so, later ones about half the time: for long runs.

    Isolated, periodic and partly periodic structures; stress for those periodic in three directions, computed along
    with the forces. `results["extrapolation"]` is the largest signal of any atom (NaN if the model carries no
    statistics); above `EXTRAPOLATION_LIMIT` a calculator issues one `ExtrapolationWarning`.

    Raises ValueError for structures without atoms, elements the model does not know (UnsupportedElement), NaN
    positions, atoms closer than 0.1 Å, a charge (info["charge"], initial charges) or an open shell (info["spin"], the
    multiplicity, other than 1; initial magnetic moments); TypeError for unknown options.
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "energies", "forces", "stress"]
    default_parameters: ClassVar[dict[str, Any]] = {
        "model": "organic-xtb",
        "device": "cpu",
        "dtype": "float64",
        "skin": DEFAULT_SKIN,
        "compile": False,
    }
    atoms: Atoms | None
    results: dict[str, Any]

    def __init__(
        self,
        model: Model | Sequence[Model] = "organic-xtb",
        *,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "float64",
        skin: float = DEFAULT_SKIN,
        compile: bool = False,
        **unknown: Any,
    ) -> None:
        refuse_unknown("EGNNCalculator", unknown, self.default_parameters)
        self._inputs: AtomsInputs | None = None
        self._snapshot: Atoms | None = None
        self._sources: tuple[ModelSource, ...] = ()
        self._committee = False
        self._warned: set[type[Warning]] = set()
        super().__init__()
        self.set(model=model, device=device, dtype=dtype, skin=skin, compile=compile)

    # Options

    def set(self, **options: Any) -> dict[str, Any]:
        """Change options, as in the constructor; results are dropped and models loaded anew. Returns the options."""
        refuse_unknown("EGNNCalculator", options, self.default_parameters)
        if not options:
            return {}
        sources, committee = self._sources, self._committee
        if "model" in options:
            given = options["model"]
            committee = isinstance(given, Sequence) and not isinstance(given, str)
            sources = tuple(ModelSource.of(model) for model in (given if committee else [given]))
            if not sources:
                raise ValueError("a committee needs at least one model")
            labels = [source.label for source in sources]
            options["model"] = labels if committee else labels[0]
        for name in options.keys() & {"device", "dtype"}:
            options[name] = str(options[name]).removeprefix("torch.")
        self._load(sources, {**self.parameters, **options})
        self._sources, self._committee = sources, committee
        self.parameters.update(options)
        return options

    def _load(self, sources: Sequence[ModelSource], options: dict[str, Any]) -> None:
        device, dtype = parse_device(options["device"]), parse_dtype(options["dtype"])
        models = [source.load(device, dtype) for source in sources]
        if options["compile"]:
            for model in models:
                model.compile_forces()
        cutoff = max(model.config.cutoff for model in models)
        self._graphs = GraphBuilder(cutoff, options["skin"], device=device)
        self._models = models
        self._known_numbers = b""
        self.reset()

    def __getstate__(self) -> dict[str, Any]:
        loaded = ("_models", "_graphs", "_known_numbers")
        return {name: value for name, value in self.__dict__.items() if name not in loaded}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        kept: tuple[Any, ...] = self.atoms, self.results, self._inputs
        self._load(self._sources, self.parameters)
        self.atoms, self.results, self._inputs = kept

    # What ASE asks for

    def reset(self) -> None:
        """Forget the last structure and its results."""
        super().reset()
        self._inputs = None

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:
        """What has changed since the last calculation, exactly: ASE's list, and "charge" and "spin" in atoms.info."""
        if self._inputs is None:
            return [*all_changes, "charge", "spin"]
        return self._inputs.changes(atoms)

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True) -> Any:
        """ASE's entry point. Raises PropertyNotImplementedError for the stress of what is not periodic in 3D."""
        structure = self.atoms if atoms is None else atoms
        if structure is None:
            raise ValueError(f"{name} was asked for without atoms, and there is no earlier calculation")
        if name == "stress" and not structure.pbc.all():
            raise PropertyNotImplementedError(
                f"stress needs a structure periodic in three directions; this one has pbc={structure.pbc.tolist()}"
            )
        return super().get_property(name, atoms, allow_calculation)

    def export_properties(self) -> Properties:
        """The results that ASE has names for."""
        return Properties({name: value for name, value in self.results.items() if name in all_outputs})

    def get_spin_polarized(self) -> bool:
        """The models describe closed shells."""
        return False

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Fill `results` for these atoms, whatever `properties` asks for: all comes from one call of the network."""
        atoms = self.atoms if atoms is None else atoms
        if atoms is None:
            raise ValueError("there are no atoms to calculate")
        self.reset()  # if anything below fails, nothing old is left
        inputs = AtomsInputs(atoms)
        numbers = atoms.arrays["numbers"]
        self._check_elements(inputs.numbers, numbers)
        graph = self._graphs(atoms.arrays["positions"], numbers, atoms.cell.array, atoms.pbc)
        stress = inputs.pbc == _PERIODIC
        predictions = [model(graph, stress=stress) for model in self._models]
        results = _committee_results(predictions) if self._committee else _results(predictions[0])
        if not math.isfinite(results["energy"] + np.vdot(results["forces"], results["forces"])):
            raise CalculationFailed("the potential gave an energy or forces that are not finite for this structure")
        self._report(results["extrapolation"])
        self._snapshot = _copy_of(atoms, self._snapshot)
        self.atoms, self.results, self._inputs = self._snapshot, results, inputs

    def _check_elements(self, key: bytes, numbers: Any) -> None:
        """Raise UnsupportedElement; warn of an odd number of electrons. Not again for the same atoms."""
        if key == self._known_numbers:
            return
        for model in self._models:
            model.check_elements(torch.from_numpy(numbers))
        if numbers.sum() % 2:
            self._warn_once(
                OpenShellWarning,
                f"{numbers.sum()} electrons, an odd number: the neutral structure is an open shell, but the model "
                "describes closed shells",
            )
        self._known_numbers = key

    def _report(self, extrapolation: float) -> None:
        if extrapolation > EXTRAPOLATION_LIMIT and ExtrapolationWarning not in self._warned:
            self._warned.add(ExtrapolationWarning)
            hint = "calc.results['extrapolation'] goes on telling, this warning comes once"
            warn_of_extrapolation(extrapolation, hint, stacklevel=2)

    def _warn_once(self, category: type[Warning], message: str) -> None:
        if category not in self._warned:
            self._warned.add(category)
            warnings.warn(message, category, stacklevel=2)


def _copy_of(atoms: Atoms, last: Atoms | None) -> Atoms:
    """`atoms.copy()`, at a fraction of its cost where only arrays and info differ from `last`, an earlier copy."""
    if (
        last is None
        or not (type(atoms) is type(last) is Atoms)
        or atoms.constraints
        or last.constraints
        or atoms.cell.array.tobytes() != last.cell.array.tobytes()
        or atoms.pbc.tobytes() != last.pbc.tobytes()
    ):
        return atoms.copy()
    copy: Any = object.__new__(Atoms)
    copy.__dict__.update(last.__dict__)
    copy.arrays = {name: array.copy() for name, array in atoms.arrays.items()}
    copy.info = dict(atoms.info)
    return copy


def _array(tensor: Tensor) -> Any:
    """Float64 in numpy; shares memory where it can: a `Prediction` belongs to nobody else."""
    return tensor.numpy(force=True).astype(np.float64, copy=False)


def _results(prediction: Prediction) -> dict[str, Any]:
    energy = prediction.energy.item()
    results = {
        "energy": energy,
        "free_energy": energy,
        "energies": _array(prediction.energies),
        "forces": _array(prediction.forces),
        "extrapolation": prediction.extrapolation.max().item(),
    }
    if prediction.stress is not None:
        results["stress"] = _array(prediction.stress[0])[_VOIGT]
    return results


def _committee_results(predictions: list[Prediction]) -> dict[str, Any]:
    members = [_results(prediction) for prediction in predictions]
    results: dict[str, Any] = {name: np.mean([member[name] for member in members], axis=0) for name in members[0]}
    results["energy"] = results["free_energy"] = float(results["energy"])
    results["energy_std"] = float(np.std([member["energy"] for member in members]))
    results["forces_std"] = np.std([member["forces"] for member in members], axis=0)
    results["extrapolation"] = float(np.max([member["extrapolation"] for member in members]))
    return results
