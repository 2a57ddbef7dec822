"""An EGNN potential in i-PI: path integrals, all beads in one call. `pip install 'egnn-md[ipi]'`, and in the input:

    <ffdirect name='egnn'>
      <pes>custom</pes> <pes_path>PATH OF THIS FILE</pes_path> <batch_size>NUMBER OF BEADS</batch_size>
      <parameters>{template: init.xyz, model: organic-xtb, periodic: False}</parameters>
    </ffdirect>

`python -m egnn_md.calculators.ipi_driver` prints the path. i-PI converts between atomic units and its files' units with
constants of its own; so does this file, so that what stands in those files is in Å and eV exactly.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Final

import numpy as np
from ipi.pes.dummy import Dummy_driver
from ipi.utils.softexit import softexit
from ipi.utils.units import unit_to_internal, unit_to_user
from numpy.typing import NDArray

from egnn_md.calculators.options import refuse_unknown
from egnn_md.data.reading import DataError
from egnn_md.neighbors.lists import DEFAULT_SKIN
from egnn_md.predict import Geometry, Predictor, Result

__DRIVER_NAME__ = "egnn"
__DRIVER_CLASS__ = "EGNNDriver"

FloatArray = NDArray[np.float64]
Answer = tuple[float, FloatArray, FloatArray, str]
"""Energy, forces (n_atoms, 3), virial (3, 3) and remarks, in i-PI's units."""

NEEDED: Final = {
    "template": "a file that ase reads, with the elements in the order of the simulation",
    "periodic": "True, or False for isolated molecules (i-PI has a cell in any case)",
}
DEFAULTS: Final[dict[str, Any]] = {
    "model": "organic-xtb",
    "device": "cpu",
    "dtype": "float64",
    "skin": DEFAULT_SKIN,
    "charge": None,
}
_OF_IPI: Final = {"verbose", "verbosity"}


class EGNNDriver(Dummy_driver):  # type: ignore[misc]
    """What i-PI calls with one structure, or with lists of cells and positions: a batch.

    Parameters are those of `NEEDED` and `DEFAULTS`, as `Predictor` takes them. Raises ValueError for a parameter that
    is missing, elements that the model does not know and a charge; TypeError for unknown parameters.
    """

    def __init__(self, **parameters: Any) -> None:
        super().__init__(verbose=bool(parameters.get("verbose", False)))
        given = {name: value for name, value in parameters.items() if name not in _OF_IPI}
        refuse_unknown("the EGNN driver", given, [*NEEDED, *DEFAULTS])
        for name, meaning in NEEDED.items():
            if name not in given:
                raise ValueError(f"the EGNN driver needs the parameter {name}: {meaning}")
        options = {**DEFAULTS, **given}
        self.pbc = np.full(3, _truth("periodic", options["periodic"]))
        self.atomic_numbers = _elements(Path(options["template"]))
        names = ("device", "dtype", "skin")
        self.predictor = Predictor(options["model"], **{name: options[name] for name in names})
        self.predictor.check(self.atomic_numbers)
        self.charge = None if options["charge"] is None else float(options["charge"])
        self.predictor.check_charge(self.charge)

    def compute(self, cell: Any, pos: Any) -> Any:
        """Cell (3, 3), columns are vectors, and pos (n_atoms, 3) in bohr -> `Answer`; lists of both -> a list."""
        try:
            if not isinstance(pos, list):
                structure = self._structure(cell, pos)
                result = self.predictor(*structure, stress=bool(self.pbc.all()))
                return _answer(structure, result)
            structures = [self._structure(*one) for one in zip(cell, pos, strict=True)]
            results = self.predictor.many(structures, stress=bool(self.pbc.all()))
            return [_answer(*one) for one in zip(structures, results, strict=True)]
        except Exception as error:
            if threading.current_thread() is not threading.main_thread():
                softexit.trigger(status="bad", message=str(error))  # else i-PI would wait for the thread for ever
            raise

    def _structure(self, cell: FloatArray, positions: FloatArray) -> Geometry:
        if len(positions) != len(self.atomic_numbers):
            raise ValueError(
                f"i-PI has {len(positions)} atoms, but the template has {len(self.atomic_numbers)}: "
                "the template is to hold the atoms of the simulation, in its order"
            )
        positions = np.ascontiguousarray(unit_to_user("length", "angstrom", positions))
        box = unit_to_user("length", "angstrom", np.ascontiguousarray(cell.T)) if self.pbc.any() else np.zeros((3, 3))
        return Geometry(positions, self.atomic_numbers, box, self.pbc, self.charge)


def _answer(structure: Geometry, result: Result) -> Answer:
    virial = np.zeros((3, 3))
    if result.stress is not None:
        virial = -result.stress * abs(np.linalg.det(structure.cell))
    return (
        float(unit_to_internal("energy", "electronvolt", result.energy)),
        unit_to_internal("force", "ev/ang", result.forces),
        unit_to_internal("energy", "electronvolt", virial),
        "",
    )


def _elements(template: Path) -> NDArray[np.int64]:
    from egnn_md.data.structure_files import as_atoms, read_structures

    if not template.exists():
        raise ValueError(f"there is no {template}: template is {NEEDED['template']}")
    *_, (_, last) = read_structures(template)
    if isinstance(last, DataError):
        raise DataError(f"{template}: {last}")
    numbers: NDArray[np.int64] = as_atoms(last).numbers.astype(np.int64)
    return numbers


def _truth(name: str, value: Any) -> bool:
    """i-PI hands on booleans, or the text of its input."""
    text = str(value).strip().lower()
    if text not in ("true", "false"):
        raise ValueError(f"the parameter {name} of the EGNN driver is True or False, not {value!r}")
    return text == "true"


if __name__ == "__main__":
    print(Path(__file__).resolve())
