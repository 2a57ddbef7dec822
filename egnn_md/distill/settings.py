"""The options of a distillation, checked, and kept in its folder."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any


class DistillError(ValueError):
    """A distillation that cannot be done as asked; the message says what to do."""


@dataclass(frozen=True)
class Settings:
    """All that decides a distillation; the machine apart."""

    teacher: str
    options: tuple[str, ...]
    """"key=value" of the teacher."""
    molecules: tuple[str, ...]
    """Files and SMILES."""
    temperatures: tuple[float, ...] = (300.0, 500.0)
    """K: of the student's dynamics, in which frames are found."""
    start: str = "auto"
    """A model to fine-tune; "auto": the shipped one that knows the elements, if there is one; "none"."""
    labels: int | None = None
    """Frames chosen in a round; None: 100, or with a budget as many as fit into their share of it, 500 at most."""
    rounds: int = 5
    target: float | None = None
    """meV/Å: stop when the measured error is no larger."""
    budget: float | None = None
    """Seconds of everything together."""
    steps: int = 2000
    """Training steps of a round; the last training has three times as many. With a budget, time decides."""
    picoseconds: float = 2.0
    """Of each copy's dynamics in the last round; earlier ones have less."""
    copies: int = 16
    """Of the dynamics, over all molecules and temperatures."""
    timestep: float = 0.5
    """fs."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.molecules:
            raise DistillError("give at least one SMILES or file of structures")
        if not self.temperatures or not all(0 < t < 1e4 for t in self.temperatures):
            raise DistillError("--temperature must be above 0 K")
        for name in ("rounds", "steps", "copies"):
            if getattr(self, name) < 1:
                raise DistillError(f"--{name} must be at least 1, not {getattr(self, name)}")
        if self.labels is not None and self.labels < 10:
            raise DistillError(
                f"--labels must be at least 10 in a round, not {self.labels}: errors could not be measured"
            )
        for name in ("target", "budget", "picoseconds", "timestep"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise DistillError(f"--{name} must be above 0, not {value}")

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Settings:
        """What `to_dict` made. Raises DistillError."""
        try:
            lists = {name: tuple(values[name]) for name in ("options", "molecules", "temperatures")}
            return Settings(**{**values, **lists})
        except (KeyError, TypeError) as error:
            raise DistillError(f"these settings are of another version: {error}") from None


def parse_seconds(text: str | None) -> float | None:
    """'90s', '30m', '2h', '1h30m' or a number of seconds. Raises DistillError."""
    if text is None:
        return None
    found = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    seconds = (
        sum(float(part) * unit for part, unit in zip(found.groups("0"), (3600, 60, 1), strict=True)) if found else 0
    )
    if not seconds > 0:
        raise DistillError(f"--budget is a time such as 90s, 30m or 2h, not {text!r}")
    return seconds
