"""python -m archirf_jax.prepare_data --name=cifar10 --dir=data

Download and write a TFDS data set in array_record, once, so that training reads it without TensorFlow.

    python -m archirf_jax.prepare_data --name=cifar10 --class_embeddings=cifar10.npz --features=runs/classifier

also averages the features of a network over the images of each class, for --config.model.context=class_table. The
network is that of a classifier's run, or features(images) of a Python file: images (B, H, W, C) float32 in [-1, 1] ->
(B, tokens, dim) or (B, h, w, dim).
"""

from __future__ import annotations

import pathlib
import types
from typing import Any

from absl import flags, logging

from archirf_jax.data import class_embeddings
from archirf_jax.data.pipeline import Dataset, load
from archirf_jax.data.preparation import prepare
from archirf_jax.errors import UserError
from archirf_jax.launch import cli, features

NAME = flags.DEFINE_string("name", None, "TFDS name, such as digits, cifar10 or imagenet_resized/64x64", required=True)
DIR = flags.DEFINE_string("dir", "data", "folder for prepared data sets")
OUT = flags.DEFINE_string("class_embeddings", None, ".npz file to write: mean features of each class")
FEATURES = flags.DEFINE_string("features", None, "run of a classifier, or a Python file that defines features(images)")
OPTIONS = {
    "image_size": flags.DEFINE_integer("image_size", None, "side of the images for a Python file", lower_bound=1),
    "channels": flags.DEFINE_integer("channels", None, "of the images for a Python file: 1 or 3; default 3"),
    "batch_size": flags.DEFINE_integer("batch_size", 128, "images at a time", lower_bound=1),
    "split": flags.DEFINE_string("split", "train", "split whose images are averaged, or a part such as train[:80%]"),
    "label_key": flags.DEFINE_string("label_key", "label", "feature that holds the class"),
    "skip_unreadable": flags.DEFINE_bool("skip_unreadable", False, "leave unreadable images of a folder out"),
}
RESIDENT_MIB = 2048  # sets whose images take more are decoded batch by batch


def embed_classes(name: str, directory: str, network: str, out: pathlib.Path, **options: Any) -> None:
    """Write the mean features of each class of a set, which is prepared first if it is not.

    Args:
        name: TFDS name, or folder:PATH.
        directory: where prepared sets lie.
        network: run directory of a classifier, or a Python file.
        out: .npz file.
        options: those of `OPTIONS`.

    Raises:
        UserError: no such set, network or file, or they do not fit.
    """
    _claim(out)
    try:
        compute, images = _network(pathlib.Path(network).expanduser(), options)
        if not name.startswith("folder:"):
            prepare(name, directory)
        dataset = _open(types.SimpleNamespace(name=name, dir=directory, resident_mib=RESIDENT_MIB, **options | images))
        _check_classes(dataset, name, images.get("num_classes"))
        size = options["batch_size"]
        logging.info("features of %d images, %d at a time", len(dataset.readable), size)
        batches = class_embeddings.parts(dataset, images["image_size"], images["channels"], size)
        table = class_embeddings.class_means(dataset, batches, compute)
        class_embeddings.write(table, out)
    finally:
        _part(out).unlink(missing_ok=True)
    logging.info("(classes, tokens, dim) = %s in %s", table.shape, out)
    logging.info(
        "next: train configs/mmdit_rf.py on it with --config.model.context=class_table "
        "--config.model.class_embeddings=%s --config.model.class_tokens=0",
        out,
    )


def _part(out: pathlib.Path) -> pathlib.Path:
    return out.with_name(f"{out.name}.part")


def _claim(out: pathlib.Path) -> None:
    """Raise a UserError before the work begins if the file cannot be written after it."""
    if out.suffix != ".npz":
        raise UserError(f"--class_embeddings: {str(out)!r} must end in .npz")
    try:
        if out.is_dir():
            raise IsADirectoryError("it is a directory")
        out.parent.mkdir(parents=True, exist_ok=True)
        _part(out).touch()
    except OSError as e:
        raise UserError(f"--class_embeddings: {str(out)!r} cannot be written: {e.strerror or e}") from e


def _network(path: pathlib.Path, options: dict[str, Any]) -> tuple[class_embeddings.Features, dict[str, Any]]:
    """(features, what images they take: image_size, channels and, where it is known, num_classes)."""
    if path.is_dir():
        return _of_run(path, options)
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"--features: {str(path)!r} is neither the run of a classifier nor a Python file")
    if options["image_size"] is None:
        raise UserError("--image_size: is missing; a Python file does not say the size of the images that it takes")
    return features.of_file(path), {"image_size": options["image_size"], "channels": options["channels"] or 3}


def _of_run(workdir: pathlib.Path, options: dict[str, Any]) -> tuple[class_embeddings.Features, dict[str, Any]]:
    import jax

    task, step, params, config = features.of_run(workdir)
    images = {name: config.data[name] for name in ("image_size", "channels", "num_classes")}
    for name in ("image_size", "channels"):
        if options[name] not in (None, images[name]):
            raise UserError(f"--{name}: {options[name]}, but {str(workdir)!r} takes {images[name]}; leave it out")
    logging.info("features of the classifier in %s at step %d", workdir, step)
    compute = jax.jit(task.features)
    return lambda x: compute(params, x), images


def _open(data: Any) -> Dataset:
    try:
        return load(data)
    except UserError as e:  # here the fields of config.data are flags
        raise UserError(str(e).replace("--config.data.", "--").replace("config.data.", "--")) from e


def _check_classes(dataset: Dataset, name: str, expected: int | None) -> None:
    found = len(dataset.source.class_names)
    if expected not in (None, found):
        raise UserError(f"--features: a classifier of {expected} classes, but {name!r} has {found}")


def main(argv: list[str]) -> None:
    """Flags only."""
    del argv
    options = {option: flag.value for option, flag in OPTIONS.items()}
    if OUT.value is None:
        given = [name for name, flag in {"features": FEATURES, **OPTIONS}.items() if flag.present]
        if given:
            raise UserError(f"--{given[0]}: belongs to --class_embeddings, the file to write; add that")
        return prepare(NAME.value, DIR.value)
    if FEATURES.value is None:
        raise UserError("--features: is missing; give the run of a classifier or a Python file with features(images)")
    embed_classes(NAME.value, DIR.value, FEATURES.value, pathlib.Path(OUT.value).expanduser(), **options)


if __name__ == "__main__":
    cli.run(main)
