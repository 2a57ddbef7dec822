"""Use an installed egnn-md as its users do: from Python and from the command line, in the working directory.

python smoke.py PATH/TO/egnn-md
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import egnn_md

NBODY = """
task = "nbody"
[data]
files = ["nbody.npz"]
[training]
max_steps = 4
batch_size = 10
validate_every = 4
substeps = [4]
"""


def main() -> None:
    """Raise if something does not work."""
    print(f"egnn-md {version('egnn-md')} on Python {sys.version.split()[0]}, from {Path(egnn_md.__file__).parent}")
    assert "site-packages" in egnn_md.__file__
    from ase.build import molecule

    from egnn_md.calculators import EGNNCalculator, create_system

    atoms = molecule("CH3CH2OH")
    atoms.calc = EGNNCalculator("organic-xtb")
    assert abs(atoms.get_forces().sum(0)).max() < 1e-9
    assert create_system is not None

    def verb(*words: str) -> dict[str, object]:
        done = subprocess.run([sys.argv[1], *words, "--json"], stdout=subprocess.PIPE, text=True, check=True)
        return dict(json.loads(done.stdout)) if words[0] != "models" else {"models": json.loads(done.stdout)}

    assert "organic-xtb" in str(verb("models"))
    verb("md", "CH3CH2OH", "--steps", "20", "-o", "run")
    verb("md", "H2O", "--engine", "openmm", "--steps", "20", "-o", "openmm")
    verb("data", "nbody", "--train", "40", "--valid", "10", "--test", "10", "-o", "nbody.npz")
    Path("nbody.toml").write_text(NBODY)
    assert Path(str(verb("train", "nbody.toml", "-o", "trained")["model"])).is_file()
    unknown = subprocess.run([sys.argv[1], "reproduce", "autoencoder", "--only", "nothing"], capture_output=True)
    assert unknown.returncode == 2
    print("all of it works")


if __name__ == "__main__":
    main()
