"""Asks an `egnn-md serve` process for energies and forces. Standard library only: it starts in milliseconds.

with Client("egnn.sock") as client:
    answer = client.predict([8, 1, 1], [[0, 0, 0.12], [0, 0.76, -0.48], [0, -0.76, -0.48]])
answer["energy"], answer["forces"]  # eV, eV/Å
"""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from egnn_md.calculators.server_address import SERVER, TOKEN_FILE, ServerError, find_server, nobody_there

if TYPE_CHECKING:
    from egnn_md.calculators.server_address import File

__all__ = ["SERVER", "TOKEN_FILE", "Client", "ServerError"]


class Client:
    """One connection to a server.

    address: path of a Unix socket, or a port of 127.0.0.1; None: $EGNN_MD_SERVER. token_file: of a server on a port;
    None: $EGNN_MD_TOKEN_FILE. Raises ServerError if there is no server.
    """

    def __init__(self, address: File | int | None = None, token_file: File | None = None) -> None:
        where, self._token = find_server(address, token_file)
        self._socket = socket.socket(socket.AF_INET if isinstance(where, int) else socket.AF_UNIX)
        try:
            self._socket.connect(("127.0.0.1", where) if isinstance(where, int) else where)
        except (OSError, OverflowError) as error:
            self._socket.close()
            raise nobody_there(where, error) from None
        self._answers = self._socket.makefile("rb")

    def predict(self, numbers: Sequence[int], positions: Sequence[Sequence[float]], **more: Any) -> dict[str, Any]:
        """Energy (eV), forces (eV/Å) and more of a structure, as plain numbers and lists; positions in Å.

        `more`: cell, pbc, charge, multiplicity, stress. Raises ServerError.
        """
        request = {"numbers": numbers, "positions": positions, **more}
        if self._token is not None:
            request["token"] = self._token
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            line = self._answers.readline()
        except OSError as error:
            raise ServerError(f"the connection to the server broke: {error}") from None
        if not line:
            raise ServerError("the server closed the connection")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ServerError(answer["error"])
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._answers.close()
        self._socket.close()
