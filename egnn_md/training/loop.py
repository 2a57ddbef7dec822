"""Train a potential: data in, run folder out. Lightning runs the loop and the processes."""

from __future__ import annotations

import json
import logging
import os
import shutil
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from egnn_md.checkpoint import load, read_header, save
from egnn_md.data.structures import DataError, EdgeTable, Frames, assign_split, concatenate, read_frames
from egnn_md.elements import symbols
from egnn_md.models.potential import Potential, PotentialConfig
from egnn_md.training.batches import FrameBatches, StepBatch, StepSampler
from egnn_md.training.config import ConfigError, DataConfig, RunConfig, load_config

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


@dataclass(frozen=True)
class Splits:
    """The labelled structures of a run."""

    train: Frames
    valid: Frames
    test: Frames


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
    data_files = find_files(config.data, [Path(place) for place in places if place is not None])
    if is_first_process():
        if (folder / "config.toml").exists():
            raise RunFolderError(f"{folder} already holds a run: --resume {folder} goes on with it, -o names another")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.json").write_text(json.dumps({"data": [str(path.resolve()) for path in data_files]}, indent=2))
        shutil.copyfile(config_file, folder / "config.toml")
    return _run(config, data_files, folder, resources or Resources())


def resume(folder: str | Path, resources: Resources | None = None) -> Path:
    """Go on with an interrupted run, exactly as if it had not been interrupted. Raises RunFolderError."""
    folder = Path(folder)
    try:
        config = load_config(folder / "config.toml")
        data_files = [Path(name) for name in json.loads((folder / "run.json").read_text())["data"]]
    except (ConfigError, OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise RunFolderError(f"{folder} is no run folder that can be resumed: {error}") from error
    return _run(config, data_files, folder, resources or Resources())


def is_first_process() -> bool:
    """Whether this process of a distributed run writes the files."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


def find_files(data: DataConfig, places: list[Path]) -> list[Path]:
    """Each data file in the first of `places` that has it. Raises DataError naming the places."""
    found = []
    for name in data.files:
        candidates = [place / name for place in places] if not Path(name).is_absolute() else [Path(name)]
        existing = [path for path in candidates if path.is_file()]
        if not existing:
            looked = ", ".join(str(path.parent) for path in candidates)
            raise DataError(f"no data file {name!r} in {looked}: give its folder with --data or $EGNN_MD_DATA")
        found.append(existing[0])
    return found


def load_splits(data: DataConfig, data_files: list[Path]) -> Splits:
    """Read and divide the structures by group. Raises DataError if a side is empty."""
    frames = concatenate([read_frames(path) for path in data_files])
    if data.exclude_tags:
        frames = frames.select(np.flatnonzero(~np.isin(frames.tag, data.exclude_tags)))
    sides = assign_split(frames, data.valid_fraction, data.test_fraction)
    train, valid, test = (frames.select(np.flatnonzero(sides == side)) for side in ("train", "valid", "test"))
    if len(train) == 0 or len(valid) == 0:
        raise DataError(
            f"{len(np.unique(frames.group))} groups (molecules) are too few for a training and a validation side: "
            "name groups in the data (info['group'] in extxyz) or raise valid_fraction"
        )
    return Splits(train, _within(valid, train), _within(test, train))


def _within(held_out: Frames, train: Frames) -> Frames:
    """The held-out frames whose elements all occur in training; the model will not know the others."""
    unknown = ~np.isin(held_out.atomic_numbers, np.unique(train.atomic_numbers))
    if not unknown.any():
        return held_out
    frame_of_atom = np.repeat(np.arange(len(held_out)), held_out.n_atoms)
    dropped = np.unique(frame_of_atom[unknown])
    names = symbols(np.unique(held_out.atomic_numbers[unknown]))
    warnings.warn(f"{len(dropped)} held-out frames have {names}, which no training frame has: left out", stacklevel=2)
    return held_out.select(np.setdiff1d(np.arange(len(held_out)), dropped))


def reference_energies(frames: Frames, elements: tuple[int, ...]) -> tuple[float, ...]:
    """Least-squares energy per element, eV: what remains for the network is the energy of binding."""
    known = np.isfinite(frames.energy)
    counts = frames.composition(elements)[known]
    return tuple(np.linalg.lstsq(counts, frames.energy[known], rcond=None)[0].tolist())


def build_model(config: RunConfig, frames: Frames) -> Potential:
    """A new model for the elements of the data, or the one of `init_from` to go on from."""
    elements = tuple(int(z) for z in np.unique(frames.atomic_numbers))
    torch.manual_seed(config.seed)
    dtype = cast(torch.dtype, getattr(torch, config.training.dtype))
    if config.init_from is None:
        settings = config.model.model_dump()
        return Potential(PotentialConfig(elements, reference_energies(frames, elements), **settings)).to(dtype)
    start = cast(Potential, load(config.init_from, dtype=dtype))
    unknown = set(elements) - set(start.config.elements)
    if unknown:
        raise ConfigError(f"init_from {config.init_from!r} does not know {symbols(sorted(unknown))} of the data")
    model = Potential(_shifted(start.config, frames)).to(dtype)
    model.load_state_dict(start.state_dict())
    return model


def _shifted(config: PotentialConfig, frames: Frames) -> PotentialConfig:
    """The same model with reference energies of the new data: another method has another zero of energy."""
    present = tuple(int(z) for z in np.unique(frames.atomic_numbers))
    fitted = dict(zip(present, reference_energies(frames, present), strict=True))
    old = dict(zip(config.elements, config.reference_energies, strict=True))
    return replace(config, reference_energies=tuple(fitted.get(z, old[z]) for z in config.elements))


def _run(config: RunConfig, data_files: list[Path], folder: Path, resources: Resources) -> Path:
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import EarlyStopping, RichProgressBar

    from egnn_md.training.module import PotentialModule
    from egnn_md.training.run_folder import CsvLog, KeepBest, Resumable

    settings = config.training
    splits = load_splits(config.data, data_files)
    model = build_model(config, splits.train)
    module = PotentialModule(model, settings)
    information = describe(config, splits)

    def save_best(progress: dict[str, float]) -> None:
        save(module.averaged_model, folder / "best.safetensors", information | {"training": progress})

    callbacks: list[Any] = [
        KeepBest(save_best),
        CsvLog(folder, every=max(1, min(100, settings.validate_every))),
        Resumable(folder, settings.checkpoint_every),
    ]
    if settings.patience is not None:
        callbacks.append(EarlyStopping("valid_score", patience=settings.patience))
    if resources.progress:
        callbacks.append(RichProgressBar(refresh_rate=10))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        trainer = pl.Trainer(
            accelerator=resources.accelerator,
            devices=int(os.environ.get("LOCAL_WORLD_SIZE", resources.devices)),
            num_nodes=resources.nodes,
            max_steps=settings.max_steps,
            gradient_clip_val=settings.clip_norm,
            val_check_interval=min(settings.validate_every, settings.max_steps),
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
        loaders = make_loaders(config, splits, model, trainer)
        last = folder / "last.ckpt"
        trainer.fit(module, *loaders, ckpt_path=str(last) if last.exists() else None, weights_only=True)
    if not trainer.is_global_zero:
        return folder / "model.safetensors"
    from egnn_md.training.report import finish

    return finish(folder, splits)


def make_loaders(config: RunConfig, splits: Splits, model: Potential, trainer: Any) -> tuple[Any, Any]:
    """Loaders of the training steps and of the validation structures, for this process."""
    settings, cutoff, dtype = config.training, model.config.cutoff, model.dtype
    rank, world = trainer.global_rank, trainer.world_size
    if settings.batch_size < world:
        raise ConfigError(f"batch_size {settings.batch_size} is smaller than the number of processes, {world}")
    steps = StepBatch(FrameBatches(splits.train, EdgeTable.build(splits.train, cutoff), dtype), rank, world)
    sampler = StepSampler(
        len(splits.train), settings.batch_size, settings.max_steps, config.seed, lambda: trainer.global_step
    )
    mine = splits.valid.select(np.arange(rank, len(splits.valid), world))
    valid = FrameBatches(mine, EdgeTable.build(mine, cutoff), dtype)
    blocks: Any = BatchSampler(SequentialSampler(range(len(mine))), VALIDATION_BATCH, drop_last=False)
    return (
        DataLoader(steps, sampler=cast(Any, sampler), batch_size=None),
        DataLoader(valid, sampler=blocks, batch_size=None),
    )


def describe(config: RunConfig, splits: Splits) -> dict[str, Any]:
    """What a checkpoint says of its training."""
    return {
        "name": config.name,
        "description": config.description,
        "licence": config.licence,
        "split": {"valid": config.data.valid_fraction, "test": config.data.test_fraction},
        "training_data": {
            "files": list(splits.train.sources),
            "n_structures": len(splits.train),
            "n_groups": len(np.unique(splits.train.group)),
        },
        "training_config": config.model_dump(exclude={"output"}),
        "init_from": None if config.init_from is None else read_header(config.init_from).get("name", config.init_from),
    }
