"""QM9 from figshare: checked, resumed where it broke off, and with directions for those without a network."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from egnn_md.data.frames import DataError
from egnn_md.data.qm9 import N_UNCHARACTERIZED, read_qm9, read_uncharacterized, write_qm9

FIGSHARE: Final = "https://api.figshare.com/v2/articles/1057646/files"
"""Says where the archive is, its size and its MD5."""
ARCHIVE: Final = "dsgdb9nsd.xyz.tar.bz2"
LISTING: Final = "uncharacterized.txt"
LISTING_URL: Final = "https://ndownloader.figshare.com/files/3195404"
COLLECTION: Final = "https://doi.org/10.6084/m9.figshare.c.978904"
CHUNK: Final = 1 << 18
TIMEOUT: Final = 60.0
"""Seconds without a byte."""

Progress = Callable[[str, int, int], None]
"""Called with a file's name, its bytes so far, and all of them."""


@dataclass(frozen=True)
class Source:
    """A file to fetch."""

    url: str
    name: str
    size: int | None = None
    md5: str | None = None


def download_qm9(folder: Path, progress: Progress = lambda name, done, total: None, api: str = FIGSHARE) -> Path:
    """QM9's archive and its list of uncharacterized molecules into `folder`; returns the archive, for `read_qm9`.

    What is there and complete is kept. Raises DataError if the network fails, saying where to put the files by hand.
    """
    folder.mkdir(parents=True, exist_ok=True)
    listing = fetch(Source(LISTING_URL, LISTING), folder, progress)
    found = len(read_uncharacterized(listing))
    if found != N_UNCHARACTERIZED:
        raise DataError(f"{listing} lists {found} molecules, not {N_UNCHARACTERIZED}: delete it and try again")
    return fetch(_archive(folder, api), folder, progress)


def fetch_qm9(folder: Path, progress: Progress = lambda name, done, total: None) -> int:
    """Leave qm9.npz in `folder`, from the archive there or from the network; returns the number of molecules.

    Raises DataError as `download_qm9` and `read_qm9`.
    """
    molecules = read_qm9(download_qm9(folder, progress))
    write_qm9(molecules, folder / "qm9.npz")
    return len(molecules)


def _archive(folder: Path, api: str) -> Source:
    try:
        with urllib.request.urlopen(api, timeout=TIMEOUT) as answer:
            entries: Any = json.load(answer)
        (entry,) = [entry for entry in entries if entry["name"] == ARCHIVE]
        return Source(entry["download_url"], ARCHIVE, int(entry["size"]), entry["computed_md5"])
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        raise DataError(_by_hand(api, folder / ARCHIVE, error)) from error


def fetch(source: Source, folder: Path, progress: Progress = lambda name, done, total: None) -> Path:
    """One file into `folder`; NAME.part holds what has come so far, and the next call goes on there.

    Raises DataError if the network fails or the bytes are not the right ones.
    """
    target, part = folder / source.name, folder / f"{source.name}.part"
    if target.exists():
        _check(target, source)
        return target
    try:
        _receive(source, part, progress)
    except (OSError, http.client.HTTPException) as error:
        raise DataError(_by_hand(source.url, target, error)) from error
    _check(part, source)
    os.replace(part, target)
    return target


def _receive(source: Source, part: Path, progress: Progress) -> None:
    done = part.stat().st_size if part.exists() else 0
    if source.size is not None and done >= source.size:
        return
    request = urllib.request.Request(source.url, headers={"Range": f"bytes={done}-"} if done else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        if answer.status != http.HTTPStatus.PARTIAL_CONTENT:  # the server begins again
            done = 0
        total = done + int(answer.headers.get("Content-Length") or 0)
        with part.open("ab" if done else "wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                done += len(chunk)
                progress(source.name, done, total)
    if done < total:
        raise ConnectionError(f"the connection ended after {done} of {total} bytes")


def _check(path: Path, source: Source) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "md5").hexdigest()
    wrong_size = source.size is not None and size != source.size
    if wrong_size or (source.md5 is not None and digest != source.md5):
        path.unlink()
        raise DataError(
            f"{path} was damaged ({size} bytes, MD5 {digest}; expected {source.size}, {source.md5}) and is deleted: "
            "try again"
        )


def _by_hand(url: str, target: Path, error: Exception) -> str:
    reason = getattr(error, "reason", None) or error or type(error).__name__
    return (
        f"could not fetch {url}: {reason}. Again later, or where there is a network: {target.name} is part of "
        f"{COLLECTION}; put it at {target}"
    )
