"""The task "property": QM9's twelve properties, with the paper's split, from as many labels as there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn

from egnn_md.checkpoint import load
from egnn_md.chemistry.elements import MASSES
from egnn_md.chemistry.targets import BY_NAME, NAMES
from egnn_md.chemistry.units import ANGSTROM_PER_BOHR
from egnn_md.data.frames import DataError, ragged_rows
from egnn_md.data.qm9 import Molecules, concatenate, read_qm9
from egnn_md.evaluation.labels import absolute_errors
from egnn_md.evaluation.property import (
    calibrate,
    check_molecules,
    compare,
    errors_of,
    fit_statistics,
    plot_calibration,
    plot_parity,
)
from egnn_md.graph import Graph
from egnn_md.models.property import PropertyConfig, PropertyModel
from egnn_md.models.property_networks import N_HEADS, READOUTS, MoleculeBatch
from egnn_md.neighbors import molecules_graph
from egnn_md.nn.compilation import CompiledModule
from egnn_md.options import DTYPES
from egnn_md.training.config import ConfigError, DataConfig, Depth, RunConfig, Section, TrainingConfig, Width
from egnn_md.training.task import LearningCurve

SMALLEST_ERROR = 1e-4
"""In scales of a target: the loss "root" does not chase errors below it."""


class PropertyDataConfig(DataConfig):
    """QM9: its archive, MoleculeNet's .sdf, or npz; divided as the data says, by default as in the paper.

    More files hold the same molecules at other geometries, with the labels of the minimum. Those of training molecules
    are learned from; nothing is validated or tested on them.
    """

    n_train: int | None = Field(None, ge=1)
    """Train on this many of the training molecules, drawn with the run's seed (for learning curves)."""


class PropertyModelConfig(Section):
    """The network; elements and normalisation come from the training molecules."""

    network: Literal["vectors", "paper"] = "vectors"
    targets: tuple[str, ...] = NAMES
    """What to predict; "vectors" predicts all twelve."""
    cutoff: float = Field(5.0, gt=0)
    """Å; "vectors" only."""
    hidden_dim: Width = 96
    message_dim: Width = 96
    n_layers: Depth = 3
    n_vectors: Width = 24
    n_radial: Width = 20

    @model_validator(mode="after")
    def _fits(self) -> PropertyModelConfig:
        if self.network == "vectors" and self.hidden_dim % N_HEADS:
            raise ValueError(f"hidden_dim must be a multiple of {N_HEADS}")
        return self


class PropertyTrainingConfig(TrainingConfig):
    """The loss, and whether to compile it."""

    loss: Literal["root", "l1"] = "root"
    """"l1": the paper's, the mean of e = mean absolute error / mean absolute deviation of each property; "root": of
    sqrt(e), so that those which are predicted well count too."""
    compile: bool = False
    """Trace and compile the training step: a minute at the start, then about twice as fast on a CPU."""


class PropertyRun(RunConfig):
    """The whole file."""

    task: Literal["property"] = "property"
    name: str = "property"
    data: PropertyDataConfig
    model: PropertyModelConfig = PropertyModelConfig()
    training: PropertyTrainingConfig


@dataclass(frozen=True, eq=False)
class PropertyBatch:
    """Molecules with labels; edges are made where the batch ends up, on a GPU if there is one."""

    positions: Tensor
    """(n_atoms, 3) Å."""
    atomic_numbers: Tensor
    """(n_atoms,)."""
    n_atoms: Tensor
    """(n_molecules,)."""
    labels: Tensor
    """(n_molecules, n_targets) float64, in the units of `egnn_md.chemistry.targets`; NaN where unknown."""
    share: Tensor
    """(1,): 1/molecules of the whole step."""

    def to(self, device: torch.device | str) -> PropertyBatch:
        """The same batch on another device."""
        names = ("positions", "atomic_numbers", "n_atoms", "labels", "share")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})

    def graph(self, reach: float) -> Graph:
        """With edges up to `reach` Å."""
        return molecules_graph(self.positions, self.atomic_numbers, self.n_atoms, reach)


class MoleculeBatches:
    """`Molecules` as the training's batches."""

    def __init__(self, molecules: Molecules, targets: tuple[str, ...]) -> None:
        self.molecules = molecules
        self.labels = torch.from_numpy(molecules.labels()[:, [NAMES.index(name) for name in targets]])
        self.positions = torch.from_numpy(molecules.positions.astype(np.float64))
        self.numbers = torch.from_numpy(molecules.atomic_numbers)
        self.n_atoms = torch.from_numpy(molecules.n_atoms)

    def __len__(self) -> int:
        return len(self.molecules)

    def __getitem__(self, indices: list[int]) -> PropertyBatch:
        chosen = np.asarray(indices, np.int64)
        rows = torch.from_numpy(ragged_rows(self.molecules.starts[chosen], self.molecules.n_atoms[chosen]))
        return PropertyBatch(
            positions=self.positions[rows],
            atomic_numbers=self.numbers[rows],
            n_atoms=self.n_atoms[indices],
            labels=self.labels[indices],
            share=self.shares(indices),
        )

    def shares(self, indices: list[int]) -> Tensor:
        """(1,): 1/molecules."""
        return torch.tensor([1.0 / len(indices)], dtype=torch.float64)


class PropertyTask:
    """See `Task`. The score is the mean over the targets of error / mean absolute deviation."""

    config_class: ClassVar[type[RunConfig]] = PropertyRun
    loss_names = ("loss", "error_loss", "uncertainty_loss")
    error_names = ("score", *(f"{name}_mae" for name in NAMES))
    curve = LearningCurve("error_loss", "score", "error / mean absolute deviation")

    def __init__(self, config: PropertyRun, files: list[Path]) -> None:
        unknown = [name for name in config.model.targets if name not in NAMES]
        if unknown or (config.model.network == "vectors" and config.model.targets != NAMES):
            raise ConfigError(f"targets: {unknown or 'network vectors predicts all twelve'}; known: {', '.join(NAMES)}")
        self.config = config
        self.targets = config.model.targets
        self.data = read_qm9(files[0])
        self.train, self.valid, self.test = divide(self.data, config.data.n_train, config.seed)
        self.train = with_geometries(self.train, [read_qm9(file) for file in files[1:]])
        for side in (self.train, self.valid, self.test):
            check_molecules(side, np.unique(self.train.atomic_numbers).tolist())
        self._loss: PropertyLoss | None = None
        self._deviation = mean_absolute_deviation(self.train, self.targets)
        self._learned = learned(self.train, self.targets)

    def build_model(self) -> PropertyModel:
        """A new model for the elements of the training molecules, or the one of `init_from`."""
        dtype = DTYPES[self.config.training.dtype]
        if self.config.init_from is not None:
            start = load(self.config.init_from, dtype=dtype)
            if not isinstance(start, PropertyModel) or start.config.targets != self.targets:
                raise ConfigError(f"init_from {self.config.init_from!r} is no property model with these targets")
            return start.requires_grad_(True)
        settings = self.config.model.model_dump(exclude={"targets"})
        elements = tuple(int(z) for z in np.unique(self.train.atomic_numbers))
        normalisation = fit_normalisation(self.train, elements, self.config.model.network, self.targets)
        return PropertyModel(PropertyConfig(elements, **normalisation, targets=self.targets, **settings)).to(dtype)

    def batches(self, model: PropertyModel) -> tuple[MoleculeBatches, MoleculeBatches]:
        return MoleculeBatches(self.train, self.targets), MoleculeBatches(self.valid, self.targets)

    def loss(self, model: PropertyModel, batch: PropertyBatch, step: int) -> dict[str, Tensor]:
        if self._loss is None:
            self._loss = PropertyLoss(model, self.config.training, self._deviation)
        total, error, uncertainty = self._loss(batch)
        return {"loss": total, "error_loss": error.detach(), "uncertainty_loss": uncertainty.detach()}

    def error_sums(self, model: PropertyModel, batch: PropertyBatch) -> Tensor:
        """(2, n_targets): Σ|error| and the number of labels."""
        with torch.no_grad():
            values = model(batch.graph(model.config.reach)).values
        labels = torch.where(self._learned.to(values.device), batch.labels, torch.nan)
        error, known = absolute_errors(values, labels)
        return torch.stack([error.sum(0), known.sum(0)])

    def errors(self, sums: Tensor) -> dict[str, Tensor]:
        mae = sums[0] / sums[1]
        relative = (mae / self._deviation.to(mae))[sums[1] > 0]
        known = dict(zip(self.targets, mae, strict=True))
        named = {f"{name}_mae": known.get(name, mae.new_tensor(torch.nan)) for name in NAMES}
        return named | {"score": relative.mean()}

    def information(self) -> dict[str, Any]:
        return {"split": "the data's own", "training_data": training_data(self.train, self.targets)}

    def finish(self, model: PropertyModel) -> dict[str, Any]:
        fit_statistics(model, self.train)
        compared = {"valid": compare(model, self.valid)}
        calibrate(model, compared["valid"])
        if len(self.test):
            compared["test"] = compare(model, self.test)
        *_, self._last_compared = compared.values()
        return {side: errors_of(self.targets, values) for side, values in compared.items()}

    def draw(self, model: PropertyModel, folder: Path) -> None:
        plot_parity(self.targets, self._last_compared, folder / "parity.png")
        plot_calibration(self.targets, self._last_compared, folder / "calibration.png")


def divide(data: Molecules, n_train: int | None, seed: int) -> tuple[Molecules, Molecules, Molecules]:
    """Training, validation and test molecules; held-out ones with elements that training lacks are left out."""
    train = data.side("train")
    if n_train is not None:
        chosen = np.random.default_rng(seed).permutation(len(train))[:n_train]
        train = train.select(np.sort(chosen))
    elements = np.unique(train.atomic_numbers)
    valid, test = data.side("valid").having(elements), data.side("test").having(elements)
    if len(train) == 0 or len(valid) == 0:
        raise DataError("no training or no validation molecules: the data needs the paper's split (see the guide)")
    return train, valid, test


def with_geometries(train: Molecules, others: list[Molecules]) -> Molecules:
    """`train`, and its molecules as the others have them. Raises DataError if those have none of them."""
    for other in others:
        chosen = np.flatnonzero(np.isin(other.index, train.index))
        if len(chosen) == 0:
            raise DataError(f"{' '.join(other.sources)} holds none of the training molecules")
        train = concatenate([train, other.select(chosen)])
    return train


def training_data(train: Molecules, targets: tuple[str, ...]) -> dict[str, Any]:
    """What a checkpoint says of the molecules it was trained on."""
    first = np.unique(train.index, return_index=True)[1]
    labelled = np.isfinite(train.targets[first]).sum(0)
    return {
        "files": list(train.sources),
        "n_molecules": len(first),
        "n_geometries": len(train),
        "labels": {name: int(labelled[NAMES.index(name)]) for name in targets},
    }


def mean_absolute_deviation(molecules: Molecules, targets: tuple[str, ...]) -> Tensor:
    """Of the labels of each target from their mean, (n_targets,) float64; 1 where there are none."""
    labels = molecules.labels()[:, [NAMES.index(name) for name in targets]]
    known = np.isfinite(labels)
    counts = np.maximum(known.sum(0), 1)
    mean = np.where(known, labels, 0.0).sum(0) / counts
    deviation = np.where(known, np.abs(labels - mean), 0.0).sum(0) / counts
    return torch.from_numpy(np.where(deviation > 0, deviation, 1.0))


def learned(molecules: Molecules, targets: tuple[str, ...]) -> Tensor:
    """(n_targets,) bool: which targets have labels to learn from. Of the others the model predicts NaN."""
    return torch.from_numpy(np.isfinite(molecules.targets[:, [NAMES.index(name) for name in targets]]).any(0))


class Normalisation(TypedDict):
    """These fields of `PropertyConfig`."""

    offsets: tuple[float, ...]
    scales: tuple[float, ...]
    references: tuple[float, ...]


def fit_normalisation(
    molecules: Molecules, elements: tuple[int, ...], network: str, targets: tuple[str, ...]
) -> Normalisation:
    """Offsets, scales and references, from labels of training molecules.

    Network "paper": mean and mean absolute deviation, after subtracting atomic references. Network "vectors": what
    sums over atoms is first explained by the composition, by least squares, and the scale is the mean absolute rest.
    """
    labels = dict(zip(NAMES, molecules.labels().T, strict=True))
    counts = molecules.counts(elements)
    if network == "vectors":
        labels |= {"u298-u0": labels["u298"] - labels["u0"], "h298-g298": labels["h298"] - labels["g298"]}
        labels["r2"] = labels["r2"] - nuclear_extent(molecules)
    names = READOUTS if network == "vectors" else targets
    offsets, scales, references = np.zeros(len(names)), np.zeros(len(names)), np.zeros((len(elements), len(names)))
    for k, name in enumerate(names):
        known = np.isfinite(labels[name])
        if not known.any():
            continue
        values = labels[name][known]
        if network == "paper":
            target = BY_NAME[name]
            if not target.relative:
                references[:, k] = [target.factor * target.atoms.get(z, 0.0) for z in elements]
            offsets[k] = (values - counts[known] @ references[:, k]).mean()
        elif name in ("homo", "lumo"):
            offsets[k] = values.mean()
        elif name != "mu":
            columns = np.concatenate([counts[known], np.ones((known.sum(), 1))], 1)
            *references[:, k], offsets[k] = np.linalg.lstsq(columns, values, rcond=None)[0]
        scales[k] = max(np.abs(values - counts[known] @ references[:, k] - offsets[k]).mean(), 1e-6)
    return {
        "offsets": tuple(offsets.tolist()),
        "scales": tuple(scales.tolist()),
        "references": tuple(references.ravel().tolist()),
    }


def nuclear_extent(molecules: Molecules) -> NDArray[np.float64]:
    """Σ Z_i |r_i - centre of mass|², (n_molecules,) a0²."""
    mass = np.array(MASSES)[molecules.atomic_numbers][:, None]
    first = molecules.starts[:-1]
    positions = molecules.positions.astype(np.float64)
    centre = np.add.reduceat(mass * positions, first) / np.add.reduceat(mass, first)
    rho = positions - np.repeat(centre, molecules.n_atoms, 0)
    squares = molecules.atomic_numbers * (rho**2).sum(1)
    extent: NDArray[np.float64] = np.add.reduceat(squares, first) / ANGSTROM_PER_BOHR**2
    return extent


class PropertyLoss:
    """Error and uncertainty of a batch, eager or compiled; labels that are NaN do not count."""

    def __init__(self, model: PropertyModel, config: PropertyTrainingConfig, deviation: Tensor) -> None:
        self.model = model
        terms = _Terms(model, deviation, config.loss)
        self.terms: Callable[..., tuple[Tensor, Tensor, Tensor]] = CompiledModule(terms) if config.compile else terms

    def __call__(self, batch: PropertyBatch) -> tuple[Tensor, Tensor, Tensor]:
        """(what to minimise, its part for the errors, its part for the uncertainty)."""
        molecules = self.model.prepare(batch.graph(self.model.config.reach))
        return self.terms(*molecules[:5], batch.labels)


class _Terms(nn.Module):
    """The loss of prepared molecules, traceable."""

    def __init__(self, model: PropertyModel, deviation: Tensor, kind: str) -> None:
        super().__init__()
        self.model, self.kind = model, kind
        self.register_buffer("deviation", deviation, persistent=False)
        self.deviation: Tensor

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        vectors, centred, species, pairs, batch, labels = inputs
        molecules = MoleculeBatch(vectors, centred, species, pairs, batch, labels.shape[0])
        out = self.model.network(molecules)
        known = ~torch.isnan(labels)
        error = torch.where(known, self.model.properties(out, molecules) - labels, 0.0).abs()
        deviation = self.deviation.to(error)
        mean = error.sum(0) / (known.sum(0).clamp(min=1) * deviation)
        if self.kind != "l1":
            mean = torch.sqrt(mean + SMALLEST_ERROR)
        accuracy = mean.mean()
        if self.model.error_model is None:
            return accuracy, accuracy, torch.zeros_like(accuracy)
        b = self.model.uncertainty(out)
        likelihood = torch.where(known, torch.log(b / deviation) + error.detach() / b, 0.0)  # Laplace, - log density
        uncertainty = (likelihood.sum(0) / known.sum(0).clamp(min=1)).mean()
        return accuracy + uncertainty, accuracy, uncertainty
