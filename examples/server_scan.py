"""Energies from a running server, in a script that imports neither torch nor numpy and starts in milliseconds.

egnn-md serve organic-xtb --socket egnn.sock &
python examples/server_scan.py egnn.sock          # the O-H bond of water, stretched
"""

from __future__ import annotations

import sys

from egnn_md.calculators.client import Client


def main(address: str) -> None:
    with Client(address) as client:
        for length in (0.86, 0.91, 0.96, 1.01, 1.06):
            positions = [[0.0, 0.0, 0.0], [0.0, 0.0, length], [0.93, 0.0, -0.24]]
            answer = client.predict([8, 1, 1], positions)
            pull = answer["forces"][1][2]
            print(f"{length:.2f} Å  {answer['energy']:.4f} eV  {pull:+.3f} eV/Å along the bond")


if __name__ == "__main__":
    main(sys.argv[1])
