"""The task "flow": a flow map, from segments of trajectories or from force labels alone.

method = "trajectories": Ψ_s(x) against the state s later, for all pairs of snapshots that are no further apart than the
longest sub-step.

method = "forces": flow-map consistency (Ripken et al., arXiv 2601.22123). Moving the start along the true flow and
making the stride as much shorter leaves the end where it is, so the derivative of Ψ_s(x) along (X_H(x), -1) in (x, s)
vanishes, where X_H = (p/m, F). That needs the force at the start only, and one Jacobian-vector product. Ψ_0 is the
identity by construction, which makes the solution unique.

Both ways, the model's own total energy is asked to be the same after Ψ_s as before: that keeps Metropolis tests with it
passing, and without energy labels it is all that E learns from (up to a constant).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from egnn_md.checkpoint import load
from egnn_md.chemistry.molecules import bond_pattern
from egnn_md.chemistry.units import FS_PER_TIME_UNIT
from egnn_md.data.flow import Segments, read_segments
from egnn_md.data.frames import DataError
from egnn_md.models.flow import FlowConfig, FlowMap
from egnn_md.nn.ops import segment_sum
from egnn_md.options import DTYPES
from egnn_md.training.config import ConfigError, DataConfig, Depth, RunConfig, Section, TrainingConfig, Width
from egnn_md.training.flow_segments import FlowBatch, FlowBatches, SampleOf
from egnn_md.training.task import LearningCurve

POSITION_RATE = 0.3 * FS_PER_TIME_UNIT
"""A position error counts as much as that of a momentum in a vibration of 0.3 rad/fs, 1600 cm⁻¹."""
HELD_OUT_SAMPLES = 500


class FlowDataConfig(DataConfig):
    """One file of `egnn-md data flow`."""

    valid_fraction: float = Field(0.06, gt=0, lt=0.5)
    """Of the copies; the best checkpoint is chosen on them."""
    test_fraction: float = Field(0.06, ge=0, lt=0.5)


class FlowModelConfig(Section):
    """The network; the elements come from the data."""

    longest_substep: float = Field(5.0, gt=0)
    """fs."""
    cutoff: float = Field(5.0, gt=0)
    """Å."""
    hidden_dim: Width = 64
    message_dim: Width = 64
    n_layers: Depth = 2
    n_vectors: Width = 16
    n_radial: Width = 16


class FlowTrainingConfig(TrainingConfig):
    """The optimisation and the method."""

    method: Literal["trajectories", "forces"] = "trajectories"
    energy_weight: float = Field(2.0, ge=0)
    """Of the error of E at the start, eV; method trajectories only."""
    conservation_weight: float = Field(2.0, ge=0)
    """Of the change of the model's total energy in a sub-step, eV."""


class FlowRun(RunConfig):
    """The whole file."""

    task: Literal["flow"] = "flow"
    name: str = "flow"
    data: FlowDataConfig
    model: FlowModelConfig = FlowModelConfig()
    training: FlowTrainingConfig


def state_error(momenta: Tensor, positions: Tensor, masses: Tensor) -> Tensor:
    """Length of each atom's error in phase space, sqrt(eV): |(Δp/√m, ω √m Δx)| with ω = POSITION_RATE; (n_atoms,)."""
    root = masses.sqrt()
    error = torch.cat([momenta / root, POSITION_RATE * root * positions], -1)
    return (error.square().sum(-1) + 1e-6).sqrt()


@dataclass(frozen=True, eq=False)
class FlowErrors:
    """Of a batch."""

    state: Tensor
    """(n_atoms,): of positions and momenta, see `state_error`, per time of 10.18 fs."""
    energy: Tensor
    """(n_molecules,) eV: of E at the start."""
    change: Tensor
    """(n_molecules,) eV: change of the model's total energy over the sub-step."""


def flow_errors(model: FlowMap, batch: FlowBatch) -> FlowErrors:
    """Errors of Ψ_s against the later state."""
    start, (x, p, _) = batch.start, batch.end
    time = batch.substep / FS_PER_TIME_UNIT
    positions, momenta, first, last = model(*start[:2], batch.species, batch.masses, batch.pairs, batch.substep)
    state = state_error((momenta - p) / time, (positions - x) / time, batch.masses)
    return FlowErrors(state, *_energy_errors(batch, momenta, first[1], last[1]))


def consistency_errors(model: FlowMap, batch: FlowBatch) -> FlowErrors:
    """The derivative of Ψ_s(x) along (X_H(x), -1), see above, in place of the error of the state."""
    positions, momenta, forces = batch.start
    parameters: dict[str, Tensor] = dict(model.named_parameters())

    def advance(x: Tensor, p: Tensor, substep: Tensor) -> Any:
        inputs = (x, p, batch.species, batch.masses, batch.pairs, substep)
        return torch.func.functional_call(model, parameters, inputs)

    shorter = torch.full_like(batch.substep, -FS_PER_TIME_UNIT)
    along = (momenta / batch.masses, forces, shorter)
    end, derivative = cast(tuple[Any, Any], torch.func.jvp(advance, (positions, momenta, batch.substep), along))
    state = state_error(derivative[1], derivative[0], batch.masses)
    return FlowErrors(state, *_energy_errors(batch, end[1], end[2][1], end[3][1]))


def _energy_errors(batch: FlowBatch, momenta: Tensor, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """`FlowErrors.energy` and `change` from the momenta at the end and the atoms' E at start and end."""
    n = len(batch.energy)
    kinetic = (0.5 * (momenta.square() - batch.start[1].square()) / batch.masses).sum(-1)
    return segment_sum(first, batch.molecule, n) - batch.energy, segment_sum(kinetic + last - first, batch.molecule, n)


class FlowTask:
    """See `Task`. The score is the mean error per time of an atom's state, averaged over sub-steps."""

    config_class: ClassVar[type[RunConfig]] = FlowRun
    loss_names = ("loss", "state_loss", "energy_loss", "conservation_loss")
    error_names = ("state_error", "energy_mae", "energy_change")
    curve = LearningCurve("state_loss", "state_error", "sqrt(eV) per 10.18 fs")

    def __init__(self, config: FlowRun, files: list[Path]) -> None:
        if len(files) != 1:
            raise ConfigError(f"task flow learns from one file of segments, not {len(files)}")
        self.config = config
        self.segments = read_segments(files[0])
        self.molecules = _molecules(self.segments)
        self.sides = self._split(config.data.valid_fraction, config.data.test_fraction)

    def _split(self, valid: float, test: float) -> dict[str, Segments]:
        """Whole copies go to one side: of every molecule the last ones to test, those before to validation."""
        chosen: dict[str, list[NDArray[np.int64]]] = {"train": [], "valid": [], "test": []}
        for name, copies in self.molecules.items():
            n_valid, n_test = max(1, round(valid * len(copies))), round(test * len(copies))
            if len(copies) < n_valid + n_test + 1:
                raise DataError(f"{len(copies)} copies of {name} are too few for a training and a validation side")
            for side, part in zip(chosen, np.split(copies, [-n_valid - n_test, len(copies) - n_test]), strict=True):
                chosen[side].append(part)
        return {
            side: self.segments.select(np.flatnonzero(np.isin(self.segments.copy, np.concatenate(parts))))
            for side, parts in chosen.items()
        }

    def build_model(self) -> FlowMap:
        elements = tuple(int(z) for z in np.unique(self.segments.atomic_numbers))
        dtype = DTYPES[self.config.training.dtype]
        if self.config.init_from is None:
            settings = self.config.model.model_dump()
            train = self.sides["train"]
            found = references(train.composition(elements), train.energy[:, 0])
            return FlowMap(FlowConfig(elements, found, molecules=tuple(self.molecules), **settings)).to(dtype)
        model = load(self.config.init_from, dtype=dtype).requires_grad_(True)
        if not isinstance(model, FlowMap):
            raise ConfigError(f"init_from {self.config.init_from!r} is a {type(model).__name__}, no flow map")
        model.check_elements(torch.tensor(elements))
        model.config = replace(model.config, molecules=tuple(self.molecules))
        return model

    def batches(self, model: FlowMap) -> tuple[FlowBatches, SampleOf]:
        between = self.config.training.method == "forces"
        return FlowBatches(self.sides["train"], model, between), SampleOf(FlowBatches(self.sides["valid"], model))

    def loss(self, model: FlowMap, batch: FlowBatch, step: int) -> dict[str, Tensor]:
        settings, by_forces = self.config.training, self.config.training.method == "forces"
        errors = consistency_errors(model, batch) if by_forces else flow_errors(model, batch)
        state = errors.state.double().sum() * batch.share[0]
        energy, change = (
            (error.double().square() + 1e-6).sqrt().sum() * batch.share[1] for error in (errors.energy, errors.change)
        )
        loss = state + settings.conservation_weight * change
        if not by_forces:
            loss = loss + settings.energy_weight * energy
        parts = {"state_loss": state, "energy_loss": energy, "conservation_loss": change}
        return {"loss": loss} | {name: part.detach() for name, part in parts.items()}

    @torch.no_grad()
    def error_sums(self, model: FlowMap, batch: FlowBatch) -> Tensor:
        """(5,): Σ error and atoms; Σ|ΔE| of the start, Σ|change of the total energy| (eV) and molecules."""
        errors = flow_errors(model, batch)
        sums = [
            errors.state.sum(),
            errors.state.new_tensor(len(errors.state)),
            errors.energy.abs().sum(),
            errors.change.abs().sum(),
        ]
        return torch.stack([*sums, errors.state.new_tensor(len(errors.energy))]).double()

    def errors(self, sums: Tensor) -> dict[str, Tensor]:
        state, per_molecule = sums[0] / sums[1], 1e3 / sums[4]
        energies = {"energy_mae": sums[2] * per_molecule, "energy_change": sums[3] * per_molecule}
        return {"state_error": state, **energies, "score": state}

    def information(self) -> dict[str, Any]:
        data = self.config.data
        return {
            "split": {"valid": data.valid_fraction, "test": data.test_fraction},
            "training_data": {"n_segments": len(self.sides["train"]), "origin": self.segments.origin},
        }

    def finish(self, model: FlowMap) -> dict[str, Any]:
        return {side: held_out(model, self.sides[side]) for side in ("valid", "test") if len(self.sides[side])}

    def draw(self, model: FlowMap, folder: Path) -> None:
        """None but the learning curve."""


def references(composition: NDArray[np.float64], energy: NDArray[np.float64]) -> tuple[float, ...]:
    """Least-squares energy per element, eV; the smallest where compositions do not decide."""
    found = np.linalg.lstsq(composition, energy, rcond=None)[0]
    return tuple(found.tolist())


def _molecules(segments: Segments) -> dict[str, NDArray[np.int64]]:
    """What the segments are of, by the first snapshot of each copy: bond pattern -> its copies."""
    copies, first = np.unique(segments.copy, return_index=True)
    ends = np.cumsum(segments.n_atoms)
    atoms = [slice(ends[k] - segments.n_atoms[k], ends[k]) for k in first]
    patterns = np.array([bond_pattern(segments.atomic_numbers[a], segments.positions[a, 0]) for a in atoms])
    return {str(pattern): copies[patterns == pattern] for pattern in np.unique(patterns)}


def held_out(model: FlowMap, segments: Segments) -> dict[str, Any]:
    """Errors after sub-steps of each length (fs, as a string): of the state, see `FlowErrors`; of E at the start, mean
    absolute; and the change of the model's total energy, root mean square and median size; both meV per molecule.
    """
    batches, table = FlowBatches(segments, model), {}
    lengths = batches.last - batches.first
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        some = range(0, len(segments), max(1, len(segments) // HELD_OUT_SAMPLES))
        chosen = [s * len(lengths) + int(rows[k % len(rows)]) for k, s in enumerate(some)]
        with torch.no_grad():
            parts = [flow_errors(model, batches[chosen[begin : begin + 128]]) for begin in range(0, len(chosen), 128)]
        energy, change = (1e3 * torch.cat([getattr(part, name) for part in parts]) for name in ("energy", "change"))
        table[f"{length * segments.spacing:g}"] = {
            "state_error": torch.cat([part.state for part in parts]).mean().item(),
            "energy_mae": energy.abs().mean().item(),
            "energy_change_rms": change.square().mean().sqrt().item(),
            "energy_change_median": change.abs().median().item(),
        }
    return table
