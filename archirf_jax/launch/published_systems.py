"""Published systems of latent diffusion: a folder of parts as one run directory with frozen runs in it, and back."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from absl import logging

from archirf_jax.data import clip_vocabulary, tokenizer
from archirf_jax.data.tokenizer import Tokenizer
from archirf_jax.errors import UserError
from archirf_jax.files import check_output_folder
from archirf_jax.interop import files, part_settings, published_folder, system_groups
from archirf_jax.launch import run_directory
from archirf_jax.launch.defaults import DEFAULTS
from archirf_jax.launch.run_directory import Contents
from archirf_jax.launch.runs import Run
from archirf_jax.tasks.published import export, load

FOLDER = "pipeline"  # of a run directory: the small files of the pipeline that it came from
MODEL = "model"  # what is not frozen
# The flags that may be given, by the part that they are about; config.json says everything else.
FLAGS = {
    "vae": ("scaling_factor", "shift_factor"),
    "clip-text": ("activation", "end_id", "pad_id"),
    "unet": ("num_heads", "num_head_channels", "size_width", "prediction"),
    "transformer": ("num_heads",),
}
Hints = Mapping[str, Any]


def taken(source: str) -> set[str]:
    """The hints that a system of this kind takes."""
    kinds = [published_folder.KINDS[part] for part in published_folder.PARTS[source].values()]
    return {"image_size"}.union(*(FLAGS.get(kind, ()) for kind in (*kinds, published_folder.network(source))))


def write(source: str, folder: pathlib.Path, workdir: pathlib.Path, given: Hints) -> None:
    """Make a run directory of a pipeline's folder; weights keep the types that they have there.

    Args:
        source: kind of the system, a key of `published_folder.PARTS`.
        folder: of the pipeline.
        workdir: made whole or not at all.
        given: hints by name, which win over the settings in the folder; image_size is that of the images.

    Raises:
        UserError: a part is missing or damaged, is of another kind, or does not fit the others.
    """
    published_folder.check_complete(folder, source)
    parts = published_folder.parts(folder, source)
    frozen = {run: _part(folder / name, given) for run, name in parts.items()}
    config, params = _network(source, folder, given, {name: part.config for name, part in frozen.items()})
    config["frozen"] = {run: str(folder / name) for run, name in parts.items()}
    config["imported"]["system"] = _places(source, folder)
    for name in published_folder.PARTS[source].keys() - parts.keys():
        what = "the folder has no %s, whose tokens are zeros instead"
        logging.info(what, published_folder.PARTS[source][name])
    if absent := _left_out(folder):
        logging.info("not imported: %s", ", ".join(absent))
    kept = {f"{FOLDER}/{name}": content for name, content in published_folder.small_files(folder).items()}
    run_directory.write(workdir, config, params, step=0, attached=kept, frozen=frozen)


def is_system(run: Run) -> bool:
    """Whether a run came from a pipeline's folder."""
    return "system" in run.config.get("imported", {})


def write_back(run: Run, out: pathlib.Path) -> int:
    """Write a run that came from a pipeline's folder as such a folder again; returns the number of tensors.

    Args:
        run: made by `write`.
        out: a new or empty folder; whole or not at all.

    Raises:
        UserError: the folder holds something, or cannot be written.
    """
    check_output_folder(out, "out")
    part, total = out.with_name(f".{out.name}.part"), 0
    try:
        shutil.rmtree(part, ignore_errors=True)  # left by a process that was killed
        shutil.copytree(run.directory / FOLDER, part)
        for name, place in run.config.imported.system.items():
            one = run if name == MODEL else run.runs[name]
            state = export(one.config, one.task, one.params)
            files.write(state, part / place)
            total += len(state)
        _forget_absent(part)
        part.replace(out)
    except OSError as e:
        raise UserError("out", str(out), f"cannot be written: {e.strerror or e}") from e
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return total


def _part(folder: pathlib.Path, given: Hints) -> Contents:
    """A frozen run of a part's folder."""
    kind = published_folder.KINDS[folder.name]
    with _inside(folder):
        config, params = _loaded(kind, folder, _own(given, kind))
    attached: dict[str, bytes] = {}
    if "tokenizer" in config:
        beside = folder.with_name(published_folder.TOKENIZERS[folder.name])
        found = tokenizer_of(beside, config["tokenizer"], _own(given, kind).get("pad_id"))
        config["tokenizer"] = tokenizer.described(found, config["model"]["vocab_size"])
        attached[tokenizer.FILE] = found.content.encode()
    return Contents(DEFAULTS | config, params, attached)


def _network(source: str, folder: pathlib.Path, given: Hints, frozen: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """(configuration, parameters) of the network that draws, which takes what the frozen runs make."""
    network = folder / published_folder.network(source)
    with _inside(network):
        config, params = _loaded(source, network, _own(given, network.name))
    schedulers = {
        name: published_folder.settings(folder / name / published_folder.SCHEDULER_SETTINGS)
        for name in (published_folder.SCHEDULER, published_folder.LOW_RES_SCHEDULER)
    }
    index = published_folder.settings(folder / published_folder.INDEX)
    groups = system_groups.describe(source, config, frozen, schedulers, index, given)
    return DEFAULTS | config | groups, params


def _loaded(kind: str, folder: pathlib.Path, given: Hints) -> tuple[dict[str, Any], Any]:
    settings = part_settings.beside(kind, folder)
    known = part_settings.hints(kind, settings) | dict(given)
    config, params = load(kind, dict(files.read(published_folder.weights(folder))), known)
    part_settings.check_said(kind, settings, config["model"])
    return config, params


def _own(given: Hints, part: str) -> dict[str, Any]:
    return {name: given[name] for name in FLAGS.get(part, ()) if name in given}


def tokenizer_of(folder: pathlib.Path, group: Mapping[str, Any], pad_id: int | None = None) -> Tokenizer:
    """CLIP's tokenizer of a folder, from tokenizer.json or from the two files that it was published as.

    Args:
        folder: that holds them.
        group: length and pad_id, as of `Tokenizer`.
        pad_id: wins over what the folder says.

    Raises:
        UserError: there are no such files, or they are damaged.
    """
    if (folder / tokenizer.FILE).is_file() or not (folder / clip_vocabulary.VOCABULARY).is_file():
        found = tokenizer.read(folder / tokenizer.FILE, **group)
    else:
        found = Tokenizer(clip_vocabulary.content(folder), **group, place=str(folder))
    token = published_folder.padding(folder)
    known = pad_id if pad_id is not None or token is None else found.id_of(token)
    return found if known is None else dataclasses.replace(found, pad_id=known)


def _places(source: str, folder: pathlib.Path) -> dict[str, str]:
    """Run -> where its weights lie in the folder, each in one file."""
    parts = {MODEL: published_folder.network(source)} | published_folder.parts(folder, source)
    names = {run: published_folder.weights(folder / part).name for run, part in parts.items()}
    return {run: f"{part}/{published_folder.single(names[run])}" for run, part in parts.items()}


def _left_out(folder: pathlib.Path) -> list[str]:
    """Parts with weights that no system of ours has, such as a filter of images."""
    index = published_folder.settings(folder / published_folder.INDEX)
    known = {published_folder.UNET, published_folder.TRANSFORMER, *published_folder.KINDS}
    weights = ("*.safetensors", "*.bin")
    return [name for name in index if name not in known and any(any((folder / name).glob(each)) for each in weights)]


def _forget_absent(folder: pathlib.Path) -> None:
    """Let the index of a folder name no part whose weights are not there, so that it can be opened."""
    path = folder / published_folder.INDEX
    index = published_folder.settings(path)
    lost = set(_left_out_of_index(folder, index))
    if lost:
        text = json.dumps({name: [None, None] if name in lost else value for name, value in index.items()}, indent=2)
        path.write_text(f"{text}\n")
        for name in lost:
            shutil.rmtree(folder / name, ignore_errors=True)


def _left_out_of_index(folder: pathlib.Path, index: Mapping[str, Any]) -> Iterator[str]:
    without = ("scheduler", "tokenizer", "feature_extractor")  # parts that are settings alone
    for name, value in index.items():
        is_part = isinstance(value, list) and len(value) == 2 and value != [None, None]
        if is_part and not any(word in name for word in without) and not any((folder / name).glob("*.safetensors")):
            yield name


@contextlib.contextmanager
def _inside(folder: pathlib.Path) -> Iterator[None]:
    """Let errors about tensors name the folder of the part."""
    try:
        yield
    except UserError as e:
        raise UserError(e.field or "checkpoint", e.value, f"{e.message} ({folder.name})") from e
