"""The server: answers beside the ASE calculator, and what bad clients can and cannot do."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from egnn_md.calculators import EGNNCalculator
from egnn_md.calculators.client import SERVER, Client, ServerError
from egnn_md.calculators.server import DoorError, local_door, unix_door

WATER = molecule("H2O")
REQUEST = {"numbers": WATER.numbers.tolist(), "positions": WATER.positions.tolist()}
LINE = json.dumps(REQUEST).encode() + b"\n"
MAIN = "from egnn_md.cli import main; main()"


@contextlib.contextmanager
def serving(*words: object) -> Iterator[subprocess.Popen[str]]:
    """`egnn-md serve …` as a process of its own, once it takes connections; ended by SIGTERM."""
    command = [sys.executable, "-c", MAIN, "serve", *map(str, words)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            greeting = process.stderr.readline()
            while greeting.startswith("egnn-md: warning"):
                greeting = process.stderr.readline()
            assert "Ctrl-C ends it" in greeting, greeting + process.stderr.read()
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    """A checkpoint of a small random potential to which nothing is unfamiliar."""
    import torch

    from egnn_md.checkpoint import save
    from egnn_md.models.potential import Potential, PotentialConfig

    torch.manual_seed(0)
    sizes = {"hidden_dim": 16, "message_dim": 16, "n_vectors": 4, "n_layers": 2, "n_radial": 8}
    save(Potential(PotentialConfig((1, 6, 8), (-13.6, -1029.0, -2042.0), **sizes)), folder / "model.safetensors")
    return folder / "model.safetensors"


@pytest.fixture(scope="module")
def address(model: Path, folder: Path) -> Iterator[Path]:
    """The socket of a server, the same one for all tests of this file: it has to survive them."""
    with serving(model, "--socket", folder / "egnn.sock") as process:
        yield folder / "egnn.sock"
        assert process.poll() is None, "a test killed the server"
    assert process.returncode == 0
    assert not (folder / "egnn.sock").exists()


def connect(address: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(30)
    connection.connect(str(address))
    return connection


def ask(address: Path, data: bytes) -> dict[str, Any]:
    """The answer to these bytes, the client's half closed after them."""
    with connect(address) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer: dict[str, Any] = json.loads(connection.makefile().readline())
        return answer


def periodic_water() -> Atoms:
    atoms = molecule("H2O")
    atoms.set_cell([[3.5, 0, 0], [0.4, 3.6, 0], [-0.3, 0.5, 3.4]])
    atoms.pbc = True
    return atoms


@pytest.mark.parametrize("atoms", [molecule("CH3CH2OH"), periodic_water()], ids=["molecule", "periodic"])
def test_answers_are_those_of_the_ase_calculator(atoms: Atoms, address: Path, model: Path) -> None:
    more = {"cell": atoms.cell.tolist(), "pbc": atoms.pbc.tolist(), "charge": 0.0, "stress": True}
    with Client(address) as client:
        answer = client.predict(atoms.numbers.tolist(), atoms.positions.tolist(), **more)
    atoms.calc = EGNNCalculator(model)
    assert answer["energy"] == pytest.approx(atoms.get_potential_energy(), rel=1e-12)
    np.testing.assert_allclose(answer["forces"], atoms.get_forces(), rtol=1e-10, atol=1e-12)
    assert ("stress" in answer) == atoms.pbc.all()
    if atoms.pbc.all():
        np.testing.assert_allclose(answer["stress"], atoms.get_stress(voigt=False), rtol=1e-10, atol=1e-12)


WRONG: list[tuple[bytes, str]] = [
    (b"\x00\xff garbage \xfe\n", "a request is one line of JSON"),
    (b"GET / HTTP/1.1\n", "a request is one line of JSON"),
    (b"[" * 200_000 + b"\n", "a request is one line of JSON"),
    (b"[1, 2]\n", "not an object"),
    (b"{}\n", "no numbers"),
    (json.dumps({**REQUEST, "numbers": ["O", "H", "H"]}).encode() + b"\n", "numbers of the request cannot be used"),
    (json.dumps({**REQUEST, "numbers": [8.5, 1, 1]}).encode() + b"\n", "not whole numbers"),
    (json.dumps({**REQUEST, "numbers": [8, 1]}).encode() + b"\n", "positions of the request cannot be used"),
    (json.dumps({**REQUEST, "numbers": [10**30, 1, 1]}).encode() + b"\n", "numbers of the request cannot be used"),
    (json.dumps({**REQUEST, "positions": [[1, 2], [3]]}).encode() + b"\n", "positions of the request cannot be used"),
    (json.dumps({**REQUEST, "positions": [[float("nan")] * 3] * 3}).encode() + b"\n", "NaN"),
    (json.dumps({**REQUEST, "positions": [[0, 0, 0]] * 3}).encode() + b"\n", "closer than 0.1 Å"),
    (json.dumps({**REQUEST, "numbers": [92, 1, 1]}).encode() + b"\n", "the structure has U"),
    (json.dumps({**REQUEST, "charge": 1}).encode() + b"\n", "charge"),
    (json.dumps({**REQUEST, "charge": "one"}).encode() + b"\n", "charge of the request cannot be used"),
    (json.dumps({**REQUEST, "multiplicity": 3}).encode() + b"\n", "multiplicity 3"),
    (json.dumps({**REQUEST, "possitions": 3}).encode() + b"\n", "did you mean 'positions'"),
    (json.dumps({"numbers": [], "positions": []}).encode() + b"\n", "the structure has no atoms"),
    (b'{"numbers": [8, 1, 1], "posit', "a request is one line of JSON"),  # and no more comes
]


@pytest.mark.parametrize(("data", "message"), WRONG, ids=[f"{k}-{message}" for k, (_, message) in enumerate(WRONG)])
def test_a_bad_request_gets_its_error_and_the_next_one_its_answer(data: bytes, message: str, address: Path) -> None:
    with connect(address) as connection:
        file = connection.makefile()
        connection.sendall(data)
        if not data.endswith(b"\n"):
            connection.shutdown(socket.SHUT_WR)
        assert message in json.loads(file.readline())["error"]
        if data.endswith(b"\n"):
            connection.sendall(b"\n \n" + LINE)
            assert json.loads(file.readline())["energy"] < 0
    assert ask(address, LINE)["energy"] < 0


def test_a_client_that_closed_its_half_gets_its_answers(address: Path) -> None:
    assert ask(address, LINE)["energy"] < 0
    with connect(address) as connection:
        connection.sendall(LINE * 3)
        connection.shutdown(socket.SHUT_WR)
        answers = [json.loads(line) for line in connection.makefile()]
    assert len(answers) == 3
    assert answers[0] == answers[2]


def test_clients_that_leave_in_the_middle_leave_no_trace(address: Path) -> None:
    for data in (b"", LINE[:20], LINE, LINE * 50):
        connect(address).close()
        with connect(address) as connection:
            connection.sendall(data)  # and gone, whatever comes
    assert ask(address, LINE)["energy"] < 0


def test_slow_clients_stop_nobody(address: Path) -> None:
    silent, half, deaf = connect(address), connect(address), connect(address)
    half.sendall(LINE[:30])
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    deaf.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            deaf.send(LINE * 100)  # its answers are never read
    start = time.monotonic()
    for _ in range(3):
        assert ask(address, LINE)["energy"] < 0
    waited = time.monotonic() - start
    half.sendall(LINE[30:])
    assert json.loads(half.makefile().readline())["energy"] < 0
    for connection in (silent, half, deaf):
        connection.close()
    assert waited < 50, "others waited until the deaf client was dropped"


def test_a_thousand_requests_at_once(address: Path) -> None:
    async def one(k: int) -> float:
        reader, writer = await asyncio.open_unix_connection(str(address))
        stretched = [[0.0, 0.0, 0.0], [0.0, 0.7, 0.6 + k * 1e-4], [0.0, -0.7, 0.6]]
        writer.write(json.dumps({"numbers": [8, 1, 1], "positions": stretched}).encode() + b"\n")
        answer = json.loads(await reader.readline())
        writer.close()
        await writer.wait_closed()
        return float(answer["energy"])

    async def everyone() -> list[float]:
        return await asyncio.gather(*(one(k) for k in range(1000)))

    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip("this system allows a process too few open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    energies = asyncio.run(everyone())
    assert len(set(energies)) == 1000, "each got its own answer"
    again = [asyncio.run(one(k)) for k in (0, 500, 999)]
    assert again == [energies[k] for k in (0, 500, 999)]


def test_only_the_owner_may_open_the_socket(address: Path) -> None:
    assert stat.S_IMODE(address.stat().st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user: only root can become one")
def test_another_user_is_kept_out_by_the_socket_alone() -> None:
    def errno_of_a_call(user: int) -> int:
        child = os.fork()
        if child == 0:
            os.setuid(user)
            os._exit(socket.socket(socket.AF_UNIX).connect_ex(str(path)))
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)  # it is not the folder that keeps them out
        path = Path(place) / "egnn.sock"
        with unix_door(path) as door:
            door.listen()
            assert errno_of_a_call(0) == 0
            assert errno_of_a_call(65534) == errno.EACCES


def test_many_strangers_without_a_token_stop_nobody(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    """They say nothing, or half a line, are let in by no one, and are dropped after a while; a friend is answered."""
    from egnn_md.calculators import server as module
    from egnn_md.predict import Predictor

    monkeypatch.setattr(module, "GREETING_SECONDS", 5.0)
    service = module.Server(Predictor(str(model)), token="secret")
    line = json.dumps({**REQUEST, "token": "secret"}).encode() + b"\n"

    async def scene() -> tuple[float, list[bytes]]:
        ready = asyncio.Event()
        door = local_door(0)
        port = door.getsockname()[1]
        running = asyncio.create_task(service.run(door, ready.set))
        await ready.wait()
        strangers = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in range(200)))
        for _, writer in strangers[::2]:
            writer.write(LINE[:-1])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(line)
        energy = json.loads(await asyncio.wait_for(reader.readline(), 4.0))["energy"]
        said = await asyncio.gather(*(reader.read() for reader, _ in strangers))  # until each is dropped
        for connection in (writer, *(writer for _, writer in strangers)):
            connection.close()
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        return energy, said

    energy, said = asyncio.run(asyncio.wait_for(scene(), 60))
    assert energy < 0
    assert set(said) == {b""}


def test_one_server_at_a_socket_and_a_dead_one_is_replaced(address: Path, tmp_path: Path) -> None:
    with pytest.raises(DoorError, match="a server listens at"):
        unix_door(address)
    unix_door(tmp_path / "left.sock").close()  # the file stays
    unix_door(tmp_path / "left.sock").close()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DoorError, match="is no socket"):
        unix_door(tmp_path / "file")
    with pytest.raises(DoorError, match="no socket can be made"):
        unix_door(tmp_path / "nowhere" / "egnn.sock")


def test_a_port_answers_to_the_token_alone_and_ctrl_c_ends_it(model: Path, tmp_path: Path) -> None:
    probe = local_door(0)
    port = probe.getsockname()[1]
    probe.close()
    token_file = tmp_path / "token"
    with serving(model, "--port", port, "--token-file", token_file) as process:
        assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
        token = token_file.read_text().strip()
        assert len(token) > 40

        def say(*requests: bytes) -> list[dict[str, Any]]:
            with socket.create_connection(("127.0.0.1", port), 30) as connection:
                connection.sendall(b"".join(requests))
                with contextlib.suppress(ConnectionResetError):
                    connection.shutdown(socket.SHUT_WR)
                    return [json.loads(line) for line in connection.makefile()]
                return []

        for wrong in (None, "", token[:-1], token + "x", 7, ["a"]):
            (answer,) = say(json.dumps({**REQUEST, "token": wrong}).encode() + b"\n", LINE)  # the second: no answer
            assert "the token is missing or wrong" in answer["error"]
        right = json.dumps({**REQUEST, "token": token}).encode() + b"\n"
        assert all("energy" in answer for answer in say(right, LINE))  # known from then on
        assert "error" in say(b"x" * (2**20 + 70_000))[0]  # a stranger may not fill the memory
        with Client(port, token_file) as client:
            assert client.predict(**REQUEST)["energy"] < 0
        with pytest.raises(ServerError, match="wants its token"):
            Client(port)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.1.9", port), 2)  # any other address of this machine
        with socket.create_connection(("127.0.0.1", port)):  # a client that stays
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0
    assert not token_file.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "say where: --socket PATH, or --port N"),
        (["--socket", "a", "--port", "1"], "say where"),
        (["--port", "8000"], "--port and --token-file belong together"),
        (["--socket", "missing/egnn.sock"], "no socket can be made"),
        (["--port", "99999", "--token-file", "t"], "port 99999 of 127.0.0.1 cannot be had"),
    ],
)
def test_mistakes_in_the_options(words: list[str], message: str, model: Path, call: Any) -> None:
    code, _, errors = call("serve", model, *words)
    assert code == 2
    assert len(errors) == 1
    assert message in errors[0]


def test_the_address_as_json(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MAIN, "serve", "organic-xtb", "--port", "0", "--json", "--quiet"]
    command += ["--token-file", str(tmp_path / "token")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        assert said["model"] == "organic-xtb"
        assert 0 < int(said["address"]) < 65536
        process.terminate()
        rest, errors = process.communicate(timeout=60)
    assert (process.returncode, rest, errors) == (0, "", "")


def test_a_client_without_a_server_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ServerError, match=r"no server answers at .*: start one with `egnn-md serve`"):
        Client(tmp_path / "egnn.sock")
    monkeypatch.delenv(SERVER, raising=False)
    with pytest.raises(ServerError, match=f"set {SERVER}"):
        Client()


def test_threads_may_share_a_server(address: Path) -> None:
    found: list[float] = []

    def work() -> None:
        with Client(address) as client:
            found.extend(client.predict(**REQUEST)["energy"] for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 100
    assert len(set(found)) == 1


def test_the_client_imports_nothing_heavy() -> None:
    script = "import sys, egnn_md.calculators.orca_client\n"
    script += "print({'torch', 'numpy', 'ase', 'argparse', 'json', 'socket', 'typing', 're'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-S", "-c", script], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.strip() == "set()"
