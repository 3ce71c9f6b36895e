"""Where images go: one picture of all (.png), an animation (.gif), arrays (.npz), or a folder of one PNG an image."""

from __future__ import annotations

import itertools
import pathlib
import re
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from absl import logging

from archirf_jax.files import atomic_write
from archirf_jax.visuals import pictures

NAMES = ("images", "labels")  # of the arrays
GUIDED_DIFFUSION = ("arr_0", "arr_1")  # those that the evaluator of openai/guided-diffusion reads
NONE = "none"  # what the label of no class is called
LONGEST = 60  # characters of a label in the name of a file
DIGITS = 6
REPORT_SECONDS = 10


def write(
    pixels: np.ndarray,
    labels: Sequence[int],
    out: pathlib.Path,
    names: tuple[str, str] = NAMES,
    classes: Sequence[str] = (),
    prompts: bool = False,
) -> None:
    """Save a sheet in the format that the name of the file says; a .gif shows states, or else columns.

    Args:
        pixels: (rows, columns, H, W, C) uint8, with states (states, rows, columns, H, W, C).
        labels: of each row.
        out: ends in .png, .gif or .npz.
        names: of images (N, H, W, C) and labels (N,) int32 in an .npz, row after row.
        classes: the name of each label; an .npz keeps them as `class_names`, and a picture has those of its rows.
        prompts: they are the texts of the rows; an .npz has that of each image as `prompts`.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".npz":
        each = np.repeat(np.asarray(labels, np.int32), pixels.shape[1])
        arrays: dict[str, Any] = dict(zip(names, (pixels.reshape(-1, *pixels.shape[2:]), each), strict=True))
        if prompts:
            arrays["prompts"] = np.repeat(np.asarray(classes), pixels.shape[1])
        elif classes and names == NAMES:
            arrays["class_names"] = np.asarray(classes)
        atomic_write(out, lambda file: np.savez(file, **arrays))
    elif out.suffix == ".gif":
        frames = pixels if pixels.ndim == 6 else pixels.swapaxes(0, 1)[:, :, None]
        pictures.save_gif([pictures.grid(frame, named_rows(classes, labels)) for frame in frames], out)
    else:
        pictures.save_png(pictures.grid(pixels, named_rows(classes, labels)), out)


def write_each(batches: Iterable[np.ndarray], texts: Sequence[str], folder: pathlib.Path) -> None:
    """Save each image as NUMBER_TEXT.png as it comes; names sort in the order of the images, from 000001 on.

    Args:
        batches: images (n, H, W, C) uint8.
        texts: what to call each, such as the name of its class.
        folder: is there.
    """
    digits, reported = max(DIGITS, len(str(len(texts)))), time.monotonic()
    images = itertools.chain.from_iterable(batches)
    for number, (image, text) in enumerate(zip(images, texts, strict=True), 1):
        pictures.save_png(image, folder / f"{number:0{digits}}_{file_name(text)}.png")
        if time.monotonic() - reported > REPORT_SECONDS:
            reported = time.monotonic()
            logging.info("image %s of %s", f"{number:,}", f"{len(texts):,}")


def file_name(text: str) -> str:
    """A text as a part of the name of a file: letters, digits and . - _ alone, and not too long."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.")[:LONGEST] or "unnamed"


def named_rows(names: Sequence[str], labels: Iterable[int]) -> list[str]:
    """The names of these labels; none where they say no more than the numbers."""
    texts = texts_of(labels, 1, names)
    return texts if any(text not in (str(number), NONE) for number, text in enumerate(names)) else []


def texts_of(labels: Iterable[int], columns: int, names: Sequence[str]) -> list[str]:
    """The name of the class of each image, row after row; its number where it has none."""
    return [names[label] if label < len(names) else str(label) for label in labels for _ in range(columns)]
