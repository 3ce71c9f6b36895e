"""python -m archirf_jax.prepare_data --name=cifar10 --dir=data

Download and write a TFDS data set in array_record, once, so that training reads it without TensorFlow.

    python -m archirf_jax.prepare_data --name=cifar10 --class_embeddings=cifar10.npz --features=runs/classifier

also averages the features of a network over the images of each class, for --config.model.context=class_table. The
network is that of a classifier's run, or features(images) of a Python file: images (B, H, W, C) float32 in [-1, 1] ->
(B, tokens, dim) or (B, h, w, dim).

    python -m archirf_jax.prepare_data --name=openmoji --autoencoder=runs/ae --out=data/latents

encodes every image once; --config.data.name=latents:data/latents trains on that.

    python -m archirf_jax.prepare_data --name=scenes --text_encoder=runs/minilm --out=data/texts_scenes

encodes every caption once, for a field text_states. With --autoencoder as well, the texts are in the folder texts of
--out.
"""

from __future__ import annotations

import pathlib
import re
import types
from typing import TYPE_CHECKING, Any

from archirf_jax.errors import UserError
from archirf_jax.launch.cli import Command
from archirf_jax.launch.flags import Flag
from archirf_jax.launch.run_flags import VALUE_RANGE, value_range

if TYPE_CHECKING:
    from archirf_jax.data.class_embeddings import Features

OPTIONS = (
    Flag("image_size", "side of the images for a Python file", int, low=1, high=16_384, field="data.image_size"),
    Flag("channels", "channels of the images for a Python file: 1 or 3; default 3", int, field="data.channels"),
    Flag("batch_size", "images at a time", int, 128, low=1),
    Flag("split", "split whose images are averaged, or a part such as train[:80%]", str, "train", field="data.split"),
    Flag("label_key", "feature that holds the class", str, "label", field="data.label_key"),
    Flag("skip_unreadable", "leave unreadable images of a folder out", bool, False, field="data.skip_unreadable"),
    VALUE_RANGE,
)
CONDITIONER = "conditioners.text"
TEXTS = (
    Flag("text_feature", "name of the captions in the set", str, "caption", field="data.fields"),
    Flag("text_length", "tokens of each caption; default: the longest's", int, low=1, field=f"{CONDITIONER}.length"),
    Flag("text_tokens", "which array of the encoder the tokens are", str, "tokens", field=f"{CONDITIONER}.tokens"),
    Flag("text_pooled", "which array of the encoder is a pooled vector; default: none", field=f"{CONDITIONER}.pooled"),
    Flag("text_masked", "whether padding is hidden from the encoder", bool, True, field=f"{CONDITIONER}.masked"),
)
COMMAND = Command(
    __doc__,
    Flag(
        *("name", "TFDS name, such as digits, cifar10 or imagenet_resized/64x64"),
        required=True,
        example="digits",
        field="data.name",
    ),
    Flag("dir", "folder for prepared data sets", pathlib.Path, "data", field="data.dir"),
    Flag("class_embeddings", ".npz file to write: mean features of each class", pathlib.Path),
    Flag("autoencoder", "run of an autoencoder, which encodes every image into --out", pathlib.Path),
    Flag("text_encoder", "run of a text encoder, which encodes every caption into --out", pathlib.Path),
    Flag("out", "folder of the latents, or of the texts, by default texts_NAME in --dir", pathlib.Path),
    Flag("flip", "encode the mirrored images as well, for --config.data.flip", bool, False),
    Flag("features", "run of a classifier, or a Python file that defines features(images)", pathlib.Path),
    *OPTIONS,
    *TEXTS,
    device=False,
)


def embed_classes(name: str, directory: str, network: pathlib.Path, out: pathlib.Path, **options: Any) -> None:
    """Write the mean features of each class of a set, which is prepared first if it is not.

    Args:
        name: TFDS name, or folder:PATH.
        directory: where prepared sets lie.
        network: run directory of a classifier, or a Python file.
        out: .npz file.
        options: those of OPTIONS.

    Raises:
        UserError: no such set, network or file, or they do not fit.
    """
    from absl import logging

    from archirf_jax import data
    from archirf_jax.data import class_embeddings
    from archirf_jax.files import check_output

    check_output(out, "class_embeddings", ".npz")
    compute, images = _network(network, options)
    known = images.pop("num_classes", None)
    reading = {key: options[key] for key in ("split", "label_key", "skip_unreadable")}
    if options["value_range"] is not None:
        images["value_range"] = value_range(options["value_range"])
    dataset = data.load(name, dir=directory, **reading, **images)
    if known not in (None, dataset.num_classes):
        what = f"is a classifier of {known} classes, but {name!r} has {dataset.num_classes}"
        raise UserError("features", str(network), what)
    logging.info("features of %d images, %d at a time", len(dataset), options["batch_size"])
    batches = class_embeddings.parts(dataset, options["batch_size"])
    table = class_embeddings.class_means(dataset, batches, compute)
    class_embeddings.write(table, out)
    logging.info("(classes, tokens, dim) = %s in %s", table.shape, out)
    logging.info(
        "next: train configs/mmdit_rf.py on it with --config.model.context=class_table "
        "--config.model.class_embeddings=%s --config.model.class_tokens=None",
        out,
    )


def _network(path: pathlib.Path, options: dict[str, Any]) -> tuple[Features, dict[str, Any]]:
    """(features, what images they take: image_size, channels and, where it is known, num_classes)."""
    from archirf_jax.launch import features

    if path.is_dir():
        return _of_run(path, options)
    if path.suffix != ".py" or not path.is_file():
        raise UserError("features", str(path), "is neither the run of a classifier nor a Python file")
    if options["image_size"] is None:
        what = "is missing; a Python file does not say the size of the images that it takes"
        raise UserError("data.image_size", message=what)
    return features.of_file(path), {"image_size": options["image_size"], "channels": options["channels"] or 3}


def _of_run(workdir: pathlib.Path, options: dict[str, Any]) -> tuple[Features, dict[str, Any]]:
    import jax
    from absl import logging

    from archirf_jax.launch import features

    run = features.of_run(workdir)
    images = {name: run.config.data[name] for name in ("image_size", "channels", "num_classes")}
    images["value_range"] = run.config.data.get("value_range")
    for name in ("image_size", "channels"):
        if options[name] not in (None, images[name]):
            raise UserError(f"data.{name}", options[name], f"is not the {images[name]} that {str(workdir)!r} takes")
    logging.info("features of the classifier in %s at step %d", workdir, run.step)
    task: Any = run.task
    compute = jax.jit(task.features)
    return lambda x: compute(run.params, x), images


def encode_images(args: types.SimpleNamespace) -> None:
    """Make the latent cache of --out."""
    import ml_collections
    from absl import logging

    from archirf_jax.data.library import SETTINGS
    from archirf_jax.data.preparation import prepare
    from archirf_jax.data.sources import FOLDER
    from archirf_jax.launch import latents

    if args.out is None:
        raise UserError("out", message="is missing: the folder of the latents")
    run = latents.autoencoder(args.autoencoder, "autoencoder")
    if not args.name.startswith(FOLDER):
        prepare(args.name, str(args.dir))
    images = {name: run.config.data[name] for name in latents.SAME}
    for name, known in images.items():
        if (asked := getattr(args, name)) is not None:
            if name == "channels" and asked != known:
                raise UserError(f"data.{name}", asked, f"is not the {known} that the autoencoder takes")
            images[name] = asked
    given = {name: getattr(args, name) for name in ("name", "split", "label_key", "skip_unreadable")}
    levels = run.config.data.get("value_range") if args.value_range is None else value_range(args.value_range)
    given |= {"dir": str(args.dir), "value_range": levels}
    data = ml_collections.ConfigDict(SETTINGS | given | images)
    latents.make_cache(run, data, args.out, args.flip, args.batch_size)
    logging.info(
        "next: train with --config.data.name=latents:%s --config.frozen.autoencoder=%s", args.out, run.directory
    )


def encode_texts(args: types.SimpleNamespace) -> None:
    """Make the text cache of --out; beside latents, of the folder texts in it."""
    from absl import logging

    from archirf_jax.data.fields import LATENTS
    from archirf_jax.data.preparation import prepare
    from archirf_jax.data.sources import FOLDER, open_source
    from archirf_jax.launch import text_caches

    run = text_caches.encoder(args.text_encoder, "text_encoder")
    if not args.name.startswith((FOLDER, LATENTS)):
        prepare(args.name, str(args.dir))
    source = open_source(args.name, directory=str(args.dir), split=args.split, label_key=None)
    out = args.dir / f"texts_{re.sub('[^A-Za-z0-9]+', '_', args.name)}" if args.out is None else args.out
    out = out if args.autoencoder is None else out / "texts"
    fields = {name: getattr(args, f"text_{name}") for name in text_caches.DEFAULTS}
    text_caches.make_cache(run, source, out, args.batch_size, args.text_feature, **fields)
    what = "next: train with --config.data.fields.text.name=text_states --config.data.fields.text.cache=%s "
    what += "--config.conditioners.text.name=text --config.frozen.text=%s"
    logging.info(what, out, run.directory)


def main(args: types.SimpleNamespace) -> None:
    """Prepare a set, encode its images or its captions, or average features over its classes."""
    from archirf_jax.data.preparation import prepare

    _check_belonging(args)
    if args.autoencoder is not None:
        encode_images(args)
    if args.text_encoder is not None:
        encode_texts(args)
    if args.autoencoder is not None or args.text_encoder is not None:
        return
    if args.class_embeddings is None:
        return prepare(args.name, str(args.dir))
    if args.features is None:
        what = "is missing; give the run of a classifier or a Python file with features(images)"
        raise UserError("features", message=what)
    options = {option.name: getattr(args, option.name) for option in OPTIONS}
    embed_classes(args.name, str(args.dir), args.features, args.class_embeddings, **options)


def _check_belonging(args: types.SimpleNamespace) -> None:
    """Raise a UserError if a flag is given without the one that it belongs to."""
    belonging: dict[str, tuple[str, ...]] = {flag.name: ("class_embeddings", "autoencoder") for flag in OPTIONS}
    belonging |= {flag.name: ("text_encoder",) for flag in TEXTS}
    belonging |= {"features": ("class_embeddings",), "flip": ("autoencoder",), "out": ("autoencoder", "text_encoder")}
    belonging |= {name: (*belonging[name], "text_encoder") for name in ("split", "batch_size")}
    for flag, others in belonging.items():
        if flag in args.given and all(getattr(args, other) is None for other in others):
            allowed = " or ".join(f"--{other}" for other in others)
            raise UserError(f"--{flag}: belongs to {allowed}; add {'that' if len(others) == 1 else 'one of them'}")
    for other in ("autoencoder", "text_encoder"):
        if args.class_embeddings is not None and getattr(args, other) is not None:
            raise UserError(f"--{other}: and --class_embeddings are two things; give them one after the other")


if __name__ == "__main__":
    COMMAND.run(main)
