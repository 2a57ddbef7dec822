"""Who does the work: this process, worker processes, or an engine for many machines.

All are `concurrent.futures.Executor`s. What a worker needs (a model, a teacher) it loads once, at its first chunk, so
that engines without initializers serve as well.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any, Final

NAMES: Final = ("process", "dask", "parsl", "executorlib")


class ExecutorError(ValueError):
    """An executor that cannot be had; the message says what to do."""


def _end_with(parent: int) -> None:
    """End this worker when its parent has gone: killed, it cannot say so, and the workers keep each other's pipes."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Here(Executor):
    """Does each task at once, in this process."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """The task is done when this returns; so is its failure."""
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@contextlib.contextmanager
def make_executor(name: str = "process", workers: int = 1) -> Iterator[Executor]:
    """An executor of `workers` processes with one thread each, shut down at the end.

    "process" (one worker: this process itself), "dask" (a LocalCluster; "dask:ADDRESS" for a scheduler that runs
    already), "parsl", "executorlib", or "module:callable", a function of your own that takes the number of workers and
    returns an Executor: that is where a cluster's queue and account belong. Raises ExecutorError.
    """
    if workers < 1:
        raise ExecutorError(f"--workers must be at least 1, not {workers}")
    with _environment(workers), contextlib.closing(_Closing(_make(name, workers))) as made:
        yield made.executor


class _Closing:
    """Shuts the executor down, waiting tasks dropped, and what stands behind it."""

    def __init__(self, made: tuple[Executor, Callable[[], object]]) -> None:
        self.executor, self.behind = made

    def close(self) -> None:
        """Called once, whatever happened."""
        try:
            self.executor.shutdown(wait=True, cancel_futures=True)
        except TypeError:  # dask's and parsl's executors do not know cancel_futures
            self.executor.shutdown(wait=True)
        self.behind()


@contextlib.contextmanager
def _environment(workers: int) -> Iterator[None]:
    """What worker processes inherit: one OpenMP thread each, and the scripts beside this Python, which parsl starts."""
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "PATH")}
    if workers > 1:
        os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), before["PATH"] or os.defpath])
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _make(name: str, workers: int) -> tuple[Executor, Callable[[], object]]:
    kind, _, rest = name.partition(":")
    if kind == "process" and not rest:
        if workers == 1:
            return Here(), lambda: None
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(workers, context, _end_with, (os.getpid(),)), lambda: None
    if kind == "dask":
        return _dask(rest, workers)
    if kind == "parsl" and not rest:
        return _parsl(workers)
    if kind == "executorlib" and not rest:
        return _needs("executorlib").SingleNodeExecutor(max_workers=workers), lambda: None
    if rest:
        return _of_the_user(kind, rest, workers), lambda: None
    raise ExecutorError(f"--executor is one of {', '.join(NAMES)} or module:callable, not {name!r}")


def _needs(module: str, package: str | None = None) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = package or module
        raise ExecutorError(f"--executor {name} needs {error.name}: pip install 'egnn-md[{name}]'") from None


def _dask(address: str, workers: int) -> tuple[Executor, Callable[[], object]]:
    distributed = _needs("distributed", "dask")
    if address:
        client = distributed.Client(address)
    else:
        client = distributed.Client(n_workers=workers, threads_per_worker=1, dashboard_address=None)
    return client.get_executor(), client.close


def _parsl(workers: int) -> tuple[Executor, Callable[[], object]]:
    executor = _needs("parsl.executors", "parsl").HighThroughputExecutor(
        label="egnn_md", max_workers_per_node=workers, cores_per_worker=1, address="127.0.0.1", encrypted=False
    )
    logs = tempfile.TemporaryDirectory(prefix="egnn-md-parsl-", ignore_cleanup_errors=True)
    config = _needs("parsl.config", "parsl").Config(executors=[executor], run_dir=logs.name, initialize_logging=False)
    return _needs("parsl.concurrent", "parsl").ParslPoolExecutor(config), logs.cleanup


def _of_the_user(module: str, name: str, workers: int) -> Executor:
    try:
        made = getattr(importlib.import_module(module), name)(workers)
    except (ImportError, AttributeError) as error:
        raise ExecutorError(f"--executor {module}:{name}: {error}") from error
    if not hasattr(made, "submit") or not hasattr(made, "shutdown"):
        raise ExecutorError(f"--executor {module}:{name} returned a {type(made).__name__}, which is no Executor")
    executor: Executor = made
    return executor
