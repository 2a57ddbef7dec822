"""Records of an sdf file (MDL's V2000): elements, positions, charge."""

from __future__ import annotations

from typing import Final, NamedTuple, TextIO

from egnn_md.chemistry.elements import NUMBER_OF


class SdfMolecule(NamedTuple):
    """What a V2000 record says."""

    numbers: list[int]
    positions: list[list[float]]
    charge: int
    radical: bool


def next_record(sdf: TextIO) -> list[str]:
    """The lines of the next record, without its $$$$; none at the end of the file."""
    lines: list[str] = []
    for line in iter(sdf.readline, ""):
        if line.startswith("$$$$"):
            return lines
        lines.append(line)
    return lines if any(line.strip() for line in lines) else []


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
    if len(numbers) != n_atoms or not after or after[0][:1] not in ("M", "A", "V", "G", "S", ">"):
        raise ValueError("its counts of atoms and bonds do not fit its lines")
    properties = [line for line in after if line.startswith(("M  CHG", "M  RAD"))]
    if not properties:
        return SdfMolecule(numbers, positions, sum(_OLD_CHARGE.get(code, 0) for code in codes), 4 in codes)
    charge = sum(sum(map(int, line[9:].split()[1::2])) for line in properties if line.startswith("M  CHG"))
    radical = any(line.startswith("M  RAD") for line in properties)
    return SdfMolecule(numbers, positions, charge, radical)
