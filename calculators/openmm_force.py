"""An EGNN potential as an OpenMM force: nm and kJ/mol outside, Å and eV inside.

The force calls a `Computation`, a Python object that holds the model. What is pickled of it, and so goes into OpenMM's
XML, is the model's name, or the bytes of its checkpoint, and the options: never weights on a device or compiled code.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import openmm
import torch
from numpy.typing import NDArray
from openmm.unit import nanometer
from torch import Tensor

from egnn_md.calculators.openmm_region import Region, select_region
from egnn_md.chemistry.units import ANGSTROM_PER_NM, KJ_PER_MOL_PER_EV
from egnn_md.compiled.forces import Compile
from egnn_md.model_source import ModelSource
from egnn_md.models.potential import Potential
from egnn_md.neighbors.lists import DEFAULT_SKIN
from egnn_md.options import parse_device, parse_dtype
from egnn_md.predict import Predictor, Result

FloatArray = NDArray[np.float64]

FORCE_UNIT: Final = KJ_PER_MOL_PER_EV * ANGSTROM_PER_NM
"""1 eV/Å in kJ/mol/nm."""
_NO_CELL: Final = np.zeros((3, 3))
_LOADED: Final = ("_predictor", "_loading", "_local")


def create_openmm_force(
    model: str | Path | Potential,
    topology: Any,
    atoms: Iterable[int] | None = None,
    *,
    periodic: bool | None = None,
    charge: float | None = None,
    multiplicity: int = 1,
    device: str | None = None,
    dtype: str | torch.dtype = "float64",
    force_group: int = 0,
    skin: float = DEFAULT_SKIN,
    compile: Compile = "auto",
) -> openmm.Force:
    """An `openmm.Force` with the energy and forces of an EGNN potential, for `system.addForce`.

    Parameters
    ----------
    model: name of a shipped potential, path of a checkpoint, or a `Potential`.
    topology: of OpenMM, or of mdtraj.
    atoms: indices of the particles that it describes, None for all. Particles without an element are left out.
    periodic: whether periodic images interact; None: if the topology has box vectors.
    charge: e, of these atoms together; None: what the topology's formal charges or the structure itself say. Models
        without charges know 0 only, and each step holds a structure to it. multiplicity: models know 1.
    device: "cpu" or "cuda"; None: "cuda" if there is one where the simulation runs, else "cpu".
    dtype: "float64", or "float32" for speed; precision of the network.
    force_group: of the force.
    skin: Å by which neighbour lists reach beyond the cutoff, so that they last for several steps.
    compile: "auto" uses the compiled force call of `egnn-md compile` if there is one; True compiles it now, if need be;
        False does without.

    It is a `PythonForce`, or openmm-torch's `PythonTorchForce` where that can be imported. One force may serve
    several Contexts. Raises ValueError for elements that the model does not know, charges, open shells and bad
    `atoms`; while a simulation runs, what is wrong (NaN, atoms closer than 0.1 Å) arrives as an OpenMMException.
    """
    topology = _openmm_topology(topology)
    source = ModelSource.of(model)
    region = select_region(topology, atoms, charge, multiplicity, ions=source.ions)
    if periodic is None:
        periodic = topology.getPeriodicBoxVectors() is not None
    options = Options(periodic, device, str(dtype).removeprefix("torch."), skin, compile)
    return make_force(source, region, options, force_group)


def create_system(
    topology: Any, model: str | Path | Potential = "organic-xtb", *, remove_cm_motion: bool = True, **options: Any
) -> openmm.System:
    """An `openmm.System` that is all EGNN: the topology's particles and box, and the force.

    `options` are those of `create_openmm_force`. Particles without an element get no mass and no force. Bonds of the
    topology carry no energy; they tell OpenMM which atoms are a molecule, to wrap it, or scale its place, as a whole.

    >>> from openmm import app
    >>> topology = app.Topology()  # or app.PDBFile("molecule.pdb").topology
    >>> residue = topology.addResidue("HOH", topology.addChain())
    >>> for symbol in ("O", "H", "H"):
    ...     atom = topology.addAtom(symbol, app.Element.getBySymbol(symbol), residue)
    >>> create_system(topology, "organic-xtb").getNumParticles()
    3
    """
    topology = _openmm_topology(topology)
    force = create_openmm_force(model, topology, **options)
    system = openmm.System()
    if topology.getPeriodicBoxVectors() is not None:
        system.setDefaultPeriodicBoxVectors(*topology.getPeriodicBoxVectors())
    for atom in topology.atoms():
        system.addParticle(0.0 if atom.element is None else atom.element.mass)
    system.addForce(force)
    system.addForce(molecules(topology, range(system.getNumParticles())))
    if remove_cm_motion:
        system.addForce(openmm.CMMotionRemover())
    return system


@dataclass(frozen=True)
class Options:
    """How a `Computation` runs. Making it checks all that can be checked on any machine."""

    periodic: bool
    device: str | None
    dtype: str
    skin: float = DEFAULT_SKIN
    compile: Compile = "auto"

    def __post_init__(self) -> None:
        parse_dtype(self.dtype)
        if self.device is not None:
            parse_device(self.device)


def make_force(source: ModelSource, region: Region, options: Options, force_group: int) -> openmm.Force:
    """The force on a region. Loads the model once, to refuse elements that it does not know."""
    make, computation_class = _force_class()
    computation = computation_class(source, region.atomic_numbers, options, region.charge)
    computation.predictor.check(region.atomic_numbers)
    force = make(computation, {}, () if region.whole else region.particles)
    force.setUsesPeriodicBoundaryConditions(options.periodic)
    force.setForceGroup(force_group)
    force.setName(f"EGNN {source.label}")
    return force


def molecules(topology: Any, particles: Iterable[int]) -> openmm.Force:
    """Bonds without energy between `particles`: by bonds alone OpenMM knows what is a molecule."""
    inside = set(particles)
    bonds = openmm.HarmonicBondForce()
    bonds.setName("molecules (no energy)")
    for one, other in ((bond[0].index, bond[1].index) for bond in topology.bonds()):
        if one in inside and other in inside:
            bonds.addBond(one, other, 0.0, 0.0)
    return bonds


def _openmm_topology(topology: Any) -> Any:
    """OpenMM's own, or made from mdtraj's."""
    return topology.to_openmm() if hasattr(topology, "to_openmm") else topology


def _force_class() -> tuple[Any, type[Computation]]:
    try:
        from openmmtorch import PythonTorchForce
    except (ImportError, OSError):  # not there, of a release before it had that class, or without its CUDA libraries
        return openmm.PythonForce, Computation
    return PythonTorchForce, TorchComputation


@dataclass
class _Workspace:
    """What one thread keeps from call to call: a predictor with its neighbour list, and the last answer."""

    predictor: Predictor
    asked: tuple[bytes, bytes] | None = None
    """Positions and cell of the last answer, as bytes: several times cheaper to compare than arrays."""
    answer: Result | None = None


class Computation:
    """state -> (energy, forces) in kJ/mol and kJ/mol/nm: what an `openmm.PythonForce` calls.

    The answer depends on the structure alone, not on earlier calls; asked again for the same structure (OpenMM does,
    for every report of an energy) it is not computed anew. Threads share the weights and nothing else.
    """

    charge: float | None = None
    """e; forces stored by earlier versions have none."""

    def __init__(
        self, source: ModelSource, atomic_numbers: NDArray[np.int64], options: Options, charge: float | None = None
    ) -> None:
        self.source = source
        self.charge = charge
        self.atomic_numbers = atomic_numbers
        self.options = options
        self._pbc = np.full(3, options.periodic)
        self._forget()

    def _forget(self) -> None:
        self._predictor: Predictor | None = None
        self._loading = threading.Lock()
        self._local = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _LOADED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    @property
    def predictor(self) -> Predictor:
        """The model, loaded when it is first asked for: copies that are never used cost nothing."""
        with self._loading:
            if self._predictor is None:
                options = self.options
                device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
                self._predictor = Predictor(
                    self.source,
                    device=device,
                    dtype=options.dtype,
                    skin=options.skin,
                    closest=0.0,  # minimizers overstep: a large finite repulsion sends them back, an error ends them
                    compile=options.compile,
                )
            return self._predictor

    def __call__(self, state: openmm.State) -> tuple[float, FloatArray]:
        """Raises ValueError for positions that are no structure, PredictionError for results that are not finite."""
        result = self._predict(state.getPositions(asNumpy=True).value_in_unit(nanometer), state)
        return result.energy * KJ_PER_MOL_PER_EV, result.forces * FORCE_UNIT

    def _predict(self, positions: FloatArray, state: openmm.State) -> Result:
        """For `positions` (n_atoms, 3) in nm and the box of `state`."""
        if len(positions) != len(self.atomic_numbers):
            raise ValueError(
                f"the system has {len(positions)} particles, but the EGNN force was made for "
                f"{len(self.atomic_numbers)}: make it from the system's own topology, or tell it its atoms"
            )
        positions, cell = positions * ANGSTROM_PER_NM, _NO_CELL
        if self.options.periodic:
            cell = state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(nanometer) * ANGSTROM_PER_NM
        work, asked = self._workspace(), (positions.tobytes(), cell.tobytes())
        if work.answer is None or asked != work.asked:
            work.answer = None  # if anything below fails, nothing old is left
            work.answer = work.predictor(positions, self.atomic_numbers, cell, self._pbc, self.charge)
            work.asked = asked
        return work.answer

    def _workspace(self) -> _Workspace:
        work: _Workspace | None = getattr(self._local, "work", None)
        if work is None:
            work = self._local.work = _Workspace(self.predictor.fork())
        return work


class TorchComputation(Computation):
    """(state, positions) -> (energy, forces): the same for openmm-torch's `PythonTorchForce`, tensors in and out.

    Positions and forces pass through the CPU, which makes the neighbour list.
    """

    def __call__(self, state: openmm.State, positions: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """positions (n_atoms, 3) in nm -> energy () in kJ/mol and forces (n_atoms, 3) in kJ/mol/nm."""
        result = self._predict(positions.numpy(force=True).astype(np.float64), state)
        energy = torch.tensor(result.energy * KJ_PER_MOL_PER_EV, dtype=torch.float64, device=positions.device)
        return energy, torch.from_numpy(result.forces * FORCE_UNIT).to(positions)
