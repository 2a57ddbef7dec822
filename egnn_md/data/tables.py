"""Tables that grow row by row and survive a kill: CSV, JSON lines, or extxyz with the row in the comment line.

Rows go to NAME.part, whole batches at a time; NAME appears when all is done. NAME.part.json says what is being
written, so that only the same work is resumed.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from egnn_md.chemistry.elements import SYMBOLS
from egnn_md.chemistry.structures import Structure
from egnn_md.data.reading import DataError
from egnn_md.storage import Hold, refuse_links, releasing_on_error, write_json

Row = Mapping[str, Any]
"""Values by column: numbers or text; "index" is the structure's place in its file."""


SKIPPED: Final = "skipped"


class TableError(DataError):
    """An output that cannot be written as asked; the message says what to do."""


class Table:
    """An output file under way; see the top of this module.

    Parameters
    ----------
    path: the finished file; its suffix (.csv, .jsonl, .xyz, .extxyz) chooses the format.
    columns: names of a row's values, in order; the first is "index", the last "flag", empty text for most rows. A flag
        that begins with `SKIPPED` marks a row without values: a structure that was left out.
    work: what identifies the work (JSON values): a resumed table must have the same.
    resume: go on with NAME.part. overwrite: replace what is there.

    Raises TableError for an unknown suffix, files in the way, and a NAME.part that is not of this work.
    """

    def __init__(self, path: Path, columns: list[str], work: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
        if path.suffix not in FORMATS:
            raise TableError(f"-o {path}: the name must end in {', '.join(FORMATS)}")
        if not path.absolute().parent.is_dir():
            raise TableError(f"the folder of {path} does not exist")
        self.path, self.columns = path, columns
        self.part = path.with_name(path.name + ".part")
        self.note = path.with_name(path.name + ".part.json")
        self._record, records = FORMATS[path.suffix]
        self.n_rows, self.n_flagged, self.n_skipped, self.next_index = 0, 0, 0, 0
        with releasing_on_error(Hold(path)) as self._hold:
            refuse_links((self.part, self.note))
            if resume and self.part.exists():
                self._resume(work, records)
                return
            if path.exists() and not overwrite:
                finished = "is finished: nothing to resume; --overwrite begins anew"
                raise TableError(f"{path} {finished if resume else 'exists: --overwrite replaces it'}")
            if self.part.exists() and not overwrite:
                raise TableError(f"{self.part} is an unfinished output: --resume goes on with it, --overwrite does not")
            self.part.unlink(missing_ok=True)  # before the note says what is in it
            write_json(self.note, work)
            self._file: BinaryIO = self.part.open("wb")
            if path.suffix == ".csv":
                self._file.write((",".join(columns) + "\n").encode())

    def _resume(self, work: dict[str, Any], records: Records) -> None:
        """Keep the whole rows, cut off what a kill left half written."""
        try:
            same = json.loads(self.note.read_text()) == work
        except (OSError, ValueError):
            same = False
        if not same:
            raise TableError(f"{self.part} was begun with another model, file or option: --overwrite begins anew")
        end = 0
        with self.part.open("rb") as file:
            if self.path.suffix == ".csv":
                header = file.readline()
                end = len(header) if header.endswith(b"\n") else 0
            try:
                for place, index, flag in records(file):
                    self.n_skipped += index - self.next_index  # a format without rows for what was left out
                    end, self.next_index = place, index + 1
                    self._count(flag)
            except (ValueError, KeyError, IndexError, TypeError):
                damaged = f"{self.part} is damaged after {self.n_rows} rows: --overwrite begins anew"
                raise TableError(damaged) from None
        self._file = self.part.open("r+b")
        self._file.truncate(end)
        self._file.seek(end)
        if end == 0 and self.path.suffix == ".csv":
            self._file.write((",".join(self.columns) + "\n").encode())

    def _count(self, flag: str) -> None:
        skipped = flag.startswith(SKIPPED)
        self.n_skipped += skipped
        self.n_rows += not skipped
        self.n_flagged += bool(flag) and not skipped

    def write(self, rows: Iterable[tuple[Row, Structure | None]]) -> None:
        """Append rows, in the order of their index; those of skipped structures may have none."""
        rows = list(rows)
        records = [self._record(self.columns, row, structure) for row, structure in rows]
        self._file.write("".join(records).encode())
        self._file.flush()
        for row, _ in rows:
            self._count(row["flag"])

    def finish(self) -> None:
        """The table is complete: give it its name."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self.part, self.path)
        self.note.unlink(missing_ok=True)
        self._hold.release()

    def close(self) -> None:
        """Leave the table unfinished, to be resumed."""
        self._file.close()
        self._hold.release()


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.7g}"
    text = str(value)
    return '"' + text.replace('"', '""') + '"' if "," in text or '"' in text else text


def _csv(columns: list[str], row: Row, structure: Structure | None) -> str:
    return ",".join([_number(row.get(name, "")) for name in columns]) + "\n"


def _jsonl(columns: list[str], row: Row, structure: Structure | None) -> str:
    values = {}
    for name in columns:
        value = row.get(name)
        values[name] = (float(f"{value:.7g}") if math.isfinite(value) else None) if isinstance(value, float) else value
    return json.dumps(values) + "\n"


def _extxyz(columns: list[str], row: Row, structure: Structure | None) -> str:
    if structure is None or row["flag"].startswith(SKIPPED):
        return ""  # there are no numbers to go with the atoms, if there are any
    words = ["Properties=species:S:1:pos:R:3"]
    said = [name for name in columns if row[name] != ""]  # ase would read what comes after an empty word as its value
    words += [f"{n}={_quoted(row[n])}" if isinstance(row[n], str) else f"{n}={_number(row[n])}" for n in said]
    atoms = [
        f"{SYMBOLS[z]} {x:.8f} {y:.8f} {w:.8f}\n"
        for z, (x, y, w) in zip(structure.atomic_numbers.tolist(), structure.positions.tolist(), strict=True)
    ]
    return f'{len(atoms)}\n{" ".join(words)} pbc="F F F"\n{"".join(atoms)}'


def _quoted(text: str) -> str:
    return '"' + text.replace('"', "'").replace("\\", r"\\") + '"'


Records = Callable[[BinaryIO], Iterator[tuple[int, int, str]]]
"""Of every whole record: where it ends in the file, its index, its flag."""


def _lines(read: Callable[[bytes], tuple[int, str]]) -> Records:
    def records(file: BinaryIO) -> Iterator[tuple[int, int, str]]:
        end = file.tell()
        for line in file:
            if not line.endswith(b"\n"):
                return
            end += len(line)
            yield end, *read(line)

    return records


def _csv_line(line: bytes) -> tuple[int, str]:
    return int(line.split(b",", 1)[0]), line.rstrip(b"\n").rsplit(b",", 1)[1].decode()


def _json_line(line: bytes) -> tuple[int, str]:
    row = json.loads(line)
    return int(row["index"]), str(row["flag"])


def _frames(file: BinaryIO) -> Iterator[tuple[int, int, str]]:
    end = 0
    while header := file.readline():
        lines = [header, *(file.readline() for _ in range(int(header) + 1))] if header.endswith(b"\n") else []
        if not lines or not lines[-1].endswith(b"\n"):
            return
        end += sum(map(len, lines))
        yield end, int(lines[1].split(b" index=")[1].split()[0]), "flagged" if b' flag="' in lines[1] else ""


FORMATS: Final[dict[str, tuple[Callable[[list[str], Row, Structure | None], str], Records]]] = {
    ".csv": (_csv, _lines(_csv_line)),
    ".jsonl": (_jsonl, _lines(_json_line)),
    ".xyz": (_extxyz, _frames),
    ".extxyz": (_extxyz, _frames),
}
