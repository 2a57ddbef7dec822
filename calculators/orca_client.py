"""`egnn-md-orca`: what ORCA calls for energy and gradient (`! ExtOpt`), and asks a running `egnn-md serve`.

ORCA writes NAME_EXT.extinp.tmp (a structure's file, charge, multiplicity, cores, whether it wants the gradient, perhaps
a file of point charges) and reads NAME_EXT.engrad, in Hartree and Bohr. A call takes milliseconds, most of them for
imports: no torch, no numpy, not even pathlib.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from egnn_md.calculators.client import SERVER, TOKEN_FILE, Client, ServerError
from egnn_md.chemistry.elements import NUMBER_OF
from egnn_md.chemistry.units import ANGSTROM_PER_BOHR, EV_PER_HARTREE


class Request(NamedTuple):
    """What ORCA asks for."""

    structure: str
    """Path of its xyz file, Å."""
    charge: int
    multiplicity: int
    gradient: bool


def read_request(file: str) -> Request:
    """Raises ValueError for a file that is no request, and for point charges."""
    with open(file) as content:
        lines = [line.split("#")[0].strip() for line in content]
    fields = [line for line in lines if line]
    if len(fields) < 5:
        raise ValueError(f"{file} is no input of ORCA's ExtOpt: it has {len(fields)} fields of 5")
    if len(fields) > 5:
        raise ValueError(f"ORCA sends point charges ({fields[5]}): this model has no embedding in charges")
    return Request(os.path.join(os.path.dirname(file), fields[0]), int(fields[1]), int(fields[2]), fields[4] != "0")


def read_xyz(file: str) -> tuple[list[int], list[list[float]]]:
    """Atomic numbers and positions, Å. Raises ValueError for a file that is no xyz."""
    with open(file) as content:
        lines = content.read().splitlines()
    try:
        atoms = [line.split() for line in lines[2 : 2 + int(lines[0])]]
        return [NUMBER_OF[atom[0].capitalize()] for atom in atoms], [[float(x) for x in atom[1:4]] for atom in atoms]
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"{file} is no xyz file: {error}") from None


def engrad(energy: float, forces: Sequence[Sequence[float]], gradient: bool) -> str:
    """The file that ORCA reads, from eV and eV/Å."""
    text = f"#\n# Number of atoms\n#\n{len(forces)}\n#\n# Total energy [Eh]\n#\n{energy / EV_PER_HARTREE:.12e}\n"
    if gradient:
        unit = -ANGSTROM_PER_BOHR / EV_PER_HARTREE
        text += "#\n# Gradient [Eh/Bohr]: x, y, z of each atom\n#\n"
        text += "".join(f"{force * unit:.12e}\n" for atom in forces for force in atom)
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    """Answer one request of ORCA; ends with one line on stderr and exit code 1 if that cannot be done."""
    parser = argparse.ArgumentParser(prog="egnn-md-orca", description="Energy and gradient for ORCA's ExtOpt.")
    parser.add_argument("extinp", help="NAME_EXT.extinp.tmp, from ORCA")
    parser.add_argument("--server", help=f"socket or port of `egnn-md serve` (default: ${SERVER})")
    parser.add_argument("--token-file", help=f"of a server on a port (default: ${TOKEN_FILE})")
    options = parser.parse_args(arguments)
    try:
        request = read_request(options.extinp)
        numbers, positions = read_xyz(request.structure)
        with Client(options.server, options.token_file) as client:
            answer = client.predict(numbers, positions, charge=request.charge, multiplicity=request.multiplicity)
        with open(os.path.splitext(request.structure)[0] + ".engrad", "w") as output:
            output.write(engrad(answer["energy"], answer["forces"], request.gradient))
    except (ServerError, ValueError, OSError) as error:
        sys.exit(f"egnn-md-orca: {error}")


if __name__ == "__main__":
    main()
