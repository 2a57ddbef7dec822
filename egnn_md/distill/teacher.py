"""Who gives the labels: GFN2-xTB by name, or any ASE calculator."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ase import Atoms

Calculate = Callable[["Atoms"], Any]
"""The ASE calculator for these atoms."""


class TeacherError(ValueError):
    """A teacher that cannot be had; the message says what to do."""


@dataclass(frozen=True)
class Teacher:
    """A name and its options: what another process needs to make the same teacher."""

    name: str
    """"gfn2-xtb", or "module:callable" that returns an ASE calculator; modules of the current folder count."""
    options: tuple[tuple[str, Any], ...] = ()
    """Keyword arguments of the callable."""

    @staticmethod
    def parse(name: str, options: list[str]) -> Teacher:
        """`options` as "key=value"; numbers and true, false, none become what they say. Raises TeacherError."""
        pairs = []
        for text in options:
            key, equals, value = text.partition("=")
            if not equals or not key.isidentifier():
                raise TeacherError(f"--with needs key=value, not {text!r}")
            pairs.append((key, _value(value)))
        return Teacher(name, tuple(pairs))

    def open(self) -> Calculate:
        """Load it. Raises TeacherError."""
        options = dict(self.options)
        if self.name == "gfn2-xtb":
            return _gfn2(options)
        module, colon, function = self.name.partition(":")
        if not colon:
            raise TeacherError(f"a teacher is gfn2-xtb or module:callable, not {self.name!r}")
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        try:
            make = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise TeacherError(f"the teacher {self.name} cannot be imported: {error}") from error
        try:
            calculator = make(**options)
        except Exception as error:  # whatever somebody's constructor raises
            raise TeacherError(f"the teacher {self.name} cannot be made: {error or type(error).__name__}") from error
        if not hasattr(calculator, "get_property"):
            raise TeacherError(f"{self.name} returned a {type(calculator).__name__}, which is no ASE calculator")
        return lambda atoms: calculator

    def identity(self) -> dict[str, Any]:
        """As JSON values."""
        return {"teacher": self.name, "with": {key: str(value) for key, value in self.options}}


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _gfn2(options: Mapping[str, Any]) -> Calculate:
    """A new calculator each time: one that goes on from the last structure's density is a sixth faster, and its forces
    depend on what came before, by half a meV/Å.
    """
    try:
        from tblite.ase import TBLite
    except ImportError:
        raise TeacherError("gfn2-xtb needs tblite: pip install 'egnn-md[distill]'") from None

    def calculator(atoms: Atoms) -> Any:
        charge, multiplicity = float(atoms.info.get("charge", 0)), atoms.info.get("spin")
        state = {"charge": charge} | ({} if multiplicity is None else {"multiplicity": int(multiplicity)})
        return TBLite(method="GFN2-xTB", verbosity=0, **{**state, **options})

    return calculator
