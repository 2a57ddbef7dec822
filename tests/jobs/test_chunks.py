"""Every structure comes out once and in order, whatever is killed and however the work is divided."""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from cheap_teachers import Counting

from egnn_md.data.frames import DataError
from egnn_md.jobs import chunks
from egnn_md.jobs.chunks import Counts, Job, JobError
from egnn_md.jobs.executors import ExecutorError, Here, make_executor
from egnn_md.jobs.source import read_items
from egnn_md.storage import StorageError

HERE = Path(__file__).parent


@pytest.fixture
def source(tmp_path: Path) -> Path:
    frames = [Atoms("He", [[float(k), 0, 0]], info={"number": k}) for k in range(23)]
    ase.io.write(tmp_path / "in.extxyz", frames)
    return tmp_path / "in.extxyz"


def do(source: Path, worker: Any, output: str = "out.extxyz", **options: Any) -> Counts:
    job = Job(source.with_name(output), worker, {"what": "count"}, **{"size": 4, **options})
    return job.run(read_items(source), Here())


def check(source: Path, output: str = "out.extxyz") -> None:
    path = source.with_name(output)
    assert [atoms.info["number"] for atoms in ase.io.read(path, ":")] == [k for k in range(23) if k % 5]
    with path.with_name(output + ".csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == list(range(23))
    assert [float(row["x"]) for row in rows] == list(range(23))
    assert [row["status"] == "failed" for row in rows] == [k % 5 == 0 for k in range(23)]
    assert rows[5]["reason"] == "a five"
    assert not path.with_name(output + ".parts").exists()


def test_results_come_in_the_order_of_the_source(source: Path) -> None:
    counts = do(source, Counting(str(source.with_name("log"))))
    assert counts == Counts(18, 5, True)
    check(source)


def test_nothing_is_lost_or_done_twice_after_stops(source: Path) -> None:
    """Each run does two structures more, and the last line of one part-file is cut in half."""
    log = source.with_name("log")
    for _ in range(30):
        try:
            do(source, Counting(str(log), stop_after=2))
            break
        except KeyboardInterrupt:
            part = next(source.with_name("out.extxyz.parts").glob("*.part"))
            with part.open("a") as file:
                file.write('{"index": 3, "fail')
    else:
        pytest.fail("it never ended")
    check(source)
    assert sorted(map(int, log.read_text().split())) == list(range(23))


def test_a_worker_that_outlives_its_run_doubles_nothing(source: Path) -> None:
    """Its run was killed, another goes on: what the worker was still writing is waited for."""
    log = source.with_name("log")
    with pytest.raises(KeyboardInterrupt):
        do(source, Counting(str(log), stop_after=2), size=23)
    with chunks._alone(source.with_name("out.extxyz.parts") / "000000000.jsonl.part") as file:
        going_on = threading.Thread(target=do, args=(source, Counting(str(log))), kwargs={"size": 23})
        going_on.start()
        going_on.join(0.5)
        frame = io.StringIO()
        ase.io.write(frame, Atoms("He", [[1.0, 0, 0]], info={"number": 1}), format="extxyz")
        file.write(json.dumps({"index": 1, "failed": False, "row": {"x": 1.0}, "frames": frame.getvalue()}) + "\n")
        file.flush()
    going_on.join()
    check(source)
    assert sorted(map(int, log.read_text().split())) == [0, *range(2, 23)]


@pytest.mark.parametrize("text", ["x", "[]", '{"index": 1}', '{"index": "1", "failed": 0, "row": {}, "frames": ""}'])
def test_damaged_part_files_are_told(source: Path, text: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        do(source, Counting(str(source.with_name("log")), stop_after=2))
    parts = source.with_name("out.extxyz.parts")
    (parts / "000000000.jsonl.part").write_text(text + "\n")
    with pytest.raises(JobError, match="is damaged"):
        do(source, Counting(str(source.with_name("log"))))
    (parts / "work.json").write_text("{")
    with pytest.raises(StorageError, match="is damaged"):
        do(source, Counting(str(source.with_name("log"))))


@pytest.mark.parametrize("index", [0, 4, -1, 10**40])
@pytest.mark.parametrize("row", [{"x": 1.0}, {"unknown": 1}, {"x": "\ud800"}])
@pytest.mark.parametrize("frames", ["", "\ud800"])
def test_answers_of_others_are_not_taken(source: Path, index: int, row: Any, frames: str) -> None:
    """A finished part in which a structure stands twice, is missing, or has what no worker of ours writes."""
    with pytest.raises(KeyboardInterrupt):
        do(source, Counting(str(source.with_name("log")), stop_after=2))
    records = [{"index": k, "failed": False, "row": row, "frames": frames} for k in (index, 1, 2, 3)]
    part = source.with_name("out.extxyz.parts") / "000000000.jsonl"
    part.write_text("".join(json.dumps(record) + "\n" for record in records))
    if index == 0 and row == {"x": 1.0} and not frames:
        assert do(source, Counting(str(source.with_name("log")))).finished
        return
    with pytest.raises(JobError, match=r"000000000\.jsonl is damaged"):
        do(source, Counting(str(source.with_name("log"))))
    assert not source.with_name("out.extxyz").exists()
    part.unlink()
    part.with_name(part.name + ".part").unlink(missing_ok=True)
    assert do(source, Counting(str(source.with_name("log")))).finished
    check(source)


@pytest.mark.parametrize("name", ["000000000.jsonl.part", "merge.lock", "work.json", ""])
def test_no_link_is_followed(source: Path, name: str) -> None:
    victim = source.with_name("victim")
    if name:
        source.with_name("out.extxyz.parts").mkdir()
        victim.write_text("precious")
    else:
        victim.mkdir()
    source.with_name("out.extxyz.parts").joinpath(name).symlink_to(victim)
    with pytest.raises(StorageError, match="is a link"):
        do(source, Counting(str(source.with_name("log"))))
    assert not list(victim.iterdir()) if victim.is_dir() else victim.read_text() == "precious"


def test_shards_do_each_their_part_and_the_last_writes_the_output(source: Path) -> None:
    worker = Counting(str(source.with_name("log")))
    assert not do(source, worker, shard=(2, 3)).finished
    assert not do(source, worker, shard=(1, 3)).finished
    assert not source.with_name("out.extxyz").exists()
    assert do(source, worker, shard=(3, 3)) == Counts(18, 5, True)
    check(source)


def test_other_work_is_refused(source: Path) -> None:
    worker = Counting(str(source.with_name("log")))
    do(source, worker, shard=(1, 2))
    with pytest.raises(JobError, match="another input"):
        do(source, worker, size=5, shard=(2, 2))
    do(source, worker, shard=(2, 2))
    with pytest.raises(JobError, match="--overwrite"):
        do(source, worker)
    assert do(source, worker, overwrite=True).finished
    for options in ({"size": 0}, {"shard": (0, 2)}, {"shard": (3, 2)}):
        with pytest.raises(JobError):
            do(source, worker, "new.extxyz", **options)
    with pytest.raises(JobError, match="folder"):
        Job(source.parent / "nowhere" / "out.extxyz", worker, {}, size=4)


def test_a_process_at_work_and_links_are_respected(source: Path) -> None:
    worker = Counting(str(source.with_name("log")))
    do(source, worker, shard=(1, 2))
    parts, victim = source.with_name("out.extxyz.parts"), source.with_name("victim")
    script = f"from egnn_md.storage import Hold; from pathlib import Path; Hold(Path({str(parts / 'shard-1')!r}))\n"
    with subprocess.Popen(
        [sys.executable, "-c", f"{script}print(flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        for options in ({"overwrite": True}, {"shard": (1, 2)}):
            with pytest.raises(StorageError, match=f"in use by process {process.pid}"):
                do(source, worker, **options)
        process.kill()
    victim.write_text("precious\n")
    for name in ("000000001.jsonl.part", "000000001.jsonl", "merge.lock", "work.json"):
        kept = (parts / name).read_bytes() if (parts / name).exists() else None
        (parts / name).unlink(missing_ok=True)
        (parts / name).symlink_to(victim)
        with pytest.raises(ValueError, match=r"is a link|is damaged"):
            do(source, worker, shard=(2, 2))
        assert victim.read_text() == "precious\n"
        (parts / name).unlink()
        if kept is not None:
            (parts / name).write_bytes(kept)
    assert do(source, worker, overwrite=True).finished
    check(source)


def test_one_bad_structure_is_its_own_affair(tmp_path: Path) -> None:
    text = "1\n\nHe 0 0 0\n1\n\nQq 0 0 0\n\n1\n\nHe 1 0 0\n"
    (tmp_path / "in.xyz").write_text(text)
    job = Job(tmp_path / "out.extxyz", Counting(str(tmp_path / "log")), {}, size=8)
    assert job.run(read_items(tmp_path / "in.xyz"), Here()) == Counts(1, 2, True)
    assert "unknown element 'Qq'" in (tmp_path / "out.extxyz.csv").read_text()
    for name, content in (("empty.xyz", ""), ("bad.xyz", "two\n\nHe 0 0 0\n")):
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError):
            list(read_items(tmp_path / name))
    with pytest.raises(DataError, match="no such file"):
        read_items(tmp_path / "nowhere.xyz")


def test_sources_read_the_same_from_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", n_atoms=[1, 2], atomic_numbers=[2, 1, 8], positions=np.eye(3), charge=[0, -1])
    first, second = read_items(tmp_path / "a.npz")
    assert str(first.symbols) == "He"  # type: ignore[union-attr]
    assert second.info["charge"] == -1  # type: ignore[union-attr]
    assert second.positions[1].tolist() == [0, 0, 1]  # type: ignore[union-attr]


@pytest.mark.parametrize("charge", [np.nan, np.inf, 0.6])
def test_charges_of_an_npz_that_are_no_charges_stay_what_they_are(charge: float, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", n_atoms=[1], atomic_numbers=[8], positions=np.zeros((1, 3)), charge=[charge])
    (found,) = read_items(tmp_path / "a.npz")
    assert repr(found.info["charge"]) == repr(charge)  # type: ignore[union-attr]
    np.savez(tmp_path / "a.npz", n_atoms=[1], atomic_numbers=[8], positions=np.zeros((1, 3)), pbc=[[1, 1]])
    with pytest.raises(DataError, match="pbc"):
        list(read_items(tmp_path / "a.npz"))


def label(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "egnn_md.cli", "label", "cheap_teachers:springs", "in.extxyz", "-o", "out.extxyz"]
    for option in ("log=calls", "seconds=0.02"):
        command += ["--with", option]
    environment = {"PYTHONPATH": f"{HERE}:{HERE.parents[1]}", "PATH": "", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, *words], cwd=folder, env=environment, stderr=subprocess.DEVNULL)


def test_labels_survive_sigkill_in_a_pool(source: Path) -> None:
    """Killed with two workers, then finished: each label once, and no more calls than two for each that was cut off."""
    calls = source.with_name("calls")
    process = label(source.parent, "--chunk", "3", "--workers", "2")
    deadline = time.monotonic() + 120
    while not (calls.exists() and len(calls.read_text().split("\n")) > 6) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    workers = {int(line.split()[1]) for line in calls.read_text().splitlines()}
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)  # they noticed that nobody is there any more
    assert not source.with_name("out.extxyz").exists()
    assert label(source.parent, "--chunk", "3").wait() == 0
    numbers = [atoms.info["number"] for atoms in ase.io.read(source.with_name("out.extxyz"), ":")]
    assert numbers == [k for k in range(23) if k not in (5, 7, 8)]
    assert len(calls.read_text().splitlines()) <= 23 + 2


@pytest.mark.parametrize("name", ["dask", "parsl", "executorlib"])
@pytest.mark.filterwarnings("ignore")
def test_engines_give_what_this_process_gives(source: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{HERE}:{HERE.parents[1]}")
    pytest.importorskip({"dask": "distributed"}.get(name, name))
    worker = Counting(str(source.with_name("log")))
    job = Job(source.with_name("out.extxyz"), worker, {}, size=4)
    with make_executor(name, 1) as executor:
        assert job.run(read_items(source), executor) == Counts(18, 5, True)
    check(source)


def test_an_executor_of_the_user(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    with make_executor("cheap_teachers:executor", 2) as executor:
        job = Job(source.with_name("out.extxyz"), Counting(str(source.with_name("log"))), {}, size=4)
        assert job.run(read_items(source), executor, 2).finished
    check(source)
    for name in ("dusk", "cheap_teachers:nowhere", "no_such_module:executor"):
        with pytest.raises(ExecutorError), make_executor(name, 2):
            pass
    with pytest.raises(ExecutorError, match="at least 1"), make_executor("process", 0):
        pass
