"""The openmm-ml plugin: `MLPotential("egnn", model=...)`, and each shipped potential by its name.

openmm-ml imports this module, through the entry points in pyproject.toml, whenever it is imported itself: torch and
the models load when a system is made.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import openmm

from egnn_md.calculators.options import refuse_unknown


class EGNNPotentialFactory:
    """Makes an `EGNNPotential` for `MLPotential("egnn", model="organic-xtb")` or `MLPotential("organic-xtb")`."""

    def createImpl(self, name: str, **args: Any) -> EGNNPotential:  # noqa: N802
        """`model`: a shipped name, the path of a checkpoint or a `Potential`; other options as in `EGNNPotential`.

        Raises TypeError for unknown options.
        """
        if name == "egnn":
            return EGNNPotential(args.pop("model", "organic-xtb"), args)
        return EGNNPotential(name, args)


# openmm-ml looks for the class above while it is being imported, which may be here: so this import comes after it.
from openmmml.mlpotential import MLPotentialImpl  # noqa: E402

PRECISIONS: Final = {"single": "float32", "double": "float64"}
DEFAULTS: Final[dict[str, Any]] = {
    "device": None,
    "precision": None,
    "dtype": None,
    "charge": None,
    "multiplicity": 1,
    "compile": "auto",
}
_OF_EMBEDDING: Final = ("linkAtomDistances",)
"""Arguments of createMixedSystem that openmm-ml hands on to potentials too."""


class EGNNPotential(MLPotentialImpl):  # type: ignore[misc]
    """An EGNN potential for openmm-ml.

    Options, of MLPotential, createSystem and createMixedSystem alike: `device` ("cpu", "cuda"; default: "cuda" if
    there is one), `precision` ("single", "double"; default "double") or `dtype` ("float32", "float64"), `charge` (e;
    None: what the topology, the force field or the structure says) and `multiplicity` (1) of the atoms described,
    `compile` ("auto").
    """

    def __init__(self, model: Any, options: dict[str, Any]) -> None:
        refuse_unknown("the EGNN potential", options, ["model", *DEFAULTS])
        if "model" in options:
            raise TypeError(f"MLPotential({model!r}) has its model already: write MLPotential('egnn', model=...)")
        self.model = model
        self.options = options

    def addForces(  # noqa: N802
        self,
        topology: Any,
        system: openmm.System,
        atoms: Iterable[int] | None,
        forceGroup: int,
        **args: Any,
    ) -> None:
        """Add the force to a system, as openmm-ml asks for it.

        Periodic if the topology has box vectors, or the system has. Raises as `create_openmm_force`, and TypeError
        for unknown options.
        """
        refuse_unknown("the EGNN potential", args, [*DEFAULTS, *_OF_EMBEDDING])
        own = {name: value for name, value in args.items() if name in DEFAULTS}
        options = {**DEFAULTS, **self.options, **own}
        from egnn_md.calculators.openmm_force import Options, make_force, molecules
        from egnn_md.calculators.openmm_region import select_region
        from egnn_md.model_source import ModelSource

        alone = system.getNumParticles() == 0  # the force is on its way into another system
        force_field = None if alone else system
        source = ModelSource.of(self.model)
        region = select_region(
            topology, atoms, options["charge"], options["multiplicity"], force_field, ions=source.ions
        )
        periodic = topology.getPeriodicBoxVectors() is not None or system.usesPeriodicBoundaryConditions()
        force_options = Options(periodic, options["device"], _dtype(options), compile=options["compile"])
        system.addForce(make_force(source, region, force_options, forceGroup))
        if not alone:
            system.addForce(molecules(topology, region.particles))

    def getSupportedEmbeddings(self) -> list[str]:  # noqa: N802
        """openmm-ml's own mechanical embedding, after a look at what it cannot take."""
        return ["mechanical"]

    def createMixedSystem(  # noqa: N802
        self,
        topology: Any,
        system: openmm.System,
        atoms: list[int],
        forceGroup: int,
        interpolate: bool,
        embedding: str,
        returnInfo: bool = False,
        **args: Any,
    ) -> Any:
        """Raises ValueError for particles without an element, on which openmm-ml 1.8 breaks without a word."""
        sites = [atom for atom in topology.atoms() if atom.element is None]
        if sites:
            first = sites[0]
            raise ValueError(
                f"particle {first.index} ({first.name} of {first.residue.name}) and {len(sites) - 1} more have no "
                "element: sites of four- or five-site water (TIP4P, TIP5P) or Drude particles, which openmm-ml's mixed "
                "systems cannot have; take three-site water such as TIP3P or OPC3"
            )
        from openmmml.embeddings.mechanicalembedding import MechanicalEmbedding

        own = MechanicalEmbedding()
        return own.createMixedSystem(
            self, topology, system, atoms, forceGroup, interpolate, returnInfo=returnInfo, **args
        )

    def getMLLongRange(self) -> bool:  # noqa: N802
        """Whether charges and dispersion act beyond the cutoff: of models with charges."""
        from egnn_md.model_source import ModelSource

        return ModelSource.of(self.model).ions


def _dtype(options: dict[str, Any]) -> str:
    """ "float32" or "float64", from `precision` or `dtype`. Raises ValueError if they are unknown or contradict."""
    precision, dtype = options["precision"], options["dtype"]
    if precision is not None and precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}: use 'single' or 'double'")
    named = None if dtype is None else str(dtype).removeprefix("torch.")
    meant = None if precision is None else PRECISIONS[precision]
    if named and meant and named != meant:
        raise ValueError(f"precision {precision!r} and dtype {named!r} contradict each other: give one of them")
    return named or meant or "float64"
