"""The configuration of the task "potential"."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from egnn_md.training.config import DataConfig, Depth, RunConfig, Section, TrainingConfig, Width


class PotentialDataConfig(DataConfig):
    """Labelled structures (npz of ragged arrays, or anything ase reads), what their labels are called, and how they are
    divided.
    """

    valid_files: list[str] = Field(default_factory=list)
    """More files, whose structures choose the best checkpoint in place of `valid_fraction`."""
    valid_fraction: float = Field(0.05, gt=0, lt=0.5)
    """Fraction of the groups (molecules) that choose the best checkpoint."""
    test_fraction: float = Field(0.05, ge=0, lt=0.5)
    """Fraction of the groups that training never reads; `egnn-md evaluate --split test` finds them again."""
    exclude_tags: list[str] = Field(default_factory=list)
    """Kinds of frames to leave out altogether."""
    energy_key: str | None = None
    forces_key: str | None = None
    stress_key: str | None = None
    """Names of the labels in the files, if they are not "energy", "forces", "stress" or a common name for these."""
    reference_energies: dict[str, float] = Field(default_factory=dict)
    """Symbol = energy of the free atom in eV; the others are taken from structures of one atom, or fitted."""

    @property
    def all_files(self) -> list[str]:
        """`files`, then `valid_files`."""
        return [*self.files, *self.valid_files]

    @property
    def held_out(self) -> tuple[float, float]:
        """Fractions of the groups of `files` for validation and for the test."""
        return 0.0 if self.valid_files else self.valid_fraction, self.test_fraction


class PotentialModelConfig(Section):
    """The network; the elements and reference energies come from the data."""

    cutoff: float = Field(5.0, gt=0)
    """Å."""
    hidden_dim: Width = 64
    message_dim: Width = 64
    n_layers: Depth = 3
    n_vectors: Width = 16
    n_tensors: int = Field(16, ge=0, le=4096)
    """Channels of rank 2; 0 does without."""
    n_radial: Width = 20
    long_range: bool = False
    """Charges, and dispersion, that act at any distance: for data with ions (`charge`), with atomic `charges` and
    `dipole`, where there are any. With init_from it may be new: its weights begin at random."""
    charge_response: bool = False
    """The structure's charge, given or counted, adds what its atoms' surroundings do not show of it: for conjugated
    ions. Needs long_range; with init_from it may be new."""
    response_window: tuple[float, float, float] = (0.1, 0.003, 0.2)
    """What may be missing before anything is added (e, and e per atom), and over how much (e) it rises to all of it.
    With init_from it may change."""
    repulsion_reach: float = Field(0.85, gt=0)
    core_start: float = Field(0.5, gt=0)
    core_end: float = Field(0.7, gt=0)
    """Sums of covalent radii; see `PotentialConfig`."""
    atomic_dipoles: bool = False
    """Dipole moments have a part of each atom beside that of the charges, which alone do not give them. Needs
    long_range; with init_from it may be new."""
    node_dim: Width | None = None
    """Width of what layers compute at each atom; hidden_dim where it is not given. With init_from it may be larger."""
    bound: float | None = Field(None, gt=0)
    """Where vectors and their products saturate in the layers, some tens: else they run away in contacts closer than
    any of the data. With init_from this, repulsion_reach, core_start and core_end, which have no weights, and those
    that may be new are the only keys of [model] that count."""


class PotentialTrainingConfig(TrainingConfig):
    """The loss, and whether to compile it."""

    loss: Literal["l1", "mse"] = "l1"
    energy_weight: float = Field(1.0, ge=0)
    """Of the energy error per atom, eV."""
    force_weight: float = Field(1.0, ge=0)
    """Of the length of an atom's force error, eV/Å."""
    stress_weight: float = Field(0.0, ge=0)
    """Of the stress error, eV/Å³; 0 leaves stress out."""
    charge_weight: float = Field(0.5, ge=0)
    """Of the errors of charges, e, of atoms and of structures: models with long_range."""
    dipole_weight: float = Field(0.2, ge=0)
    """Of the length of the error of dipole moments, e·Å: models with long_range."""
    compile: bool = False
    """Trace and compile the training step: a minute or two at the start, then about 2.5x faster on a CPU."""


class PotentialRun(RunConfig):
    """The whole file."""

    task: Literal["potential"] = "potential"
    name: str = "potential"
    data: PotentialDataConfig
    model: PotentialModelConfig = PotentialModelConfig()
    training: PotentialTrainingConfig
