"""egnn-md: E(n)-equivariant graph neural networks for molecular simulation.

    >>> import egnn_md as em
    >>> em.models()  # which model for what  # doctest: +SKIP
    >>> model = em.load("organic-xtb")  # a torch.nn.Module: Graph -> Prediction
    >>> page = em.view("CH3CH2OH")  # Atoms, a file or a run folder, to turn and play; page.write("look.html")

In an engine:

    >>> from egnn_md.calculators import EGNNCalculator  # ASE
    >>> from egnn_md.calculators import create_system, create_openmm_force  # OpenMM
    >>> from egnn_md.dynamics import FlowDynamics  # strides of 10 fs without forces, as an ase.md object

On the command line: egnn-md md, relax, predict, rollout, train, evaluate, … (egnn-md --help). Units everywhere: eV, Å,
amu, fs.

`import egnn_md` is cheap: torch and the models load when something needs them.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing costs milliseconds, which short processes wait for
__version__ = "0.2.0"
__all__ = ["Graph", "Prediction", "Predictor", "__version__", "load", "models", "shipped_models", "view"]

if TYPE_CHECKING:
    from typing import Any

    from egnn_md.checkpoint import load, shipped_models
    from egnn_md.graph import Graph, Prediction
    from egnn_md.predict import Predictor
    from egnn_md.registry import models
    from egnn_md.report.notebook import view

_HOMES = {
    "Graph": "egnn_md.graph",
    "Prediction": "egnn_md.graph",
    "Predictor": "egnn_md.predict",
    "load": "egnn_md.checkpoint",
    "shipped_models": "egnn_md.checkpoint",
    "view": "egnn_md.report.notebook",
}
_PACKAGES = ("calculators", "dynamics", "models", "nn")
"""Found as attributes without an import of their own."""


def __getattr__(name: str) -> Any:
    import importlib

    if name in _PACKAGES:
        return importlib.import_module(f"egnn_md.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'egnn_md' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*__all__, *_PACKAGES, *(name for name in globals() if name.startswith("__"))})
