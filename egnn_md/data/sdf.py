"""Records of an sdf file (MDL's V2000): elements, positions, charge, multiplicity."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from egnn_md.chemistry.elements import NUMBER_OF
from egnn_md.data.drawings import DRAWING, is_flat_drawing


class SdfMolecule(NamedTuple):
    """What a V2000 record says."""

    numbers: list[int]
    positions: list[list[float]]
    charge: int
    multiplicity: int


def records(lines: Iterator[str]) -> Iterator[list[str]]:
    """The lines of each record, without its $$$$."""
    record: list[str] = []
    for line in lines:
        if not line.startswith("$$$$"):
            record.append(line)
            continue
        yield record
        record = []
    if any(line.strip() for line in record):
        yield record


_OLD_CHARGE: Final = {1: 3, 2: 2, 3: 1, 5: -1, 6: -2, 7: -3}
"""Of an atom line's code; 4 is a radical."""


def parse_molecule(record: list[str]) -> SdfMolecule:
    """Raises ValueError for a record that is not V2000, or whose counts do not fit its lines."""
    try:
        n_atoms, n_bonds = int(record[3][:3]), int(record[3][3:6])
        after = record[4 + n_atoms + n_bonds :]
        codes = [int(line[36:39].strip() or 0) for line in record[4 : 4 + n_atoms]]
        numbers = [NUMBER_OF[line[31:34].strip()] for line in record[4 : 4 + n_atoms]]
        positions = [[float(line[k : k + 10]) for k in (0, 10, 20)] for line in record[4 : 4 + n_atoms]]
    except KeyError as error:
        raise ValueError(f"it has an unknown element {error}") from None
    except (IndexError, ValueError):
        raise ValueError("it is no V2000 record, or its counts do not fit its lines") from None
    if is_flat_drawing(numbers, positions, marked=record[1][20:22] == "2D"):
        raise ValueError(DRAWING)
    if len(numbers) != n_atoms or not after or after[0][:1] not in ("M", "A", "V", "G", "S", ">"):
        raise ValueError("its counts of atoms and bonds do not fit its lines")
    properties = [line for line in after if line.startswith(("M  CHG", "M  RAD"))]
    if not properties:
        charge, unpaired = sum(_OLD_CHARGE.get(code, 0) for code in codes), codes.count(4)
        return SdfMolecule(numbers, positions, charge, unpaired + 1)
    try:
        charge = sum(_numbers_of(properties, "M  CHG"))
        unpaired = sum(_UNPAIRED[kind] for kind in _numbers_of(properties, "M  RAD"))
    except (KeyError, ValueError):
        raise ValueError("its lines M CHG or M RAD are not numbers of atoms and charges") from None
    return SdfMolecule(numbers, positions, charge, unpaired + 1)


_UNPAIRED: Final = {0: 0, 1: 0, 2: 1, 3: 2}
"""Electrons, by the code of M RAD."""


def _numbers_of(properties: list[str], kind: str) -> list[int]:
    """Every second number after the count: the first of a pair is the atom."""
    return [int(word) for line in properties if line.startswith(kind) for word in line[9:].split()[1::2]]
