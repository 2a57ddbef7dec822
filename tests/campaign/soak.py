"""A day's use of one run folder, in pieces."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from commands import digest, frames, prepare
from harness import Tally
from verbs import call, draw_nothing

PIECES = 144
"""In 24 hours, one each ten minutes."""
STEPS = 100
"""Of one piece."""
GROWTH = 1.05
"""Of memory, last quarter of the pieces to the first."""


def soak(place: Path, seconds: float, seed: int) -> Tally:
    """One run that goes on and on, in pieces that are processes of their own, until `PIECES` or the time is up.

    The 24 simulated hours are 24 hours in the life of a run that is stopped and resumed every ten minutes: what could
    pile up (files, log, state, memory) grows with the pieces and with the steps before them, not with the minutes that
    a piece takes, so that each is `STEPS` steps of water at 100 K with organic-xtb. Every third is killed somewhere
    and done again. Memory stays flat from piece to piece; the log and the frames are those of a run in one piece.
    """
    tally, rng, files = Tally("soak"), np.random.default_rng(seed), prepare(place)
    draw_nothing()
    options = ["--interval", "5", "--format", "xtc", "--seed", "1", "--temperature", "100", "--threads", "1"]
    begin = ["md", str(files["water.xyz"]), *options]
    folder, peaks, done, events = place / "soak", [], 0, 1
    end = time.monotonic() + seconds
    while done < PIECES and (time.monotonic() < end or done < 8):
        steps = ["--steps", str(STEPS * (done + 1))]
        go_on = ["md", "--resume", str(folder), "--threads", "1"] if done else [*begin, "-o", str(folder)]
        if done and done % 3 == 0:
            killed = call([*go_on, *steps], folder, kill_at=int(rng.integers(1, events + 1)))
            tally.counts["killed" if killed.code < 0 else "not killed"] += 1
        ended = call([*go_on, *steps], folder)
        done += 1
        tally.counts["pieces"] += 1
        peaks.append(ended.memory / 2**20)
        events = ended.events
        if ended.code:
            tally.fault(f"a piece ended with {ended.code}: {ended.said.strip()[-200:]}", f"piece {done}")
            break
    tally.counts["steps"] = STEPS * done
    left = frames(folder)
    whole = place / "whole"
    call([*begin, "--steps", str(STEPS * done), "-o", str(whole)], whole)
    if left != frames(whole):
        tally.fault("another run than in one piece", f"{done} pieces, {digest(folder / 'log.csv')[:8]}")
    first, last = (float(np.median(part)) for part in (peaks[1 : 1 + done // 4], peaks[-(done // 4) :]))
    print(f"soak: peak memory {first:.0f} MB in the first quarter of {done} pieces, {last:.0f} MB in the last")
    if last > GROWTH * first:
        tally.fault(f"memory grew from {first:.0f} to {last:.0f} MB", "soak")
    tally.show()
    return tally
