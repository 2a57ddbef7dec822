"""QM9's properties as an ASE calculator: `atoms.calc.results["gap"]`, and the energy that ASE has a name for."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.outputs import Properties, all_outputs

from egnn_md.checkpoint import load
from egnn_md.chemistry.structures import structure_of
from egnn_md.chemistry.targets import BY_NAME, MEV_PER_HARTREE
from egnn_md.models.property import FAR, PropertyModel
from egnn_md.options import parse_device, parse_dtype
from egnn_md.predict import ExtrapolationWarning


class EGNNPropertyCalculator(Calculator):  # type: ignore[misc]
    """Properties of an isolated molecule at its minimum.

    Of QM9's twelve ASE has a name only for the energy, which here is the electronic energy U0 - ZPVE in eV, with the
    free atoms' energies added again. ASE's "dipole" is a vector; the model was trained on its length alone and knows
    no sign, so it is not offered. There are no forces: the training data holds minima only. All twelve, each with its
    "_uncertainty", and "extrapolation" are in `results` after a calculation, in the units of
    `egnn_md.chemistry.targets`.

    Parameters
    ----------
    model: a shipped name or the path of a checkpoint. device: "cpu" or "cuda". dtype: "float32" or "float64".

    Raises ValueError for a model of another kind, CheckpointError for an unknown one; `get_potential_energy` raises
    ValueError for what the model cannot describe (see `PropertyModel.predict`).

    >>> from ase.build import molecule
    >>> atoms = molecule("C6H6")
    >>> atoms.calc = EGNNPropertyCalculator("qm9")
    >>> energy = atoms.get_potential_energy()  # eV
    >>> f"gap {atoms.calc.results['gap'] / 1000:.0f} eV"
    'gap 7 eV'
    """

    implemented_properties: ClassVar[list[str]] = ["energy"]

    def __init__(self, model: str | Path = "qm9", *, device: str = "cpu", dtype: str = "float32") -> None:
        super().__init__()
        network = load(model, device=parse_device(device), dtype=parse_dtype(dtype))
        if not isinstance(network, PropertyModel):
            raise ValueError(f"{model} is a {type(network).__name__}; this calculator needs a model of properties")
        if not {"u0", "zpve"} <= set(network.config.targets):
            raise ValueError(f"{model} predicts no energy (u0 and zpve): use its predict()")
        self.model = network

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What has changed since the last calculation: ASE's list, and "info" for a charge, spin or period."""
        changes: list[str] = super().check_state(atoms, tol=tol)
        if self.atoms is not None and structure_of(self.atoms).unfit != structure_of(atoms).unfit:
            changes.append("info")
        return changes

    def export_properties(self) -> Properties:
        """The results that ASE has names for."""
        return Properties({name: value for name, value in self.results.items() if name in all_outputs})

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Fill `results`: all comes from one call of the network."""
        super().calculate(atoms, properties, system_changes)
        with torch.no_grad():
            results: dict[str, Any] = self.model.predict(self.atoms, uncertainty=True)
        of_atoms = sum(BY_NAME["u0"].atoms[int(z)] for z in self.atoms.numbers) * MEV_PER_HARTREE
        energy = 1e-3 * (results["u0"] + of_atoms - results["zpve"])
        self.results = {**results, "energy": energy}
        if results["extrapolation"] > FAR:
            warnings.warn(
                f"the geometry is unlike the training data (extrapolation {results['extrapolation']:.1f}, limit {FAR}):"
                " relax it, and do not trust these numbers",
                ExtrapolationWarning,
                stacklevel=2,
            )
