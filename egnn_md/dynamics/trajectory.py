"""Trajectory files that only grow: .traj and extxyz through ase; xtc, dcd and h5 through mdtraj.

Every format is appended to and closed again, so that a run killed at any moment leaves a file that can be cut back to
a known length. HDF5 cannot promise that: its frames grow in a plain file of float32 records, from which the h5 is made
whenever a run stops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from egnn_md.chemistry.units import ANGSTROM_PER_NM
from egnn_md.dynamics.settings import SettingsError
from egnn_md.dynamics.state import growing_files
from egnn_md.storage import naming, require_room, write_whole

if TYPE_CHECKING:
    from ase import Atoms

FloatArray = NDArray[np.float64]
_H5_CHUNK: Final = 500
_ATOM_BYTES, _FRAME_BYTES, _HEAD_BYTES = 256, 4096, 2**16
"""More than any of the formats needs of an atom in a frame, of a frame, and of a file's head."""
_DCD_COUNTS: Final = (8, 20)
"""Offsets of the numbers of frames and of steps in a dcd header."""


@dataclass(frozen=True)
class Frame:
    """One recorded moment: atoms with momenta and, as results of a SinglePointCalculator, energy and forces."""

    step: int
    time_fs: float
    atoms: Atoms


class Trajectory:
    """The trajectory of a run folder, `trajectory.<format>`."""

    def __init__(self, folder: Path, kind: str) -> None:
        """Raises SettingsError if the format needs a package that is not installed."""
        self.kind = kind
        self.path = folder / f"trajectory.{kind}"
        self.growing = folder / growing_files(kind)[0]
        self.topology_file = folder / "topology.pdb"
        if kind == "h5":
            try:
                import tables  # type: ignore[import-untyped]  # noqa: F401
            except ImportError:
                message = "format h5 needs PyTables: pip install 'egnn-md[hdf5]', or choose xtc or dcd"
                raise SettingsError(message) from None

    def begin(self, atoms: Atoms, topology: Any = None) -> None:
        """Write what the frames do not say, as topology.pdb: mdtraj's `topology`, or for xtc and dcd at least the
        atoms' elements.
        """
        if self.kind in ("xtc", "dcd") or (self.kind == "h5" and topology is not None):
            import mdtraj

            topology = _topology(atoms) if topology is None else topology
            mdtraj.Trajectory(_rotated(atoms)[0] / ANGSTROM_PER_NM, topology).save_pdb(str(self.topology_file))

    def append(self, frames: Sequence[Frame]) -> None:
        """Write frames to the end of the file. Raises OSError naming it if there is no room for them, whatever the
        format's library makes of that.
        """
        if frames:
            require_room(self.growing, len(frames) * (_FRAME_BYTES + _ATOM_BYTES * len(frames[0].atoms)))
            with naming(self.growing):
                _WRITERS[self.kind](self.growing, frames)

    def finish(self, atoms: Atoms, interval_fs: float, complete: bool) -> None:
        """Bring the file into its final form when a run stops; `complete`: no more is to come. Raises OSError if there
        is no room; the frames stay, and finishing can be tried again.
        """
        if self.kind != "h5" or not self.growing.exists():
            return
        require_room(self.path, self.growing.stat().st_size + _ATOM_BYTES * len(atoms) + _HEAD_BYTES)
        with write_whole(self.path) as temporary:
            _write_h5(temporary, self.growing, atoms, interval_fs, self._known_topology(atoms))
        if complete:
            self.growing.unlink()

    def _known_topology(self, atoms: Atoms) -> Any:
        if not self.topology_file.exists():
            return _topology(atoms)
        import mdtraj

        return mdtraj.load_topology(str(self.topology_file))

    def reopen(self) -> None:
        """Make ready for more frames after `finish`."""
        if self.kind == "h5" and self.path.exists() and not self.growing.exists():
            with write_whole(self.growing) as temporary:
                _read_h5(self.path, temporary)


def _append_traj(path: Path, frames: Sequence[Frame]) -> None:
    from ase.io.trajectory import TrajectoryWriter

    with TrajectoryWriter(str(path), mode="a") as file:
        for frame in frames:
            file.write(frame.atoms)


def _append_extxyz(path: Path, frames: Sequence[Frame]) -> None:
    from ase.io import write

    write(path, [frame.atoms for frame in frames], format="extxyz", append=True)


def _append_xtc(path: Path, frames: Sequence[Frame]) -> None:
    """xtc files are their frames one after another: write a small one, append its bytes."""
    from mdtraj.formats import XTCTrajectoryFile

    turned, chunk = [_rotated(frame.atoms) for frame in frames], path.with_name("trajectory.chunk.xtc")
    with XTCTrajectoryFile(str(chunk), "w") as file:
        file.write(
            np.array([positions for positions, _ in turned], np.float32) / np.float32(ANGSTROM_PER_NM),
            time=np.array([1e-3 * frame.time_fs for frame in frames], np.float32),
            step=np.array([frame.step for frame in frames], np.int32),
            box=np.array([box for _, box in turned], np.float32) / np.float32(ANGSTROM_PER_NM),
        )
    with path.open("ab") as whole:
        whole.write(chunk.read_bytes())
    chunk.unlink()


def _append_dcd(path: Path, frames: Sequence[Frame]) -> None:
    """dcd files are a header and frames of one length: write a small one, append it without its header."""
    from ase.geometry import cell_to_cellpar
    from mdtraj.formats import DCDTrajectoryFile

    turned = [_rotated(frame.atoms) for frame in frames]
    periodic = bool(turned[0][1].any())
    cells = np.array([cell_to_cellpar(box) if periodic else np.zeros(6) for _, box in turned], np.float32)
    chunk = path.with_name("trajectory.chunk.dcd")
    with DCDTrajectoryFile(str(chunk), "w") as file:
        positions = np.array([positions for positions, _ in turned], np.float32)
        file.write(positions, cells[:, :3], cells[:, 3:]) if periodic else file.write(positions)
    data, n_atoms = chunk.read_bytes(), len(frames[0].atoms)
    frame_bytes = 3 * (4 * n_atoms + 8) + (56 if periodic else 0)
    start = len(data) - len(frames) * frame_bytes if path.exists() else 0
    with path.open("ab") as whole:
        whole.write(data[start:])
        size = whole.tell()
    header = len(data) - len(frames) * frame_bytes
    with path.open("r+b") as whole:
        for offset in _DCD_COUNTS:
            whole.seek(offset)
            whole.write(np.int32((size - header) // frame_bytes).tobytes())
    chunk.unlink()


def _append_records(path: Path, frames: Sequence[Frame]) -> None:
    """Records of 3 n_atoms coordinates (Å), three cell lengths (Å) and angles (degrees), zero without a cell."""
    from ase.geometry import cell_to_cellpar

    with path.open("ab") as file:
        for frame in frames:
            positions, box = _rotated(frame.atoms)
            cell = cell_to_cellpar(box) if box.any() else np.zeros(6)
            file.write(np.concatenate([positions.ravel(), cell]).astype(np.float32).tobytes())


_WRITERS: Final[dict[str, Callable[[Path, Sequence[Frame]], None]]] = {
    "traj": _append_traj,
    "extxyz": _append_extxyz,
    "xtc": _append_xtc,
    "dcd": _append_dcd,
    "h5": _append_records,
}


def _rotated(atoms: Atoms) -> tuple[FloatArray, FloatArray]:
    """Positions (n_atoms, 3) and box (3, 3) in Å, turned so that a lies along x and b in the xy plane.

    These formats keep lengths and angles or expect that orientation. The box is zero unless all three directions are
    periodic. A left-handed cell has negative diagonal entries there; the opposite vectors span the same lattice.
    """
    if not atoms.pbc.all():
        return atoms.get_positions(), np.zeros((3, 3))
    box, rotation = atoms.cell.standard_form()
    return atoms.positions @ rotation.T, np.asarray(box) * np.sign(box[0, 0])


def _topology(atoms: Atoms) -> Any:
    """An mdtraj topology of the elements alone: ase's structures carry no residues or bonds."""
    import mdtraj

    topology = mdtraj.Topology()
    residue = topology.add_residue("MOL", topology.add_chain())
    for symbol in atoms.get_chemical_symbols():
        topology.add_atom(symbol, mdtraj.element.Element.getBySymbol(symbol), residue)
    return topology


def _write_h5(path: Path, source: Path, atoms: Atoms, interval_fs: float, topology: Any) -> None:
    from mdtraj.formats import HDF5TrajectoryFile

    records = np.memmap(source, np.float32, "r").reshape(-1, 3 * len(atoms) + 6)
    periodic, scale = bool(atoms.pbc.all()), np.float32(ANGSTROM_PER_NM)
    with HDF5TrajectoryFile(str(path), "w") as file:
        file.topology = topology
        for first in range(0, len(records), _H5_CHUNK):
            chunk = records[first : first + _H5_CHUNK]
            file.write(
                coordinates=chunk[:, :-6].reshape(len(chunk), -1, 3) / scale,
                time=1e-3 * interval_fs * np.arange(first, first + len(chunk)),
                cell_lengths=chunk[:, -6:-3] / scale if periodic else None,
                cell_angles=chunk[:, -3:] if periodic else None,
            )


def _read_h5(source: Path, path: Path) -> None:
    """Records of `_append_records` from a finished h5."""
    from mdtraj.formats import HDF5TrajectoryFile

    scale = np.float32(ANGSTROM_PER_NM)
    with HDF5TrajectoryFile(str(source)) as file, path.open("wb") as records:
        for _ in range(0, len(file), _H5_CHUNK):
            frames = file.read(_H5_CHUNK)
            cell = np.zeros((len(frames.coordinates), 6), np.float32)
            if frames.cell_lengths is not None:
                cell[:, :3], cell[:, 3:] = frames.cell_lengths * scale, frames.cell_angles
            positions = frames.coordinates.reshape(len(cell), -1) * scale
            records.write(np.concatenate([positions, cell], axis=1).astype(np.float32).tobytes())
