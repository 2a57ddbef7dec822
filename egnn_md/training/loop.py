"""Train a model: data in, run folder out. Lightning runs the loop and the processes."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.utils.data import BatchSampler, DataLoader

from egnn_md.checkpoint import read_header, resolve, save, shipped_name
from egnn_md.data.frames import DataError
from egnn_md.storage import Hold, refuse_links, sha256, write_json, write_whole
from egnn_md.training.config import ConfigError, DataConfig, RunConfig
from egnn_md.training.sampling import StepBatch, StepSampler
from egnn_md.training.task import Task
from egnn_md.training.tasks import load_config, task_class

if TYPE_CHECKING:
    from egnn_md.training.module import TaskModule

VALIDATION_BATCH = 64


class RunFolderError(ValueError):
    """A run folder that cannot be used as asked; the message says what to do."""


@dataclass(frozen=True)
class Resources:
    """Where training runs. `devices` is the number of processes on this machine, `nodes` of machines."""

    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1
    progress: bool = True


def train(
    config_file: str | Path,
    data_folder: str | Path | None = None,
    output: str | Path | None = None,
    resources: Resources | None = None,
) -> Path:
    """Run a configuration from the start; returns the finished model's file.

    Data files are looked for in `data_folder`, then $EGNN_MD_DATA, then beside the configuration. Raises ConfigError,
    DataError, CheckpointError (init_from) and RunFolderError if the output folder already holds a run.
    """
    config_file = Path(config_file)
    config = load_config(config_file)
    folder = Path(output or config.output or f"{config.name}-run")
    places = [data_folder, os.environ.get("EGNN_MD_DATA"), config_file.parent]
    init_from = _findable(config.init_from)
    data_files = find_files(config.data, [Path(place) for place in places if place is not None])
    with _held(folder):
        if is_first_process():
            _begin(folder, config_file, data_files, init_from)
        return _run(config, init_from, data_files, folder, resources or Resources())


def _findable(init_from: str | None) -> str | None:
    """The checkpoint's absolute path, or a shipped model's name: what a resumed run finds from any folder."""
    return None if init_from is None else shipped_name(init_from) or str(resolve(init_from).resolve())


def _begin(folder: Path, config_file: Path, data_files: list[Path], init_from: str | None) -> None:
    """Write what a resume needs, config.toml last: with it the folder holds a run."""
    if (folder / "config.toml").exists():
        raise RunFolderError(f"{folder} already holds a run: --resume {folder} goes on with it, -o names another")
    names, digests = [str(path.resolve()) for path in data_files], [sha256(path) for path in data_files]
    write_json(folder / "run.json", {"data": names, "sha256": digests, "init_from": init_from})
    with write_whole(folder / "config.toml") as temporary:
        shutil.copyfile(config_file, temporary)


def resume(folder: str | Path, resources: Resources | None = None) -> Path:
    """Go on with an interrupted run, exactly as if it had not been interrupted. Raises RunFolderError for a folder
    without a run, changed data or a damaged last.ckpt, StorageError if another process has the folder.
    """
    folder = Path(folder)
    if not (folder / "config.toml").is_file():
        raise RunFolderError(f"{folder} holds no run to resume (no config.toml in it)")
    with _held(folder):
        try:
            config = load_config(folder / "config.toml")
            kept = json.loads((folder / "run.json").read_text())
            data_files = [Path(name) for name in kept["data"]]
            init_from = kept.get("init_from", config.init_from)
            digests = [str(digest) for digest in kept.get("sha256", [])]  # earlier versions kept none
        except (ConfigError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise RunFolderError(f"{folder} is no run folder that can be resumed: {error}") from error
        for path, digest in zip(data_files, digests, strict=False):
            if sha256(path) != digest:
                raise RunFolderError(f"{path} is not as it was when the run in {folder} began: put the old file back")
        return _run(config, init_from, data_files, folder, resources or Resources())


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Keep a run folder, made if need be, from other runs; processes of one distributed run share it."""
    if not is_first_process():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with Hold(folder):
        refuse_links(folder.iterdir())
        yield


def is_first_process() -> bool:
    """Whether this process of a distributed run writes the files."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


def find_files(data: DataConfig, places: list[Path]) -> list[Path]:
    """Each data file in the first of `places` that has it. Raises DataError naming the places."""
    found = []
    for name in data.all_files:
        candidates = [place / name for place in places] if not Path(name).is_absolute() else [Path(name)]
        existing = [path for path in candidates if path.exists()]
        if not existing:
            looked = ", ".join(str(path.parent) for path in candidates)
            raise DataError(f"no data file {name!r} in {looked}: give its folder with --data or $EGNN_MD_DATA")
        found.append(existing[0])
    return found


def _run(config: RunConfig, init_from: str | None, data_files: list[Path], folder: Path, resources: Resources) -> Path:
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import EarlyStopping

    from egnn_md.training.module import TaskModule
    from egnn_md.training.progress import Bar
    from egnn_md.training.run_folder import CsvLog, KeepBest, Resumable

    settings = config.training
    task = task_class(config.task)(config.model_copy(update={"init_from": init_from}), data_files)
    torch.manual_seed(config.seed)
    module = TaskModule(task, task.build_model(), settings)
    information = describe(config, task, init_from)
    if resources.progress and is_first_process():
        counted = [f"{name} {n}" for name, n in information["training_data"].items() if isinstance(n, int)]
        print(f"training data: {', '.join(counted)}", file=sys.stderr)

    def save_best(progress: dict[str, float]) -> None:
        save(module.averaged_model, folder / "best.safetensors", information | {"training": progress})

    callbacks: list[Any] = [
        module.budget,
        KeepBest(save_best),
        CsvLog(
            folder,
            every=max(1, min(100, settings.validate_every)),
            losses=task.loss_names,
            errors=tuple(f"valid_{name}" for name in task.error_names),
        ),
    ]
    if settings.patience is not None:
        callbacks.append(EarlyStopping("valid_score", patience=settings.patience))
    if resources.progress:
        callbacks.append(Bar(refresh_rate=10))
    validate_every = min(settings.validate_every, settings.max_steps)
    callbacks.append(Resumable(folder, settings.checkpoint_every, validate_every))
    last = _checked(folder / "last.ckpt", module)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        devices = int(os.environ.get("LOCAL_WORLD_SIZE", resources.devices))
        trainer = pl.Trainer(
            accelerator=resources.accelerator,
            devices=devices,
            num_nodes=resources.nodes,
            # A last layer may have outputs that nothing reads: weights without a gradient, not to be waited for.
            strategy="ddp_find_unused_parameters_true" if devices * resources.nodes > 1 else "auto",
            max_steps=settings.max_steps,
            gradient_clip_val=settings.clip_norm,
            val_check_interval=validate_every,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=resources.progress,
            callbacks=callbacks,
            use_distributed_sampler=False,
            inference_mode=False,
        )
        loaders = make_loaders(config, task, module.model, trainer)
        trainer.fit(module, *loaders, ckpt_path=last, weights_only=True)
    if not trainer.is_global_zero:
        return folder / "model.safetensors"
    from egnn_md.training.report import finish

    if settings.keep == "last":
        save_best({"step": trainer.global_step})
    return finish(folder, task)


def _checked(last: Path, module: TaskModule) -> str | None:
    """The file to go on from, if there is one. Raises RunFolderError for one that is damaged or of another model."""
    if not last.exists():
        return None
    try:
        kept = torch.load(last, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
        shapes = {name: value.shape for name, value in kept.items()}
    except Exception as error:  # torch, pickle and zip have many words for it
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunFolderError(f"{last} is damaged: remove it to begin the run anew ({why})") from error
    if shapes != {name: value.shape for name, value in module.state_dict().items()}:
        raise RunFolderError(f"{last} is of another model than config.toml describes: was that changed meanwhile?")
    return str(last)


def make_loaders(config: RunConfig, task: Task, model: torch.nn.Module, trainer: Any) -> tuple[Any, Any]:
    """Loaders of the training steps and of the validation samples, for this process."""
    settings, rank, world = config.training, trainer.global_rank, trainer.world_size
    if settings.batch_size < world:
        raise ConfigError(f"batch_size {settings.batch_size} is smaller than the number of processes, {world}")
    train, valid = task.batches(model)
    sampler = StepSampler(len(train), settings.batch_size, settings.max_steps, config.seed, lambda: trainer.global_step)
    blocks: Any = BatchSampler(range(rank, len(valid), world), VALIDATION_BATCH, drop_last=False)
    return (
        DataLoader(StepBatch(train, rank, world), sampler=cast(Any, sampler), batch_size=None),
        DataLoader(cast(Any, valid), sampler=blocks, batch_size=None),
    )


def describe(config: RunConfig, task: Task, init_from: str | None = None) -> dict[str, Any]:
    """What a checkpoint says of its training."""
    return {
        "name": config.name,
        "description": config.description,
        "licence": config.licence,
        **task.information(),
        "training_config": config.model_dump(exclude={"output"}),
        "init_from": None if init_from is None else read_header(init_from).get("name", config.init_from),
    }
