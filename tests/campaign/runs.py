"""What happens to runs: kills at any moment, full disks, folders that cannot be written, company, hostile folders."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from commands import frames, prepare, shorten_distillations, verbs
from harness import Tally
from verbs import Ended, Verb, call, draw_nothing, end_group, import_as


def _fresh(folder: Path) -> Path:
    if folder.exists():
        os.chmod(folder, 0o755)
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


def _start(verb: Verb, place: Path) -> Path:
    """An empty folder for a verb; training wants to make its own."""
    folder = _fresh(place / "inside") / "run"
    if not verb.makes_folder:
        folder.mkdir()
    return folder


def _begun_or_resumed(verb: Verb, folder: Path, **how: Any) -> Ended:
    """Go on; if there is nothing yet to go on with, begin."""
    if verb.go_on is None:
        return call(verb.begin(folder), folder, **how)
    ended = call(verb.go_on(folder), folder, **how)
    said = ended.said.lower()
    if ended.code == 2 and any(words in said for words in ("nothing to resume", "is finished", "exists: --overwrite")):
        return replace(ended, code=0)
    if ended.code == 2 and ("no run" in said or "holds no" in said or "no such" in said):
        if verb.makes_folder and folder.exists():
            shutil.rmtree(folder)
        return call(verb.begin(folder), folder, **how)
    return ended


def _judge(tally: Tally, verb: Verb, folder: Path, expected: Any, case: str, ended: Ended) -> None:
    """Count a run that should have ended well and with the same result as the undisturbed one."""
    if ended.has_traceback:
        tally.fault(f"traceback: {ended.said.strip().splitlines()[-1][:150]}", case)
    elif ended.code != 0:
        tally.fault(f"does not go on: {ended.said.strip()[-200:]}", case)
    else:
        try:
            same = verb.left(folder) == expected
        except Exception as error:
            tally.fault(f"what was left cannot be read: {type(error).__name__} {error}", case)
            return
        if not same:
            tally.fault("another result than without the kill", case)


def _make_cheap() -> None:
    """Leave out what takes time and writes nothing that could be lost."""
    draw_nothing()
    shorten_distillations()


def _undisturbed(tally: Tally, verb: Verb, place: Path) -> tuple[Ended, Any] | None:
    """How it goes, and what it leaves."""
    folder = _start(verb, place)
    whole = call(verb.begin(folder), folder)
    if whole.code not in (0, 1) or whole.has_traceback:
        tally.fault(f"fails undisturbed: {whole.said.strip()[-300:]}", verb.name)
        return None
    import_as(folder.parent / "modules.txt")
    return whole, verb.left(folder)


def kills(place: Path, seconds: float, seed: int, only: str = "") -> Tally:
    """Kill every verb (those with `only` in their names) before any of its changes, or at random moments, some again
    where they go on; all must end with what an undisturbed one left.

    Most are forks, which draw no pictures; one of sixteen turns is of processes from nothing.
    """
    tally, rng, files = Tally("kills"), np.random.default_rng(seed), prepare(place)
    known: dict[str, tuple[Ended, Any] | None] = {}
    _make_cheap()
    chosen = [verb for verb in verbs(files) if only in verb.name]
    end, turn = time.monotonic() + seconds, int(rng.integers(16))
    while time.monotonic() < end:
        fresh = turn % 16 == 15
        for k in rng.permutation(len(chosen)):
            verb = chosen[k]
            if (turn % verb.every and not only) or time.monotonic() > end:
                continue
            if verb.name not in known:
                known[verb.name] = _undisturbed(tally, verb, place)
            if (seen := known[verb.name]) is None:
                continue
            whole, expected = seen
            slow = whole.seconds + (5.0 if fresh else 0.0)
            how: dict[str, Any] = {"kill_after": float(rng.uniform(0, slow)), "fresh": fresh}
            if not fresh and rng.random() < 0.7:
                how = {"kill_at": int(rng.integers(1, 1 + whole.events))}
            folder, case = _start(verb, place), f"{verb.name}, seed {seed}, {how}"
            ended = call(verb.begin(folder), folder, **how)
            while True:
                what = "killed" if ended.code == -signal.SIGKILL else "too quick"
                tally.counts[f"{verb.name} {what}{' (from nothing)' * how.get('fresh', False)}"] += 1
                before = ended
                if what == "too quick" or rng.random() < 0.3:
                    break
                how = {"kill_at": int(rng.integers(1, 1 + whole.events))}
                case += f", then {how}"
                ended = _begun_or_resumed(verb, folder, **how)
                end_group(before)
            ended = _begun_or_resumed(verb, folder)
            end_group(before)
            if ended.code == 1 and whole.code == 1:
                ended = replace(ended, code=0)
            _judge(tally, verb, folder, expected, case, ended)
        turn += 1
    tally.show()
    return tally


def full_disks(place: Path, seconds: float, seed: int) -> Tally:
    """Files that cannot grow beyond some size: one line and no traceback; with room again, the work goes on."""
    tally, rng, files = Tally("full disks"), np.random.default_rng(seed), prepare(place)
    known: dict[str, tuple[Ended, Any] | None] = {}
    _make_cheap()
    chosen = verbs(files)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for k in rng.permutation(len(chosen)):
            verb = chosen[k]
            if time.monotonic() > end:
                break
            if verb.name not in known:
                known[verb.name] = _undisturbed(tally, verb, place)
            if (seen := known[verb.name]) is None:
                continue
            whole, expected = seen
            folder = _start(verb, place)
            size = int(2 ** rng.uniform(5, 17))
            case = f"{verb.name}, files up to {size} bytes"
            first = call(verb.begin(folder), folder, largest_file=size)
            tally.counts["stopped" if first.code not in (0, 1) else "went through"] += 1
            if first.has_traceback or first.code < 0:
                tally.fault(f"traceback: {first.said.strip().splitlines()[-1][:150]}", case)
            ended = _begun_or_resumed(verb, folder)
            if ended.code == 1 and whole.code == 1:
                ended = replace(ended, code=0)
            _judge(tally, verb, folder, expected, case, ended)
    tally.show()
    return tally


def read_only(place: Path) -> Tally:
    """A folder without the right to write: one line, exit code 2."""
    tally, files = Tally("read-only folders"), prepare(place)
    _make_cheap()
    for verb in verbs(files):
        folder = _start(verb, place)
        closed = folder if folder.exists() else folder.parent
        os.chmod(closed, 0o555)
        ended = call(verb.begin(folder), folder, as_nobody=True)
        os.chmod(closed, 0o755)
        tally.counts["refused" if ended.code == 2 else f"exit code {ended.code}"] += 1
        if ended.has_traceback or ended.code != 2:
            tally.fault(f"no refusal but {ended.said.strip()[-200:]!r}", verb.name)
    tally.show()
    return tally


def company(place: Path) -> Tally:
    """A second process in the folder of a run: refused by name, and the first one's run stays whole."""
    tally, files = Tally("two processes"), prepare(place)
    for name in ("many.xyz", "some.xyz"):
        files[name].write_text(files["many.xyz"].read_text() * 20)
    files["train.toml"].write_text(files["train.toml"].read_text().replace("max_steps = 24", "max_steps = 100000"))
    tried = ("md xtc", "rollout", "train", "distill", "predict csv", "relax many", "md many", "label")
    for verb in [verb for verb in verbs(files) if verb.name in tried]:
        folder = _start(verb, place)
        assert verb.go_on is not None
        words = ["100000" if word in ("60", "30", "8") else word for word in verb.begin(folder)]
        first = os.fork()
        if first == 0:
            call(words, folder, label="-first")
            os._exit(0)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not any(folder.rglob("*.lock")):
            time.sleep(0.01)
        for what in ("go_on", "begin"):
            arguments = (verb.go_on if what == "go_on" else verb.begin)(folder)
            second = call(arguments, folder, kill_after=20.0, label="-second")
            while "holds no" in second.said and time.monotonic() < deadline:  # nothing to go on from yet
                second = call(arguments, folder, kill_after=20.0, label="-second")
            tally.counts["tried"] += 1
            refused = "process" in second.said or (what == "begin" and "already holds" in second.said)
            if second.code != 2 or not refused:
                told = f"exit code {second.code} in place of a refusal: {second.said[-150:]!r}"
                tally.fault(told, f"{verb.name}, {what}")
        _end(first)
        if verb.left is frames:
            frames(folder)
    tally.show()
    return tally


def _end(process: int) -> None:
    """Kill a fork that waits for a child of its own, and the child."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    for child in (*map(int, children), process):
        os.kill(child, signal.SIGKILL)
    os.waitpid(process, 0)


def hostile(place: Path) -> Tally:
    """Run folders made to harm: names that lead outside, links, pickles. Nothing outside is touched."""
    tally, files = Tally("hostile run folders"), prepare(place)
    _make_cheap()
    by_name = {verb.name: verb for verb in verbs(files)}
    victim = place / "victim.txt"

    def attempt(name: str, verb: Verb, spoil: Any, **how: Any) -> None:
        folder = _start(verb, place)
        call(verb.begin(folder), folder, **how)
        victim.write_text("precious\n" * 50)
        spoil(folder)
        assert verb.go_on is not None
        ended = call([*verb.go_on(folder), *(["--steps", "90"] if verb.name == "md xtc" else [])], folder)
        tally.counts["tried"] += 1
        if not victim.exists() or victim.read_bytes() != b"precious\n" * 50:
            tally.fault("a file outside was changed", name)
        if ended.has_traceback:
            tally.fault(f"traceback: {ended.said.strip().splitlines()[-1][:150]}", name)

    def marks(name: str, size: int) -> Any:
        def spoil(folder: Path) -> None:
            with np.load(folder / "state.npz") as archive:
                arrays = {key: archive[key] for key in archive.files}
            details = json.loads(str(arrays["details"]))
            details["marks"][name] = [size, "00"]
            np.savez(folder / "state.npz", **{**arrays, "details": np.array(json.dumps(details))})

        return spoil

    def link(name: str) -> Any:
        def spoil(folder: Path) -> None:
            path = Path(os.path.normpath(folder / name))
            if path.is_dir():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(victim)

        return spoil

    md = by_name["md xtc"]
    for name in ("../../victim.txt", str(victim), "./../../victim.txt", "..", "."):
        for size in (0, 5):
            attempt(f"mark {name} of size {size}", md, marks(name, size))
    for verb, names in (
        (md, ("log.csv", "trajectory.xtc", "summary.json", "state.npz", "plot.png", "last.extxyz")),
        (by_name["rollout"], ("log.csv", "trajectory.traj")),
        (by_name["train"], ("log.csv", "best.safetensors", "model.safetensors", "last.ckpt", "learning_curve.png")),
        (
            by_name["predict csv"],
            ("t.csv.parts/work.json", "t.csv.parts/merge.lock", "t.csv.parts/000000000.jsonl.part"),
        ),
    ):
        for name in names:
            attempt(f"{verb.name}: {name} is a link", verb, link(name))

    for name in ("", "work.json", "merge.lock", ".shard-1.lock", "000000001.jsonl.part", "000000002.jsonl"):
        attempt(
            f"label: {name or 'its parts'} is a link",
            by_name["label"],
            link(f"labelled.extxyz.parts/{name}"),
            kill_at=11,
        )
    for name in (
        "distill.json",
        "starts.extxyz",
        "rounds/00/chosen.extxyz",
        "time.json",
        "model.safetensors",
        "data.extxyz",
    ):
        attempt(f"distill: {name} is a link", by_name["distill"], link(name), kill_at=40)

    for name in ("-1.jsonl", "9" * 30 + ".jsonl", "000000001.jsonl", "a\nb.jsonl", "000000000.csv", "000000000.jsonl"):

        def strange(folder: Path, name: str = name) -> None:
            parts = folder / "t.csv.parts"
            parts.mkdir(exist_ok=True)
            (parts / name).write_text('{"index": 0, "file": "../../victim.txt"}\n')

        attempt(f"predict: a part {name!r} that it did not write", by_name["predict csv"], strange, kill_at=6)

    def pickled(folder: Path) -> None:
        import pickle

        class Evil:
            def __reduce__(self) -> Any:
                return os.remove, (str(victim),)

        (folder / "last.ckpt").write_bytes(pickle.dumps(Evil()))

    attempt("last.ckpt is a pickle that acts", by_name["train"], pickled)
    tally.show()
    return tally
