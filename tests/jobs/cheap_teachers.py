"""Workers and teachers that cost nothing, in a module that other processes can import."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from egnn_md.jobs.chunks import Answer, Emit
from egnn_md.jobs.source import as_atoms


@dataclass(frozen=True)
class Counting:
    """Emits in the wrong order; fails with every fifth structure; stops as if killed after `stop_after`."""

    log: str
    stop_after: int = 10**9
    columns = ("x",)
    read = staticmethod(as_atoms)

    def open(self) -> Callable[[list[tuple[int, Atoms]], Emit], None]:
        def work(structures: list[tuple[int, Atoms]], emit: Emit) -> None:
            for done, (index, atoms) in enumerate(reversed(structures)):
                if done == self.stop_after:
                    raise KeyboardInterrupt
                with open(self.log, "a") as file:
                    file.write(f"{index}\n")
                x = float(atoms.positions[0, 0])
                emit(index, Answer.failed("a five", x=x) if index % 5 == 0 else Answer((atoms,), {"x": x}))

        return work


class Springs(Calculator):
    """Each atom on a spring to where it was in the first structure of its kind; refuses some on purpose."""

    implemented_properties = ("energy", "forces", "dipole")

    def __init__(self, k: float = 1.0, log: str = "", seconds: float = 0.0) -> None:
        super().__init__()
        self.k, self.log, self.seconds = k, log, seconds

    def calculate(self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        if self.log:
            with open(self.log, "a") as file:
                file.write(f"{atoms.info['number']} {os.getpid()}\n")
        time.sleep(self.seconds)
        if atoms.info.get("number") == 5:
            raise RuntimeError("charges did not\nconverge")
        far = 1e3 if atoms.info.get("number") == 7 else 1.0
        self.results = {
            "energy": 0.5 * self.k * float((atoms.positions**2).sum()),
            "forces": -self.k * far * atoms.positions,
            "dipole": np.ones(3),
        }
        if atoms.info.get("number") == 8:
            self.results["energy"] = float("nan")


def springs(**options: Any) -> Springs:
    return Springs(**options)


def executor(workers: int) -> Any:
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(workers)


def nothing() -> int:
    return 1


def shipped(log: str = "") -> Any:
    """organic-xtb as a teacher: consistent, quick, and its energies have another zero than a student's."""
    from egnn_md.calculators import EGNNCalculator

    class Shipped(EGNNCalculator):
        def calculate(self, atoms: Any = None, *words: Any, **options: Any) -> None:
            with open(log, "a") as file:
                file.write(f"{np.round(atoms.positions, 6).tobytes().hex()[:400]}\n")
            super().calculate(atoms, *words, **options)

    return Shipped("organic-xtb")


def ions() -> Any:
    """egnn-xtb as a teacher of what is charged."""
    from egnn_md.calculators import EGNNCalculator

    return EGNNCalculator("egnn-xtb")
