"""One predictor behind every engine: structures in, energies and forces out, as NumPy arrays.

What engines need of a model beyond its function stands here, once: loading, refusals, neighbour lists that last for
several steps, committees, a check that results are finite, the warning about structures unlike the training data.
An engine turns its own types and units into a call of `Predictor`, and a `Result` back into them.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray

from egnn_md.chemistry.elements import CLOSEST_PAIR, MAX_ATOMIC_NUMBER, symbol
from egnn_md.chemistry.units import EV_PER_A3_PER_BAR
from egnn_md.compiled.forces import Compile, use_compiled
from egnn_md.forks import survive_forks
from egnn_md.graph import Graph, Prediction
from egnn_md.model_source import ModelSource
from egnn_md.models.potential import Potential
from egnn_md.models.terms import EnergyTerm
from egnn_md.neighbors import GraphBuilder
from egnn_md.neighbors.crowded import repulsion_of
from egnn_md.neighbors.lists import DEFAULT_SKIN
from egnn_md.options import parse_device, parse_dtype
from egnn_md.shown import html_table

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Model = str | Path | Potential | ModelSource

DEEPEST_BOND: Final = 30.0
"""eV of one atom below its element's reference energy: three times what chemistry has."""
EXTRAPOLATION_LIMIT: Final = 2.0
"""Warn when an atom's extrapolation signal passes this: 1 is what 99.9 % of the training atoms stay below."""
LARGEST_ENERGY: Final = 1000.0
"""eV of one atom beyond its element's reference energy: a hundred times what chemistry has."""
CHARGE_PER_ATOM: Final = 0.003
"""e: how far off the charges of a large structure may be, for each of its atoms, before it is called another ion."""
UNDECIDED: Final = 0.9
"""e: what may be missing of a charge that is counted before the one two electrons away is as likely."""
MOST_COUNTED: Final = 1.1
"""e: what may be missing of a charge that is given, where electrons are counted."""
UNSURE_CHARGE: Final = 0.2
"""e: a small structure whose charges add up to something further from a whole number is unlike the training data."""
_ISOLATED: Final = np.zeros(3, dtype=np.bool_)
_NO_CELL: Final = np.zeros((3, 3))


class PredictionError(ValueError):
    """A potential gave no answer for a structure that could be right."""


class ExtrapolationWarning(UserWarning):
    """The structure is unlike the model's training data: its energies and forces may mean nothing."""


class ChargeError(ValueError):
    """A structure is said to have one charge and looks like one of another, or the model knows neutral ones only."""


class Geometry(NamedTuple):
    """What a potential is asked about. Lengths in Å."""

    positions: FloatArray
    """(n_atoms, 3)."""
    atomic_numbers: IntArray
    """(n_atoms,)."""
    cell: FloatArray = _NO_CELL
    """(3, 3), rows are vectors."""
    pbc: BoolArray = _ISOLATED
    """(3,)."""
    charge: float | None = None
    """e; None: that which the structure has by itself."""


@dataclass(frozen=True, eq=False)
class Result:
    """What a potential, or a committee of them, says of one structure."""

    energy: float
    """eV."""
    energies: FloatArray
    """(n_atoms,) eV."""
    forces: FloatArray
    """(n_atoms, 3) eV/Å."""
    stress: FloatArray | None
    """(3, 3) eV/Å³; None where not asked for, or not periodic in three directions."""
    extrapolation: float
    """Largest signal of any atom, of any member; NaN if no model carries statistics."""
    charge: float | None = None
    """e: what the atoms' charges add up to, near a whole number; None of models without charges."""
    shown_charge: float | None = None
    """e: what of it the atoms' surroundings show by themselves."""
    charges: FloatArray | None = None
    """(n_atoms,) e."""
    dipole: FloatArray | None = None
    """(3,) e·Å about the origin; None of periodic structures too."""
    energy_std: float | None = None
    """eV, over a committee's members (ddof 0); None for a single model."""
    forces_std: FloatArray | None = None
    """(n_atoms, 3) eV/Å."""

    def _repr_html_(self) -> str:
        """In a notebook: energy, largest force and extrapolation."""
        largest = float(np.linalg.norm(self.forces, axis=1).max()) if len(self.forces) else 0.0
        sure = "" if self.energy_std is None else f" ± {self.energy_std:.5f}"
        rows = [("energy", f"{self.energy:.5f}{sure} eV"), ("largest force on an atom", f"{largest:.4f} eV/Å")]
        rows += (
            [] if self.stress is None else [("pressure", f"{-np.trace(self.stress) / 3 / EV_PER_A3_PER_BAR:.0f} bar")]
        )
        rows += [("extrapolation", f"{self.extrapolation:.2f}"), ("atoms", str(len(self.forces)))]
        return html_table(rows)


class NotCompiledWarning(UserWarning):
    """Force calls are slower than they could be: the message says why."""


class Predictor:
    """Energies, forces and stress of one structure after another, or of many at once.

    Parameters
    ----------
    model: name of a shipped potential, path of a checkpoint, a `Potential`, or a sequence of those: a committee.
    device: "cpu" or "cuda". dtype: "float64" or "float32", precision of the network.
    skin: Å by which neighbour lists reach beyond the cutoff, so that they last for several steps.
    closest: Å; atoms nearer than this are refused. 0 allows any distance.
    compile: whether force calls go through code compiled ahead of time (`egnn-md compile`): "auto", where it is there;
        True, made now if need be, a minute or two; False, never.
    terms: energy terms beside the model's own, added to every member's energy (see `egnn_md.models.terms`).

    Raises CheckpointError for unknown models, ValueError for other kinds of model and unknown devices.

    >>> from ase.build import molecule
    >>> predictor = Predictor("organic-xtb")
    >>> ethanol = molecule("CH3CH2OH")
    >>> result = predictor(ethanol.positions, ethanol.numbers)
    >>> f"{result.energy:.0f} eV", result.forces.shape
    ('-310 eV', (9, 3))
    """

    def __init__(
        self,
        model: Model | Sequence[Model] = "organic-xtb",
        *,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "float64",
        skin: float = DEFAULT_SKIN,
        closest: float = CLOSEST_PAIR,
        compile: Compile = "auto",
        terms: Sequence[EnergyTerm] = (),
    ) -> None:
        survive_forks()
        sources, self.committee = model_sources(model)
        self.device, self.dtype = parse_device(device), parse_dtype(dtype)
        self.label = ", ".join(source.label for source in sources)
        self.models = [source.load(self.device, self.dtype) for source in sources]
        for loaded in self.models:
            loaded.terms.extend(terms)
        self.skin, self.closest = skin, closest
        through_package = [use_compiled(model, compile, _warn_of_eager_calls) for model in self.models]
        self.compiled = all(through_package)
        """Whether force calls go through code compiled ahead of time."""
        self.cutoff = max(model.config.cutoff for model in self.models)
        """Å."""
        self.elements = tuple(sorted(set.intersection(*(set(model.config.elements) for model in self.models))))
        """Atomic numbers that all members know."""
        self._references = _reference_energies(self.models)
        self.ions = all(model.config.long_range for model in self.models)
        """Whether structures may be charged."""
        self._isolated = any(_learned_from_isolated(model) for model in self.models)
        self._counted = any(model.config.charge_response for model in self.models)
        self._given: tuple[float, torch.Tensor] | None = None
        self.fresh()

    def fresh(self) -> None:
        """Forget the neighbour list."""
        self._graphs = GraphBuilder(self.cutoff, self.skin, closest=self.closest, device=self.device)
        self._known = b""
        self._warned = False
        self._images_looked_for = not self._isolated

    def fork(self) -> Self:
        """Another with the same weights and a neighbour list of its own: for a thread, a replica."""
        other = copy.copy(self)
        other.fresh()
        return other

    def check(self, atomic_numbers: IntArray) -> None:
        """Raise UnsupportedElement, naming the elements, if a member does not know one."""
        for model in self.models:
            model.check_elements(torch.from_numpy(np.asarray(atomic_numbers, np.int64)))

    def check_charge(self, charge: float | None) -> None:
        """Raise ChargeError for a charge (e) that the models do not describe."""
        if charge and not self.ions:
            raise ChargeError(f"charge {charge:g}: {self.label} describes neutral structures only")

    def __call__(
        self,
        positions: FloatArray,
        atomic_numbers: IntArray,
        cell: FloatArray = _NO_CELL,
        pbc: BoolArray = _ISOLATED,
        charge: float | None = None,
        *,
        stress: bool = False,
    ) -> Result:
        """One structure: positions (n_atoms, 3) and cell (3, 3, rows are vectors) in Å, atomic_numbers (n_atoms,),
        pbc (3,). The neighbour list is kept from call to call; the answer depends on the structure alone. A charge (e)
        that is given is no input: the structure's own is held to it.

        Raises UnsupportedElement, ChargeError, ValueError for positions that are no structure (no atoms, NaN, atoms
        closer than `closest`) and cells without volume, PredictionError for results that are not finite, or absurd: an
        atom with more than `LARGEST_ENERGY` (upwards only where `closest` refuses what would explain it).
        """
        self.check_charge(charge)
        key = atomic_numbers.tobytes()
        if key != self._known:
            if len(atomic_numbers) == 0:
                raise ValueError("the structure has no atoms")
            self.check(atomic_numbers)
            self._known = key
        graph = self._charged(self._graphs(positions, atomic_numbers, cell, pbc), charge)
        if not self._images_looked_for:
            self._warn_of_images([graph])
        with torch.inference_mode(not any(model.terms for model in self.models)):  # the user's may want autograd
            results = [_result(model(graph, stress=stress)) for model in self.models]
        structure = Geometry(positions, atomic_numbers, cell, pbc, charge)
        return self._checked(_committee(results) if self.committee else results[0], structure)

    def many(self, structures: Sequence[Geometry], *, stress: bool = False) -> list[Result]:
        """Several structures in one call of the network, each as `__call__` would answer, to round-off."""
        if not structures:
            return []
        for structure in structures:
            if len(structure.atomic_numbers) == 0:
                raise ValueError("a structure has no atoms")
            self.check_charge(structure.charge)
        self.check(np.unique(np.concatenate([structure.atomic_numbers for structure in structures])))
        graphs = [self._graph(structure) for structure in structures]
        if not self._images_looked_for:
            self._warn_of_images(graphs)
        graph = Graph.collate(graphs)
        of_models = []
        for model in self.models:
            prediction = model(graph, stress=stress)
            starts = np.cumsum([0, *(len(structure.atomic_numbers) for structure in structures)])
            of_models.append(_split(prediction, starts))
        by_structure = zip(structures, *of_models, strict=True)
        return [
            self._checked(_committee(list(of)) if self.committee else of[0], structure)
            for structure, *of in by_structure
        ]

    def _graph(self, structure: Geometry) -> Graph:
        builder = GraphBuilder(self.cutoff, 0.0, closest=self.closest, device=self.device)
        graph = builder(structure.positions, structure.atomic_numbers, structure.cell, structure.pbc)
        return self._charged(graph, structure.charge)

    def expected_force_error(self, extrapolation: float) -> float:
        """Mean absolute error, eV/Å, that components of forces of atoms with this signal had on structures held out;
        the largest of the members', NaN where none knows.
        """
        return largest(np.array([model.expected_error(extrapolation) for model in self.models]))

    def _charged(self, graph: Graph, charge: float | None) -> Graph:
        """The graph with its charge, for models that ask for it."""
        if charge is None or not self._counted:
            return graph
        if self._given is None or self._given[0] != charge:
            self._given = (charge, torch.tensor([charge], dtype=torch.float64, device=self.device))
        return replace(graph, charge=self._given[1])

    def _warn_of_images(self, graphs: Sequence[Graph]) -> None:
        """Once, if atoms see periodic images of others and the training data had none."""
        self._images_looked_for = True
        if any(graph.shifts is not None and bool(graph.shifts.any()) for graph in graphs):
            warnings.warn(
                f"{self.label} learned from isolated structures: in a liquid or a crystal, whose atoms see each "
                "other's images, its energies, pressures and densities were not tried",
                ExtrapolationWarning,
                stacklevel=4,
            )

    def _checked(self, result: Result, structure: Geometry) -> Result:
        """The result, if it is finite, not absurd and of this charge; a warning, once, if the structure is unlike the
        training data. Where any distance is allowed, a crowded structure gets a repulsion in place of an absurd energy.
        """
        atomic_numbers, charge = structure.atomic_numbers, structure.charge
        finite = math.isfinite(result.energy + float(np.vdot(result.forces, result.forces)))
        bound = result.energies - self._references[atomic_numbers]
        lowest, highest = bound.min(), bound.max()
        if self.closest == 0 and not (finite and lowest > -DEEPEST_BOND and highest < LARGEST_ENERGY):
            crowded = self._crowded(result, structure)
            if crowded is not None:
                return crowded
        if not finite:
            raise PredictionError(
                "the potential gave an energy or forces that are not finite for this structure: are its units Å, and "
                "no atoms upon each other?"
            )
        if lowest < -LARGEST_ENERGY or (highest > LARGEST_ENERGY and self.closest > 0):
            worst = int(bound.argmin() if lowest < -LARGEST_ENERGY else bound.argmax())
            raise PredictionError(
                f"absurd energy: atom {worst} ({symbol(int(atomic_numbers[worst]))}) has {bound[worst]:.3g} eV beyond "
                "its reference energy, chemistry some ten: no potential can know such a structure. Are its units Å, "
                "its cell large enough, its atoms apart?"
            )
        if result.shown_charge is not None:
            check_total(charge, result.shown_charge, atomic_numbers, counted=self._counted)
        if not self._warned and (sign := _unlike_training(result)):
            self._warned = True
            error = 1e3 * self.expected_force_error(result.extrapolation)
            tested = f"; in its tests forces of such atoms were off by {error:.0f} meV/Å" if error == error else ""
            warnings.warn(
                f"the structure is unlike the training data ({sign}): do not trust its energy and forces{tested}; "
                "results go on telling, this warning comes once",
                ExtrapolationWarning,
                stacklevel=3,
            )
        return result

    def _crowded(self, result: Result, structure: Geometry) -> Result | None:
        """The result with a repulsion in the network's place, if atoms are on one another."""
        found = repulsion_of(structure.positions, structure.atomic_numbers, structure.cell, structure.pbc)
        if found is None:
            return None
        energies = found.energies + self._references[structure.atomic_numbers]
        stress = None if result.stress is None else found.stress
        energy = float(energies.sum())
        return replace(
            result, energy=energy, energies=energies, forces=found.forces, stress=stress, extrapolation=math.inf
        )


def _learned_from_isolated(model: Potential) -> bool:
    """Whether the checkpoint says that no training structure was periodic."""
    about = model.header.get("training_data")
    return isinstance(about, dict) and about.get("n_periodic") == 0


def _reference_energies(models: Sequence[Potential]) -> FloatArray:
    """Mean over the models of the energy of each element, by atomic number, eV; 0 where none is known."""
    table = np.zeros(MAX_ATOMIC_NUMBER + 1)
    for model in models:
        table[list(model.config.elements)] += np.array(model.config.reference_energies) / len(models)
    return table


def _unlike_training(result: Result) -> str:
    """What shows it, or nothing."""
    if result.extrapolation > EXTRAPOLATION_LIMIT:
        return f"extrapolation {result.extrapolation:.1f}, limit {EXTRAPOLATION_LIMIT:g}"
    if result.charge is not None and _is_unsure(result.charge, len(result.forces)):
        return f"its charges add up to {result.charge:+.2f} e, which is no whole number"
    return ""


def _is_unsure(found: float, n_atoms: int) -> bool:
    return abs(found - round(found)) > max(UNSURE_CHARGE, CHARGE_PER_ATOM * n_atoms)


def check_total(given: float | None, shown: float, atomic_numbers: IntArray, *, counted: bool) -> None:
    """Raise ChargeError where the charge that is given (e; None: it is not) cannot be that of a structure whose atoms'
    surroundings show another, or where none is given and two would do.

    counted: whether the model (`charge_response`) counts electrons, and so adds what is not shown.
    """
    n_atoms = len(atomic_numbers)
    slack = CHARGE_PER_ATOM * n_atoms
    if counted:
        odd = int(atomic_numbers.sum()) % 2
        if given is None:
            nearest = 2.0 * round((shown - odd) / 2.0) + odd
            if abs(nearest - shown) > max(UNDECIDED, slack):
                other = nearest + math.copysign(2.0, shown - nearest)
                raise ChargeError(
                    f"with paired electrons the charge of this structure may be {nearest:+.0f} or {other:+.0f}: say "
                    "which one it is (in ASE atoms.info['charge']); radicals are not known to the model"
                )
            return
        if round(given) % 2 != odd:
            raise ChargeError(
                f"with a charge of {given:+g} the structure has an odd number of electrons, and the model knows closed "
                "shells only: are there hydrogens too many or too few? Correct the charge or the structure"
            )
    if given is None or abs(given - shown) <= max(MOST_COUNTED if counted else 0.5, slack):
        return
    if not counted and _is_unsure(shown, n_atoms):
        raise ChargeError(
            f"the charge is said to be {given:+g}; the model finds {shown:+.2f} e, which is no whole number: it does "
            "not know ions like this one, and its energies of them would be wrong. Use another model, or train this "
            "one on such structures"
        )
    raise ChargeError(
        f"the charge is said to be {given:+g}, but the structure looks like one of {round(shown):+d} (the charges "
        f"of its atoms add up to {shown:+.2f} e): are there hydrogens too many or too few? Correct the charge or "
        "the structure; without a charge the structure's own is taken. If both are right, the model does not know "
        "ions like this one"
    )


def _warn_of_eager_calls(reason: str) -> None:
    warnings.warn(reason, NotCompiledWarning, stacklevel=4)


def model_sources(model: Model | Sequence[Model]) -> tuple[tuple[ModelSource, ...], bool]:
    """What to load, and whether it is a committee. Raises ValueError for an empty one."""
    committee = isinstance(model, Sequence) and not isinstance(model, str)
    members: Any = model if committee else [model]
    sources = tuple(ModelSource.of(member) for member in members)
    if not sources:
        raise ValueError("a committee needs at least one model")
    return sources, committee


def _array(tensor: torch.Tensor) -> FloatArray:
    """Float64 in numpy; shares memory where it can: a `Prediction` belongs to nobody else."""
    array: FloatArray = tensor.numpy(force=True)
    return array if array.dtype == np.float64 else array.astype(np.float64)


def _result(prediction: Prediction) -> Result:
    """Of one structure."""
    return Result(
        energy=prediction.energy.item(),
        energies=_array(prediction.energies),
        forces=_array(prediction.forces),
        stress=None if prediction.stress is None else _stress(_array(prediction.stress[0])),
        extrapolation=largest(_array(prediction.extrapolation)),
        **_electric(prediction, 0, slice(None)),
    )


def _electric(prediction: Prediction, graph: int, atoms: slice) -> dict[str, Any]:
    """What a `Result` says of charges, if anything."""
    if prediction.charges is None or prediction.charge is None or prediction.dipole is None:
        return {}
    assert prediction.shown_charge is not None
    dipole = _array(prediction.dipole[graph])
    return {
        "charge": prediction.charge[graph].item(),
        "shown_charge": prediction.shown_charge[graph].item(),
        "charges": _array(prediction.charges)[atoms],
        "dipole": None if np.isnan(dipole).any() else dipole,
    }


def _split(prediction: Prediction, starts: IntArray) -> list[Result]:
    """The result of each structure; starts (n_structures + 1,): the first atom of each, and their number."""
    energy, energies, forces = (_array(x) for x in (prediction.energy, prediction.energies, prediction.forces))
    extrapolation = _array(prediction.extrapolation)
    stress = None if prediction.stress is None else _array(prediction.stress)
    return [
        Result(
            energy=float(energy[k]),
            energies=energies[start:end],
            forces=forces[start:end],
            stress=None if stress is None else _stress(stress[k]),
            extrapolation=largest(extrapolation[start:end]),
            **_electric(prediction, k, slice(start, end)),
        )
        for k, (start, end) in enumerate(pairwise(starts))
    ]


def _stress(stress: FloatArray) -> FloatArray | None:
    return None if np.isnan(stress).all() else stress


def largest(extrapolation: FloatArray) -> float:
    """The largest that is known: a member or element without statistics (NaN) hides no other. NaN if none has any."""
    top = float(extrapolation.max())
    if top == top:
        return top
    known = extrapolation[~np.isnan(extrapolation)]
    return float(known.max()) if len(known) else math.nan


def _committee(members: list[Result]) -> Result:
    """Mean and spread."""
    energies = [member.energy for member in members]
    stresses = [member.stress for member in members if member.stress is not None]
    forces = np.stack([member.forces for member in members])
    return Result(
        energy=float(np.mean(energies)),
        energies=np.mean([member.energies for member in members], axis=0),
        forces=forces.mean(0),
        stress=np.mean(stresses, axis=0) if stresses else None,
        extrapolation=largest(np.array([member.extrapolation for member in members])),
        charge=_mean([member.charge for member in members]),
        shown_charge=_mean([member.shown_charge for member in members]),
        charges=_mean([member.charges for member in members]),
        dipole=_mean([member.dipole for member in members]),
        energy_std=float(np.std(energies)),
        forces_std=forces.std(0),
    )


def _mean(values: list[Any]) -> Any:
    """None unless every member has one."""
    return None if any(value is None for value in values) else np.mean(values, axis=0)
