"""The options of a molecular dynamics run, checked."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal, get_args

Engine = Literal["ase", "openmm"]
Ensemble = Literal["nve", "nvt", "npt"]
Format = Literal["traj", "extxyz", "xtc", "dcd", "h5"]
ENGINES: Final[tuple[str, ...]] = get_args(Engine)
ENSEMBLES: Final[tuple[str, ...]] = get_args(Ensemble)
FORMATS: Final[tuple[str, ...]] = get_args(Format)


class SettingsError(ValueError):
    """An option that makes no sense, or does not fit the structure or the run; the message names it."""


@dataclass(frozen=True)
class MDSettings:
    """All that decides a trajectory, the model and the structure apart."""

    engine: Engine = "ase"
    """Whose integrators move the atoms."""
    ensemble: Ensemble = "nvt"
    """"nve": velocity Verlet; "nvt": Langevin (BAOAB; in OpenMM its leapfrog form); "npt": Langevin with an isotropic
    barostat (ase: Langevin-Hoover; OpenMM: Monte Carlo)."""
    temperature: float = 300.0
    """K: of the initial velocities, and of the thermostat."""
    pressure: float = 1.01325
    """bar; npt only."""
    friction: float = 5.0
    """1/ps; nvt and npt."""
    timestep: float = 0.5
    """fs."""
    steps: int = 10_000
    """Steps in all, those before a resume included."""
    interval: int = 10
    """Steps between frames of the trajectory and lines of the log."""
    seed: int = 0
    """Of the initial velocities and the thermostat's noise."""
    format: Format = "traj"
    """Of the trajectory."""

    def __post_init__(self) -> None:
        _choice("engine", self.engine, ENGINES)
        _choice("ensemble", self.ensemble, ENSEMBLES)
        _choice("format", self.format, FORMATS)
        for name, unit in (("temperature", "K"), ("pressure", "bar"), ("friction", "1/ps"), ("timestep", "fs")):
            if not math.isfinite(getattr(self, name)):
                raise SettingsError(f"{name} must be a number of {unit}, not {getattr(self, name)}")
        if self.timestep <= 0:
            raise SettingsError(f"timestep must be above 0 fs, not {self.timestep}")
        if self.temperature < 0 or (self.temperature == 0 and self.ensemble != "nve"):
            raise SettingsError(f"temperature must be above 0 K, not {self.temperature}")
        if self.friction <= 0 and self.ensemble != "nve":
            raise SettingsError(f"friction must be above 0 /ps, not {self.friction}; ensemble nve has none")
        if self.steps < 0:
            raise SettingsError(f"steps must not be negative, not {self.steps}")
        if self.interval < 1:
            raise SettingsError(f"interval must be at least 1 step, not {self.interval}")
        if self.seed < 0:
            raise SettingsError(f"seed must not be negative, not {self.seed}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MDSettings:
        """The settings that `asdict` made. Raises SettingsError for keys it does not know."""
        unknown = values.keys() - {field.name for field in fields(cls)}
        if unknown:
            raise SettingsError(f"unknown settings {sorted(unknown)}: the run was made by another version")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise SettingsError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
