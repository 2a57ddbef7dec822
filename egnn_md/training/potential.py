"""The task "potential": energies, forces and stress of labelled structures."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from egnn_md.checkpoint import load, read_header
from egnn_md.chemistry.elements import NUMBER_OF, symbol, symbols
from egnn_md.data.frame_batches import Batch, FrameBatches, PairTable
from egnn_md.data.frame_files import read_frames
from egnn_md.data.frames import DataError, Frames, concatenate
from egnn_md.data.labels import LabelKeys
from egnn_md.data.split import assign_split, split_in_time
from egnn_md.evaluation.labels import absolute_errors
from egnn_md.evaluation.potential import errors_by_atom, evaluate, plot_parity
from egnn_md.models.potential import Potential, PotentialConfig
from egnn_md.models.terms import System
from egnn_md.options import DTYPES
from egnn_md.training.config import ConfigError, RunConfig
from egnn_md.training.potential_config import PotentialDataConfig, PotentialRun
from egnn_md.training.potential_loss import PotentialLoss
from egnn_md.training.task import LearningCurve

STATISTICS_FRAMES = 8000
MAY_CHANGE: Final = frozenset(
    "repulsion_reach core_start core_end bound node_dim long_range charge_response response_window "
    "atomic_dipoles".split()
)
"""Keys of [model] that count with init_from."""
SAME_ZERO = 1.0
"""eV per atom: labels whose zero differs by more are another method's."""
FloatArray = NDArray[np.float64]


class PotentialTask:
    """See `Task`. The score is the force error, or the energy error of data without forces."""

    config_class: ClassVar[type[RunConfig]] = PotentialRun
    loss_names = ("loss", "force_loss", "energy_loss", "charge_loss", "dipole_loss")
    error_names = ("force_mae", "energy_mae")
    curve = LearningCurve("force_loss", "force_mae", "meV/Å", loss_factor=1e3)

    def __init__(self, config: PotentialRun, files: list[Path]) -> None:
        self.config = config
        self.splits = load_splits(config.data, files, ions=knows_ions(config))
        self._loss: PotentialLoss | None = None

    def build_model(self) -> Potential:
        return build_model(self.config, self.splits.train)

    def batches(self, model: Potential) -> tuple[FrameBatches, FrameBatches]:
        cutoff, dtype = model.config.cutoff, model.dtype
        train, valid = (
            FrameBatches(frames, PairTable.build(frames, cutoff), dtype)
            for frames in (self.splits.train, self.splits.valid)
        )
        return train, valid

    def loss(self, model: Potential, batch: Batch, step: int) -> dict[str, Tensor]:
        if self._loss is None:
            self._loss = PotentialLoss(model, self.config.training)
        terms = self._loss(batch)
        return {
            "loss": terms.total,
            "force_loss": terms.force,
            "energy_loss": terms.energy,
            "charge_loss": terms.charge,
            "dipole_loss": terms.dipole,
        }

    def error_sums(self, model: Potential, batch: Batch) -> Tensor:
        """(4,): Σ|ΔF| and its components, Σ|ΔE| per atom and its structures."""
        with torch.enable_grad():
            prediction = model(batch.graph)
        counts = torch.bincount(batch.graph.batch, minlength=batch.graph.n_graphs)
        forces, n_forces = absolute_errors(prediction.forces, batch.forces)
        energies, n_energies = absolute_errors(prediction.energy / counts, batch.energy / counts)
        return torch.stack([forces.sum(), n_forces.sum(), energies.sum(), n_energies.sum()])

    def errors(self, sums: Tensor) -> dict[str, Tensor]:
        values = {"force_mae": 1e3 * sums[0] / sums[1], "energy_mae": 1e3 * sums[2] / sums[3]}  # NaN without labels
        return values | {"score": values["force_mae"] if sums[1] > 0 else values["energy_mae"]}

    def information(self) -> dict[str, Any]:
        train, data = self.splits.train, self.config.data
        return {
            "split": dict(zip(("valid", "test"), data.held_out, strict=True))
            | ({} if self.splits.by_time is None else {"blocks_of_time": self.splits.by_time}),
            "training_data": {
                "files": list(train.sources),
                "n_structures": len(train),
                "n_groups": len(np.unique(train.group)),
                "n_periodic": int(train.pbc.any(1).sum()),
                "n_energies": int(np.isfinite(train.energy).sum()),
                "n_force_vectors": 0 if train.forces is None else int(np.isfinite(train.forces).all(1).sum()),
            },
        }

    def finish(self, model: Potential) -> dict[str, Any]:
        splits = self.splits
        fit_familiarity(model, splits.train)
        if splits.valid.forces is not None:
            model.expected_error.fit(*errors_by_atom(model, splits.valid))
        sides = {"valid": splits.valid, "test": splits.test}
        return {side: evaluate(model, frames).to_dict() for side, frames in sides.items() if len(frames)}

    def draw(self, model: Potential, folder: Path) -> None:
        splits = self.splits
        plot_parity(model, splits.test if len(splits.test) else splits.valid, folder / "parity.png")


@dataclass(frozen=True)
class Splits:
    """The labelled structures of a run."""

    train: Frames
    valid: Frames
    test: Frames
    by_time: int | None = None
    """How many frames were divided in blocks of time, for want of groups; None: by groups."""


def knows_ions(config: PotentialRun) -> bool:
    """Whether the model of this run has charges. Raises CheckpointError (init_from)."""
    if config.model.long_range or config.init_from is None:
        return config.model.long_range
    return bool(read_header(config.init_from).get("config", {}).get("long_range", False))


def load_splits(data: PotentialDataConfig, data_files: list[Path], *, ions: bool = False) -> Splits:
    """Read and divide the structures by group. Raises DataError if a side is empty or, unless the model knows `ions`,
    a structure is charged.
    """
    keys = LabelKeys(data.energy_key, data.forces_key, data.stress_key)
    n_files = len(data_files) - len(data.valid_files)
    frames, own_valid = (_read(files, keys, data, ions) for files in (data_files[:n_files], data_files[n_files:]))
    assert frames is not None
    if not np.isfinite(frames.energy).any():
        warnings.warn("the data has no energies: forces alone are learned, energies are up to a constant", stacklevel=2)
    several = np.flatnonzero(frames.n_atoms > 1)
    sides, by_time = assign_split(frames, *data.held_out), False
    if not {"train", *([] if data.valid_files else ["valid"])} <= set(sides[several].tolist()):
        sides, by_time = split_in_time(frames, *data.held_out), True
    sides[frames.n_atoms == 1] = "train"  # a free atom is no test of anything: it is the zero of the others' energy
    train, valid, test = (frames.select(np.flatnonzero(sides == side)) for side in ("train", "valid", "test"))
    if own_valid is not None:
        valid = own_valid
    if len(train) == 0 or len(valid) == 0:
        raise DataError(
            f"{len(np.unique(frames.group))} groups (molecules) are too few for a training and a validation side: "
            "name groups in the data (info['group'] in extxyz), raise valid_fraction, or give valid_files"
        )
    valid = _within(valid, train)
    if len(valid) == 0:
        raise DataError("no validation structure is left: all have elements that no training structure has")
    return Splits(train, valid, _within(test, train), len(frames) if by_time else None)


def _read(files: list[Path], keys: LabelKeys, data: PotentialDataConfig, ions: bool) -> Frames | None:
    """The structures of some files; None of none."""
    if not files:
        return None
    frames = concatenate([read_frames(path, keys) for path in files])
    frames.check_closed_shells(ions=ions)
    if data.exclude_tags:
        frames = frames.select(np.flatnonzero(~np.isin(frames.tag, data.exclude_tags)))
    return frames


def _within(held_out: Frames, train: Frames) -> Frames:
    """The held-out frames whose elements all occur in training; the model will not know the others."""
    unknown = ~np.isin(held_out.atomic_numbers, np.unique(train.atomic_numbers))
    if not unknown.any():
        return held_out
    frame_of_atom = np.repeat(np.arange(len(held_out)), held_out.n_atoms)
    dropped = np.unique(frame_of_atom[unknown])
    names = symbols(np.unique(held_out.atomic_numbers[unknown]))
    warnings.warn(f"{len(dropped)} held-out frames have {names}, which no training frame has: left out", stacklevel=2)
    return held_out.select(np.setdiff1d(np.arange(len(held_out)), dropped))


def reference_energies(
    frames: Frames, elements: tuple[int, ...], given: Mapping[str, float] | None = None
) -> tuple[float, ...]:
    """Energy per element, eV: those `given` by symbol, those of free atoms in the data, for the others least squares.
    What remains for the network is the energy of binding.

    Where compositions do not tell elements apart (one molecule), the fit stays near energies that grow as Z^(7/3)
    (Thomas and Fermi), and a warning says so. Raises ConfigError for a symbol that is no element of the data.
    """
    fixed = _free_atoms(frames)
    for name, energy in (given or {}).items():
        if NUMBER_OF.get(name) not in elements:
            raise ConfigError(f"data.reference_energies: {name!r} is no element of the data ({symbols(elements)})")
        fixed[NUMBER_OF[name]] = energy
    known = np.isfinite(frames.energy)
    counts, energies = frames.composition(elements)[known], frames.energy[known]
    values = np.array([fixed.get(z, 0.0) for z in elements])
    free = np.array([z not in fixed for z in elements])
    if free.any() and len(energies):
        counts, energies = counts[:, free], energies - counts @ values
        values[free] = _least_squares(counts, energies, np.array(elements)[free])
        _warn_of_alike(counts, np.array(elements)[free])
    return tuple(values.tolist())


def _least_squares(counts: FloatArray, energies: FloatArray, elements: NDArray[np.int64]) -> FloatArray:
    """An energy for each of the elements, near one that grows as Z^(7/3)."""
    shape = elements ** (7.0 / 3.0)
    total = counts @ shape
    prior = shape * float(total @ energies) / max(float(total @ total), 1e-12)
    return np.asarray(prior + np.linalg.lstsq(counts, energies - counts @ prior, rcond=None)[0])


def _warn_of_alike(counts: FloatArray, elements: NDArray[np.int64]) -> None:
    if np.linalg.matrix_rank(counts) < len(elements):
        warnings.warn(
            f"the compositions of the data do not tell the energies of {symbols(elements)} apart: relative energies of "
            "other compositions will mean nothing; data.reference_energies gives them",
            stacklevel=3,
        )


def _free_atoms(frames: Frames) -> dict[int, float]:
    """Atomic number -> mean energy of the structures of one atom, eV."""
    alone = (frames.n_atoms == 1) & np.isfinite(frames.energy) & ~frames.pbc.any(1)
    numbers, energies = frames.atomic_numbers[frames.starts[:-1][alone]], frames.energy[alone]
    return {int(z): float(energies[numbers == z].mean()) for z in np.unique(numbers)}


def build_model(config: PotentialRun, frames: Frames) -> Potential:
    """A new model for the elements of the data, or the one of `init_from` to go on from."""
    elements = tuple(int(z) for z in np.unique(frames.atomic_numbers))
    dtype = DTYPES[config.training.dtype]
    if config.init_from is None:
        settings = config.model.model_dump()
        references = reference_energies(frames, elements, config.data.reference_energies)
        return Potential(_config(elements=elements, reference_energies=references, **settings)).to(dtype)
    start = load(config.init_from, dtype=dtype)
    if not isinstance(start, Potential):
        raise ConfigError(f"init_from {config.init_from!r} is a {type(start).__name__}, no potential")
    changed = config.model.model_dump(include=config.model.model_fields_set & MAY_CHANGE)
    width, wanted = start.config.node_dim or start.config.hidden_dim, changed.get("node_dim")
    if wanted is not None and wanted < width:
        raise ConfigError(f"model.node_dim = {wanted} is less than the {width} of the model that init_from names")
    for name in ("long_range", "charge_response", "atomic_dipoles"):
        if getattr(start.config, name) and not changed.get(name, True):
            raise ConfigError(f"model.{name} = false: the model that init_from names has it, leave the key out")
    known = tuple(sorted({*elements, *start.config.elements}))
    references = _references_of_labels(start, frames, config.data.reference_energies, known)
    kept = {field.name: getattr(start.config, field.name) for field in fields(start.config)}
    settings = kept | {"elements": known, "reference_energies": references} | changed
    model = Potential(_config(**settings)).to(dtype)
    _take_over(model, start)
    return model


def _config(**settings: Any) -> PotentialConfig:
    try:
        return PotentialConfig(**settings)
    except ValueError as error:
        raise ConfigError(f"[model]: {error}") from None


def _take_over(model: Potential, start: Potential) -> None:
    """The weights of `start`, by name; rows of elements that it does not know begin as the mean of those it knows. A
    layer made wider reads what is new at random, and nothing reads that yet: the function is that of `start`.
    """
    rows = torch.tensor([z in start.config.elements for z in model.config.elements])
    state = model.state_dict()
    for name, value in start.state_dict().items():
        grown = state[name]
        if ".layers." in name and value.shape != grown.shape:
            if "node_in" not in name:
                grown = torch.zeros_like(grown)
            grown[tuple(slice(size) for size in value.shape)] = value
        elif value.shape != grown.shape:
            grown = value.mean(0, keepdim=True).expand_as(grown).clone()
            grown[rows] = value
        else:
            grown = value
        state[name] = grown
    model.load_state_dict(state)


def _references_of_labels(
    start: Potential, frames: Frames, given: Mapping[str, float], known: tuple[int, ...]
) -> tuple[float, ...]:
    """Reference energies, eV, with which the labels differ least from what `start` says: another method has another
    zero of energy, the same method has the same. Elements that are new to it are fitted to the labels.
    """
    old = dict(zip(start.config.elements, start.config.reference_energies, strict=True))
    shifted = {z: old[z] + shift for z, shift in _shift_of_zero(start, frames).items()}
    fixed = {**{symbol(z): energy for z, energy in shifted.items()}, **given}
    present = tuple(int(z) for z in np.unique(frames.atomic_numbers))
    found = dict(zip(present, reference_energies(frames, present, fixed), strict=True))
    return tuple(found.get(z, old.get(z, 0.0)) for z in known)


@torch.no_grad()
def _shift_of_zero(start: Potential, frames: Frames, n_frames: int = 512) -> dict[int, float]:
    """Atomic number -> eV: least absolute residuals per atom of the labels of a sample, beyond what `start` says."""
    owner = np.repeat(np.arange(len(frames)), frames.n_atoms)
    strange = np.unique(owner[~np.isin(frames.atomic_numbers, start.config.elements)])
    usable = np.setdiff1d(np.flatnonzero(np.isfinite(frames.energy)), strange)
    if len(usable) == 0:
        return {}
    sample = frames.select(np.sort(np.random.default_rng(0).permutation(usable)[:n_frames]))
    batches = FrameBatches(sample, PairTable.build(sample, start.config.cutoff), start.dtype)
    parts = np.array_split(np.arange(len(sample)), len(sample) // 32 + 1)
    said = [start(batches[part.tolist()].graph).energy for part in parts]
    present = np.unique(sample.atomic_numbers)
    counts = sample.composition(tuple(present.tolist())) / sample.n_atoms[:, None]
    residual = (sample.energy - torch.cat(said).numpy()) / sample.n_atoms
    weights, shift = np.ones(len(sample)), np.zeros(len(present))
    for _ in range(50):
        shift = _least_squares(counts * weights[:, None], residual * weights, present)
        weights = 1.0 / np.sqrt(np.maximum(np.abs(residual - counts @ shift), 1e-6))
    if np.abs(shift).max() > SAME_ZERO:
        _warn_of_alike(counts, present)
    return dict(zip(present.tolist(), shift.tolist(), strict=True))


def _of_each_kind(frames: Frames, count: int) -> NDArray[np.int64]:
    """At most `count` frames, in order: as many of each tag, or all there are of one, so that rare kinds show."""
    order = np.random.default_rng(0).permutation(len(frames))
    place = np.empty(len(frames), np.int64)  # of a frame among those of its tag
    for tag in np.unique(frames.tag):
        of_tag = order[frames.tag[order] == tag]
        place[of_tag] = np.arange(len(of_tag))
    return np.sort(order[np.argsort(place[order], kind="stable")][:count])


@torch.no_grad()
def fit_familiarity(model: Potential, frames: Frames, n_frames: int = STATISTICS_FRAMES) -> None:
    """Take the statistics of the extrapolation signal from a sample of the training structures."""
    sample = frames.select(_of_each_kind(frames, n_frames))
    batches = FrameBatches(sample, PairTable.build(sample, model.config.cutoff), model.dtype)
    features, sums, species = [], [], []
    for start in range(0, len(sample), 64):
        graph = batches[list(range(start, min(start + 64, len(sample))))].graph
        species.append(model.species(graph.atomic_numbers))
        vectors = graph.pair_vectors().to(model.dtype)
        features.append(model.force_call(vectors, species[-1], graph.pairs).features)
        system = System(vectors, species[-1], graph.pairs, len(model.config.elements))
        bonds = model.valences.sums(system.distances, system.kinds, system.ends).squeeze(-1)
        free = torch.bincount(graph.batch)[graph.batch] == 1  # an atom that is the zero of energy, no surroundings
        sums.append(bonds.masked_fill(free, torch.nan))
    model.familiarity.fit(torch.cat(features), torch.cat(species))
    model.valences.fit(torch.cat(sums), torch.cat(species))
