"""A model that stays loaded: one process answers requests for energies and forces, so that programs which start anew
for every step (ORCA, geomeTRIC, scripts) need not import torch each time.

A request is one line of JSON, and so is its answer:

    {"numbers": [8, 1, 1], "positions": [[0, 0, 0.12], …], "cell": [[…], …], "pbc": [true, true, true], "charge": 0,
     "multiplicity": 1, "stress": true, "token": "…"}
    {"energy": -137.9, "forces": [[…], …], "stress": [[…], …], "extrapolation": 0.2}    or    {"error": "…"}

in eV and Å; "numbers" (or "symbols") and "positions" alone must be there. "engrad" (whether with gradient) asks for
{"engrad": "…"} instead, the file that ORCA reads. A connection may send any number of requests, which are
answered in order. The door is a Unix socket that only its owner may open, or 127.0.0.1, where the first request of a
connection must carry the token. One thread computes, one request after another; all waiting is asynchronous, so that
a client that is slow, silent or broken holds up nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import math
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np

from egnn_md.calculators.options import refuse_unknown
from egnn_md.chemistry.elements import NUMBER_OF
from egnn_md.chemistry.units import ANGSTROM_PER_BOHR, EV_PER_HARTREE
from egnn_md.predict import FloatArray, PredictionError, Predictor

LONGEST_REQUEST: Final = 64 * 2**20
"""Bytes of a line: half a million atoms."""
LONGEST_GREETING: Final = 2**20
"""Bytes of the first request on 127.0.0.1, until its token is known to be right."""
GREETING_SECONDS: Final = 10.0
"""How long a connection to 127.0.0.1 may take to show its token."""
SLOWEST_READER_SECONDS: Final = 60.0
"""How long a client may leave an answer unread before it is dropped."""
_FIELDS: Final = (
    "numbers",
    "symbols",
    "engrad",
    "positions",
    "cell",
    "pbc",
    "charge",
    "multiplicity",
    "stress",
    "token",
)
_logger = logging.getLogger("egnn_md.server")


class Server:
    """Answers requests with one predictor. `token`: what the first request of a connection must carry, None if the
    socket's permissions keep others out.
    """

    def __init__(self, predictor: Predictor, token: str | None = None) -> None:
        self.predictor = predictor
        self.token = token
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="egnn-md")

    async def run(self, door: socket.socket, ready: Callable[[], None] = lambda: None) -> None:
        """Serve on a bound socket until cancelled; calls `ready` once connections are taken."""
        _allow_many_files()
        server = await asyncio.start_server(self._converse, sock=door, backlog=4096)
        try:
            ready()
            await asyncio.Event().wait()  # serve_forever would, when cancelled, wait for idle clients
        finally:
            server.close()
            self._worker.shutdown(wait=False, cancel_futures=True)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its first request to its end."""
        lines = _Lines(reader)
        known = self.token is None
        try:
            while True:
                if known:
                    line = await lines.next(LONGEST_REQUEST)
                else:
                    line = await asyncio.wait_for(lines.next(LONGEST_GREETING), GREETING_SECONDS)
                if not line:
                    break
                answer, known = await self._answer(line, known)
                writer.write(json.dumps(answer).encode() + b"\n")
                await asyncio.wait_for(writer.drain(), SLOWEST_READER_SECONDS)
                if not known:
                    break
        except _TooLong as error:
            writer.write(json.dumps({"error": str(error)}).encode() + b"\n")
        except (TimeoutError, ConnectionError):
            writer.transport.abort()
        finally:
            writer.close()
            with contextlib.suppress(TimeoutError, ConnectionError):
                await asyncio.wait_for(writer.wait_closed(), SLOWEST_READER_SECONDS)

    async def _answer(self, line: bytes, known: bool) -> tuple[dict[str, Any], bool]:
        """The answer to one request, and whether its connection may go on."""
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise ValueError("it is not an object")
        except (ValueError, RecursionError) as error:
            return {"error": f"a request is one line of JSON, an object with numbers and positions: {error}"}, known
        if not known and not self._is_token(request.get("token")):
            return {"error": "the token is missing or wrong: send that of the server's token file"}, False
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._worker, self._predict, request), True
        except (ValueError, TypeError, PredictionError) as error:
            return {"error": str(error)}, True
        except Exception as error:  # whatever it is, the next request is another
            _logger.exception("a request failed")
            return {"error": f"{type(error).__name__}: {error}"}, True

    def _is_token(self, given: Any) -> bool:
        assert self.token is not None
        return isinstance(given, str) and hmac.compare_digest(given.encode(), self.token.encode())

    def _predict(self, request: dict[str, Any]) -> dict[str, Any]:
        """Raises ValueError and TypeError for what is wrong with a request."""
        refuse_unknown("a request", request, _FIELDS)
        if "symbols" in request:
            request["numbers"] = _numbers(request["symbols"])
        for name in ("numbers", "positions"):
            if name not in request:
                raise ValueError(f"the request has no {name}")
        numbers = _array("numbers", request["numbers"], np.int64, (-1,))
        positions = _array("positions", request["positions"], np.float64, (len(numbers), 3))
        pbc = np.broadcast_to(_array("pbc", request.get("pbc", False), np.bool_, None), 3).copy()
        cell = _array("cell", request.get("cell") or np.zeros((3, 3)), np.float64, (3, 3))
        said = request.get("charge")
        charge = None if said is None else float(_array("charge", said, np.float64, ()))
        self.predictor.check_charge(charge)
        multiplicity = float(_array("multiplicity", request.get("multiplicity") or 1, np.float64, ()))
        if multiplicity != 1:
            raise ValueError(f"multiplicity {multiplicity:g}: this model describes closed shells (multiplicity 1) only")
        if len(numbers) == 0:
            raise ValueError("the structure has no atoms")
        self.predictor.check(numbers)
        stress = bool(request.get("stress")) and bool(pbc.all())
        result = self.predictor(positions, numbers, cell, pbc, charge, stress=stress)
        if "engrad" in request:
            return {"engrad": engrad(result.energy, result.forces, bool(request["engrad"]))}
        answer = {"energy": result.energy, "forces": result.forces.tolist()}
        if result.stress is not None:
            answer["stress"] = result.stress.tolist()
        if result.charges is not None:
            answer |= {"charge": result.charge, "charges": result.charges.tolist()}
        known = math.isfinite(result.extrapolation)
        return {**answer, "extrapolation": result.extrapolation if known else None}


class DoorError(ValueError):
    """A socket cannot be made; the message says what to do."""


class _TooLong(ValueError):
    """A request longer than the server takes."""


class _Lines:
    """Lines of a stream, with a limit that may change from one to the next."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._buffer = bytearray()

    async def next(self, limit: int) -> bytes:
        """The next line that is not blank; empty when the client has said all. Raises _TooLong."""
        searched = 0
        while True:
            end = self._buffer.find(b"\n", searched)
            if end >= 0:
                line = bytes(self._buffer[:end]).strip()
                del self._buffer[: end + 1]
                searched = 0
                if line:
                    return line
                continue
            searched = len(self._buffer)
            if searched > limit:
                raise _TooLong(f"a request may have {limit} bytes")
            received = await self._reader.read(2**16)
            if not received:
                line, self._buffer = bytes(self._buffer), bytearray()
                return line.strip()
            self._buffer += received


def engrad(energy: float, forces: FloatArray, gradient: bool) -> str:
    """The file that ORCA reads, Hartree and Bohr, from eV and forces (n_atoms, 3) in eV/Å."""
    text = f"#\n# Number of atoms\n#\n{len(forces)}\n#\n# Total energy [Eh]\n#\n{energy / EV_PER_HARTREE:.12e}\n"
    if gradient:
        unit = -ANGSTROM_PER_BOHR / EV_PER_HARTREE
        text += "#\n# Gradient [Eh/Bohr]: x, y, z of each atom\n#\n"
        text += "".join(f"{force * unit:.12e}\n" for force in forces.ravel())
    return text


def _numbers(symbols: Any) -> list[int]:
    """Raises ValueError for what is no list of elements."""
    if not isinstance(symbols, list):
        raise ValueError("symbols of the request cannot be used: not a list")
    unknown = [symbol for symbol in symbols if not isinstance(symbol, str) or symbol not in NUMBER_OF]
    if unknown:
        raise ValueError(f"symbols of the request cannot be used: {unknown[0]!r} is no element")
    return [NUMBER_OF[symbol] for symbol in symbols]


def _array(name: str, values: Any, dtype: Any, shape: tuple[int, ...] | None) -> Any:
    """Raises ValueError that names the field, for what is no array of numbers of this shape."""
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "biuf" and array.size:
            raise ValueError("not numbers")
        if np.issubdtype(dtype, np.integer) and array.dtype.kind not in "iu" and array.size:
            raise ValueError("not whole numbers")
        array = array.astype(dtype)
        return array if shape is None else array.reshape(shape)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{name} of the request cannot be used: {error}") from None


def unix_door(path: Path) -> socket.socket:
    """A socket at `path` that only its owner may open. One that a dead server left there is replaced.

    Raises DoorError if a server is there, or something that is no socket.
    """
    if path.exists():
        if not path.is_socket():
            raise DoorError(f"{path} exists and is no socket: choose another path")
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except OSError:
                path.unlink()
            else:
                raise DoorError(f"a server listens at {path} already")
    door = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o177)  # from the moment it exists
    try:
        door.bind(str(path))
    except OSError as error:
        door.close()
        raise DoorError(f"no socket can be made at {path}: {error.strerror or error}") from None
    finally:
        os.umask(mask)
    return door


def local_door(port: int) -> socket.socket:
    """A socket at 127.0.0.1, port 0: any that is free. Raises DoorError if the port cannot be had."""
    door = socket.socket(socket.AF_INET)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        door.bind(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        door.close()
        raise DoorError(f"port {port} of 127.0.0.1 cannot be had: {error}") from None
    return door


def _allow_many_files() -> None:
    """A connection is an open file, and the usual limit is 1,024."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = hard if hard != resource.RLIM_INFINITY else 65536
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65536), hard))
