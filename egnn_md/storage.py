"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def write_whole(path: str | Path) -> Iterator[Path]:
    """`with write_whole(path) as temporary:` write `temporary`; at the end it takes the place of `path`.

    The temporary file lies beside `path`, under a name of its own (two writers do not meet) with the same suffix. It is
    on the disk before it takes its place, so that a crash leaves the old file or the new one; an exception inside
    leaves the old one and no temporary file. Raises OSError as writing does.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """A JSON file, whole."""
    with write_whole(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n")


def write_npz(path: Path, arrays: Mapping[str, Any], *, compress: bool = True) -> None:
    """An npz without pickles, whole."""
    import numpy as np  # late: this module loads with the package's cheap parts

    with write_whole(path) as temporary, temporary.open("wb") as file:
        (np.savez_compressed if compress else np.savez)(file, **arrays)
