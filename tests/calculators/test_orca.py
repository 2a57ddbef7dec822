"""`egnn-md-orca` as ORCA calls it: files in, files out, in Hartree and Bohr."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import ase.units
import numpy as np
import pytest
from ase.build import molecule
from ase.io import write

from egnn_md.calculators import EGNNCalculator
from egnn_md.calculators.client import SERVER
from egnn_md.calculators.orca_client import main
from egnn_md.calculators.server import Server, unix_door
from egnn_md.predict import Predictor

HARTREE, BOHR = 27.211386245988, 0.529177210903


@pytest.fixture
def server(familiar_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A server in a thread, its address in the environment; its model."""
    door = unix_door(tmp_path / "egnn.sock")
    ready, ended = threading.Event(), asyncio.Event()
    loops = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        task = asyncio.ensure_future(Server(Predictor(familiar_file)).run(door, ready.set))
        await ended.wait()
        task.cancel()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(20)
    monkeypatch.setenv(SERVER, str(tmp_path / "egnn.sock"))
    yield familiar_file
    loops[0].call_soon_threadsafe(ended.set)
    thread.join(20)
    assert not thread.is_alive()


def orca_asks(folder: Path, text: str) -> Path:
    """The files that ORCA leaves before it calls."""
    write(folder / "job_EXT.xyz", molecule("CH3CH2OH"))
    (folder / "job_EXT.extinp.tmp").write_text(text)
    return folder / "job_EXT.extinp.tmp"


INPUT = "job_EXT.xyz # xyz filename: string\n{} # charge\n{} # multiplicity\n1 # NCores\n{} # do gradient\n"


@pytest.mark.parametrize("gradient", [1, 0])
def test_energy_and_gradient(gradient: int, server: Path, tmp_path: Path) -> None:
    main([str(orca_asks(tmp_path, INPUT.format(0, 1, gradient)))])
    lines = (tmp_path / "job_EXT.engrad").read_text().splitlines()
    values = [float(line) for line in lines if not line.startswith("#")]
    atoms = molecule("CH3CH2OH")
    write(tmp_path / "same.xyz", atoms)
    atoms.calc = EGNNCalculator(server)
    assert values[0] == 9
    assert lines[lines.index("9") - 2] == "# Number of atoms"
    assert values[1] == pytest.approx(atoms.get_potential_energy() / HARTREE, rel=1e-8)  # the xyz has 8 decimals
    if gradient:
        expected = -atoms.get_forces().reshape(-1) / HARTREE * BOHR
        np.testing.assert_allclose(values[2:], expected, atol=1e-6 * np.abs(expected).max())
    else:
        assert len(values) == 2
    assert pytest.approx(ase.units.Hartree, rel=1e-7) == HARTREE


def test_a_port_hears_its_token(tmp_path: Path) -> None:
    """The request is written by hand, its end too."""
    import json
    import socket

    from egnn_md.calculators.orca_client import ask

    door = socket.create_server(("127.0.0.1", 0))
    (tmp_path / "token").write_text("secret\n")
    heard = []

    def answer() -> None:
        connection, _ = door.accept()
        with connection, connection.makefile("rb") as lines:
            heard.append(json.loads(lines.readline()))
            connection.sendall(b'{"engrad": "x"}\n')

    thread = threading.Thread(target=answer)
    thread.start()
    found = ask('{"symbols": ["H"]', str(door.getsockname()[1]), tmp_path / "token")
    thread.join(20)
    door.close()
    assert heard == [{"symbols": ["H"], "token": "secret"}]
    assert found == '{"engrad": "x"}\n'


@pytest.mark.usefixtures("server")
def test_what_is_no_structure(tmp_path: Path) -> None:
    request = orca_asks(tmp_path, INPUT.format(0, 1, 1))
    for atom, message in (("Xx 0 0 0", "'Xx' is no element"), ("H 0 0 nan", "is no xyz file"), ('" 0 0 0', "no xyz")):
        (tmp_path / "job_EXT.xyz").write_text(f"1\n\n{atom}\n")
        with pytest.raises(SystemExit) as stop:
            main([str(request)])
        assert message in str(stop.value.code)


WRONG = [
    (INPUT.format(1, 1, 1), "charge"),
    (INPUT.format(0, 3, 1), "multiplicity 3"),
    (INPUT.format(0, 1, 1) + "job_EXT.pc\n", "ORCA sends point charges"),
    ("job_EXT.xyz\n0\n", "is no input of ORCA's ExtOpt"),
    (INPUT.format("one", 1, 1), "invalid literal"),
    (INPUT.format(0, 1, 1).replace("job_EXT", "missing"), "No such file"),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=[message for _, message in WRONG])
@pytest.mark.usefixtures("server")
def test_what_cannot_be_answered_ends_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(orca_asks(tmp_path, text))])
    assert str(stop.value.code).startswith("egnn-md-orca: ")
    assert message in str(stop.value.code)
    assert not (tmp_path / "job_EXT.engrad").exists()


def test_without_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SERVER, str(tmp_path / "none.sock"))
    with pytest.raises(SystemExit) as stop:
        main([str(orca_asks(tmp_path, INPUT.format(0, 1, 1)))])
    assert "start one with `egnn-md serve`" in str(stop.value.code)
