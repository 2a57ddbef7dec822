"""Options that arrive as keywords: a mistyped one is an error that names the nearest."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def refuse_unknown(owner: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise TypeError for the first of `given` that is not among `known`, naming the nearest."""
    known = list(known)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise TypeError(f"{owner} has no option {name!r}; did you mean {near!r}? Options: {', '.join(known)}")
