"""The ASE calculator: Atoms -> Graph, Prediction -> results. ASE's units are the package's: eV and Å."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
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
from numpy.typing import NDArray

from egnn_md.calculators.ase_inputs import AtomsInputs
from egnn_md.calculators.options import refuse_unknown
from egnn_md.compiled.forces import Compile
from egnn_md.hessian import STEP, finite_difference_hessian
from egnn_md.model_source import ModelSource
from egnn_md.models.terms import EnergyTerm
from egnn_md.neighbors.lists import DEFAULT_SKIN
from egnn_md.predict import Geometry, Model, PredictionError, Predictor, Result, model_sources

_PERIODIC: Final = np.array([True, True, True]).tobytes()
_VOIGT: Final = ((0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1))


class OpenShellWarning(UserWarning):
    """An odd number of electrons, but the model describes closed shells."""


_NOT_GIVEN: Final = {
    "stresses": ": the stress of a single atom is not defined uniquely; stress is that of the whole cell",
    "magmom": ": the models describe closed shells",
    "magmoms": ": the models describe closed shells",
    "charges": ": this model has no charges",
    "dipole": ": this model has no charges",
    "polarizability": ": egnn-md predict gives it (alpha) from a property model",
}
"""Why a property that ASE has a name for is not among the results."""


class EGNNCalculator(Calculator):  # type: ignore[misc]
    """Energy, forces and stress of closed-shell structures from an EGNN potential, and charges and dipole moments from
    those that have them.

    Parameters
    ----------
    model: name of a shipped potential, path of a checkpoint, a `Potential`, or a list of those: a committee, whose
        mean is reported and whose spread (standard deviation over the members, ddof 0) stands in
        `results["energy_std"]` (eV) and `results["forces_std"]` ((n_atoms, 3) eV/Å).
    device: "cpu" or "cuda".
    dtype: "float64" or "float32", precision of the network.
    skin: Å by which neighbour lists reach beyond the cutoff, so that they last for several steps.
    compile: "auto" uses the compiled force call of `egnn-md compile` if there is one; True compiles it now, if need be;
        False does without.
    terms: energy terms beside the model's own (`egnn_md.models.terms`): a restraint, a wall.

    Isolated, periodic and partly periodic structures; stress for those periodic in three directions, computed along
    with the forces. `results["extrapolation"]` is the largest signal of any atom (NaN if the model carries no
    statistics); above `EXTRAPOLATION_LIMIT` a calculator issues one `ExtrapolationWarning`.

    Models with charges take ions: the charge follows from the structure and stands in `results["charge"]` (e);
    info["charge"], or initial charges, if they say another, are an error (ChargeError). Charges of atoms and, of
    isolated structures, the dipole moment (e·Å, about the origin) are properties.

    Raises ValueError for structures without atoms, elements the model does not know (UnsupportedElement), NaN
    positions, atoms closer than 0.1 Å, a charge that the model does not know (info["charge"], initial charges) or an
    open shell (info["spin"] or info["multiplicity"], 2S+1, other than 1; initial magnetic moments); TypeError for
    unknown options.

    >>> from ase.build import molecule
    >>> from ase.optimize import BFGS
    >>> atoms = molecule("CH3CH2OH")
    >>> atoms.calc = EGNNCalculator("organic-xtb")
    >>> start = atoms.get_potential_energy()  # eV
    >>> bool(BFGS(atoms, logfile=None).run(fmax=0.01, steps=200))  # eV/Å
    True
    >>> bool(atoms.get_potential_energy() < start)
    True
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "energies", "forces", "stress"]
    default_parameters: ClassVar[dict[str, Any]] = {
        "model": "organic-xtb",
        "device": "cpu",
        "dtype": "float64",
        "skin": DEFAULT_SKIN,
        "compile": "auto",
        "terms": (),
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
        compile: Compile = "auto",
        terms: Sequence[EnergyTerm] = (),
        **unknown: Any,
    ) -> None:
        refuse_unknown("EGNNCalculator", unknown, self.default_parameters)
        self._inputs: AtomsInputs | None = None
        self._snapshot: Atoms | None = None
        self._sources: tuple[ModelSource, ...] = ()
        self._committee = False
        self._warned_of_open_shell = False
        super().__init__()
        self.set(model=model, device=device, dtype=dtype, skin=skin, compile=compile, terms=tuple(terms))

    # Options

    def set(self, **options: Any) -> dict[str, Any]:
        """Change options, as in the constructor; results are dropped and models loaded anew. Returns the options."""
        refuse_unknown("EGNNCalculator", options, self.default_parameters)
        if not options:
            return {}
        sources, committee = self._sources, self._committee
        if "model" in options:
            sources, committee = model_sources(options["model"])
            labels = [source.label for source in sources]
            options["model"] = labels if committee else labels[0]
        for name in options.keys() & {"device", "dtype"}:
            options[name] = str(options[name]).removeprefix("torch.")
        self._load(sources, committee, {**self.parameters, **options})
        self._sources, self._committee = sources, committee
        self.parameters.update(options)
        return options

    def _load(self, sources: tuple[ModelSource, ...], committee: bool, options: dict[str, Any]) -> None:
        chosen = {name: value for name, value in options.items() if name != "model"}
        self._predictor = Predictor(sources if committee else sources[0], **chosen)
        electric = ["charges", "dipole"] if self._predictor.ions else []
        self.implemented_properties = [*type(self).implemented_properties, *electric]  # type: ignore[misc]
        self._known_numbers = b""
        self.reset()

    @property
    def compiled(self) -> bool:
        """Whether force calls go through code compiled ahead of time: all but those of periodic structures of models
        with charges, of single atoms and of very large structures.
        """
        return self._predictor.compiled

    def __getstate__(self) -> dict[str, Any]:
        loaded = ("_predictor", "_known_numbers")
        return {name: value for name, value in self.__dict__.items() if name not in loaded}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        kept: tuple[Any, ...] = self.atoms, self.results, self._inputs
        self._load(self._sources, self._committee, self.parameters)
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
        """ASE's entry point. Raises PropertyNotImplementedError for properties that there are not, saying why, and for
        the stress of what is not periodic in 3D.
        """
        if name not in self.implemented_properties:
            reason = _NOT_GIVEN.get(name, "")
            raise PropertyNotImplementedError(
                f"{name} is not offered{reason}; EGNNCalculator gives {', '.join(self.implemented_properties)}"
            )
        structure = self.atoms if atoms is None else atoms
        if structure is None:
            raise ValueError(f"{name} was asked for without atoms, and there is no earlier calculation")
        if name == "stress" and not structure.pbc.all():
            raise PropertyNotImplementedError(
                f"stress needs a structure periodic in three directions; this one has pbc={structure.pbc.tolist()}"
            )
        if name == "dipole" and structure.pbc.any():
            raise PropertyNotImplementedError(
                f"a dipole moment needs an isolated structure; this one has pbc={structure.pbc.tolist()}"
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
        inputs = AtomsInputs(atoms, ions=self._predictor.ions)
        numbers, stress = atoms.arrays["numbers"], inputs.pbc == _PERIODIC
        try:
            result = self._predictor(
                atoms.arrays["positions"], numbers, atoms.cell.array, atoms.pbc, inputs.charge, stress=stress
            )
        except PredictionError as error:
            raise CalculationFailed(str(error)) from error
        self._warn_of_open_shell(inputs.numbers, numbers, result.charge)
        self._snapshot = _copy_of(atoms, self._snapshot)
        self.atoms, self.results, self._inputs = self._snapshot, _results(result), inputs

    def expected_force_error(self, extrapolation: float) -> float:
        """`Predictor.expected_force_error`, eV/Å, of `results["extrapolation"]`: NaN where the model does not know."""
        return self._predictor.expected_force_error(extrapolation)

    def get_hessian(self, atoms: Atoms | None = None, step: float = STEP) -> NDArray[np.float64]:
        """∂²E/∂x_a∂x_b, (3 n_atoms, 3 n_atoms) eV/Å², symmetric; coordinates in the order x, y, z of atom 0, x of 1, …

        From forces at displaced positions, in batches (see `finite_difference_hessian`; `step` in Å); a committee's is
        that of its mean. Constraints are ignored. Wants float64. Raises as `calculate` does.
        """
        atoms = self.atoms if atoms is None else atoms
        if atoms is None:
            raise ValueError("there are no atoms to calculate")
        charge = AtomsInputs(atoms, ions=self._predictor.ions).charge  # refuses what the model does not describe
        numbers, cell, pbc = atoms.arrays["numbers"], atoms.cell.array, atoms.pbc

        def forces_of(copies: NDArray[np.float64]) -> NDArray[np.float64]:
            structures = [Geometry(positions, numbers, cell, pbc, charge) for positions in copies]
            return np.stack([result.forces for result in self._predictor.many(structures)])

        return finite_difference_hessian(forces_of, atoms.positions, step)

    def _warn_of_open_shell(self, key: bytes, numbers: Any, charge: float | None) -> None:
        """Warn, once, of an odd number of electrons. Not looked at again for the same atoms."""
        if key == self._known_numbers:
            return
        self._known_numbers = key
        electrons = int(numbers.sum()) - round(charge or 0.0)
        if electrons % 2 and not self._warned_of_open_shell:
            self._warned_of_open_shell = True
            kind = "neutral structure" if not charge else f"structure, of charge {round(charge):+d},"
            warnings.warn(
                f"{electrons} electrons, an odd number: the {kind} is an open shell, but the model describes closed "
                "shells",
                OpenShellWarning,
                stacklevel=3,
            )


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


def _results(result: Result) -> dict[str, Any]:
    results: dict[str, Any] = {
        "energy": result.energy,
        "free_energy": result.energy,
        "energies": result.energies,
        "forces": result.forces,
        "extrapolation": result.extrapolation,
    }
    if result.stress is not None:
        results["stress"] = result.stress[_VOIGT]
    if result.charges is not None:
        results |= {"charge": result.charge, "charges": result.charges}
    if result.dipole is not None:
        results["dipole"] = result.dipole
    if result.forces_std is not None:
        results |= {"energy_std": result.energy_std, "forces_std": result.forces_std}
    return results
