"""python -m archirf_jax.sample --workdir=runs/dit_rf --labels=0-9 --per_class=8 --out=samples.png

Draw images from a run's averaged weights: a grid (.png), an animation (.gif), arrays (.npz), or one PNG an image in a
new folder (a name that ends in /). With --to_seed, --image, --image_to and --mask: between two noises or two images,
starting from an image, or filling a hole of one.
"""

from __future__ import annotations

import pathlib
import types
from typing import Any

from archirf_jax.errors import UserError
from archirf_jax.files import check_output, check_output_folder, expand
from archirf_jax.launch.cli import Command
from archirf_jax.launch.flags import Flag, Texts
from archirf_jax.launch.run_flags import RUN, SAMPLING, guides_of, how, opened, refiner_of, size

COMMAND = Command(
    __doc__,
    *RUN,
    *SAMPLING,
    Flag("labels", "classes to draw, such as 0-9, 0,3,7-8 or cat,dog; default: all, at most ten"),
    Flag("prompt", "text to draw, of a network that takes text; may be given several times", Texts),
    Flag("prompts", "file of them, one a line, or JSON: prompt, guidance_scale, seed", pathlib.Path),
    Flag("negative_prompt", "text that guidance leads away from"),
    Flag("per_prompt", "images a prompt; default: --per_class", int, low=1, high=1_000_000),
    Flag("per_class", "images a class", int, 8, low=1, high=1_000_000),
    Flag("out", "file to write: .png, .gif or .npz; or, ending in /, a folder of one PNG an image", str, "samples.png"),
    Flag("arr_0", "name the arrays of an .npz arr_0 and arr_1, for guided-diffusion's evaluator", bool, False),
    Flag("latents", "write what is diffused, float32, and not the images that it is decoded to; .npz", bool, False),
    Flag("size", "height and width of the images, such as 512x768, where the network knows others than its own"),
    Flag("original_size", "condition `size`: height and width before resizing, such as 768x1024; default: as drawn"),
    Flag("crop_top_left", "condition `size`: top and left of the cut, such as 0,128; default: 0,0"),
    Flag("target_size", "condition `size`: height and width of the cut, such as 768x1024; default: as drawn"),
    Flag("refiner", "run that draws the last part of each image, of the same latents or pixels", pathlib.Path),
    Flag("handover", "time from which the refiner draws, above 0 and below 1; default: 0.2", float),
    Flag("refine", "how the refiner samples where it differs, such as --refine.guidance_scale=3", dict),
    Flag("stride", "a .gif of fresh images shows every so many steps", int, low=1),
    Flag("to_seed", "go from the noise of --seed to that of this one", int, low=0, high=2**31 - 1),
    Flag("image", "start from this image: a file, or the number of a training image"),
    Flag("image_to", "go from --image to this image"),
    Flag("mask", "fill the white part of this image, or left, right, top, bottom of --image"),
)
FORMATS = (".png", ".gif", ".npz")
FOLDER = "/"
BLOCK = 4096  # bytes that a small file takes on a disk
HALVES = ("left", "right", "top", "bottom")
MOST = 10_000  # classes of a range
STRENGTH = 0.6  # where --image is given without one


def parse_labels(text: str | None, names: list[str]) -> list[int] | None:
    """ "0-2,7" -> [0, 1, 2, 7]; names of classes are taken too.

    Raises:
        UserError: not such a list, or a class that is named twice: both rows would show the same images.
    """
    if text is None:
        return None
    labels: list[int] = []
    for part in text.split(","):
        if part in names and not part.isdecimal():
            labels.append(names.index(part))
            continue
        first, dash, last = part.partition("-")
        numbers = [first, last] if dash else [first, first]
        if not all(number.isdecimal() and len(number) < 9 for number in numbers) or int(numbers[1]) < int(first):
            raise UserError("labels", text, "is not a list such as 0-9, 0,3,7-8 or names of classes")
        named = range(int(first), int(numbers[1]) + 1)
        if len(named) > MOST:
            raise UserError("labels", text, f"names more than {MOST:_} classes; draw fewer at a time")
        labels += named
    if len(set(labels)) < len(labels):
        raise UserError("labels", text, "names a class twice; --per_class draws more images of each")
    return labels


def place(text: str) -> tuple[pathlib.Path, str]:
    """What --out means: a path, and one of FORMATS or FOLDER.

    Raises:
        UserError: another ending, or no path.
    """
    path = expand(text, "out")
    kind = FOLDER if text.endswith(FOLDER) or path.is_dir() else path.suffix
    if kind not in (*FORMATS, FOLDER):
        raise UserError("out", text, f"must end in one of {', '.join(FORMATS)}, or in / for a folder of PNGs")
    return path, kind


def check(args: types.SimpleNamespace, kind: str) -> None:
    """Raise a UserError for flags that do not go together."""
    if args.prompt and args.prompts is not None:
        raise UserError("--prompt and --prompts: give one at a time")
    if args.per_prompt is not None and not args.prompt and args.prompts is None:
        raise UserError("--per_prompt belongs to --prompt and --prompts; --per_class is for labels")
    if args.image_to is not None and (args.prompt or args.prompts):
        raise UserError("--image_to has no prompts; leave them out")
    image, edited = args.image is not None, args.image is not None or args.to_seed is not None
    if args.arr_0 and (kind != ".npz" or image):
        raise UserError("arr_0", message="belongs to an --out that ends in .npz, without --image")
    if args.latents and (kind != ".npz" or args.arr_0 or edited):
        what = "belongs to an --out that ends in .npz, without --arr_0, --image and --to_seed"
        raise UserError("latents", message=what)
    if not image and (args.strength, args.mask, args.image_to) != (None, None, None):
        raise UserError("image", message="is missing, and --strength, --mask and --image_to need an image")
    if sum(value is not None for value in (args.strength, args.mask, args.image_to, args.to_seed)) > 1:
        raise UserError("--strength, --mask, --image_to and --to_seed: give one at a time")
    if image and args.to_seed is not None:
        raise UserError("--image and --to_seed: give one at a time")
    if args.image_to is not None and args.labels is not None:
        raise UserError("labels", args.labels, "does not go with --image_to, which has no labels; leave it out")
    _check_refiner(args, kind)
    if args.stride is not None and (edited or kind != ".gif"):
        raise UserError("stride", args.stride, "belongs to an --out that ends in .gif, without --image and --to_seed")


def _check_refiner(args: types.SimpleNamespace, kind: str) -> None:
    if args.refiner is None:
        for name, value in (("handover", args.handover), ("refine", args.refine or None)):
            if value is not None:
                raise UserError(f"--{name} needs a run that goes on; name it by --refiner")
    elif args.mask is not None or args.image_to is not None or (kind == ".gif" and args.to_seed is None):
        what = "does not go with --mask, --image_to and a .gif of fresh images; leave it out"
        raise UserError("refiner", str(args.refiner), what)


def main(args: types.SimpleNamespace) -> None:
    """Open the run, draw, write."""
    from absl import logging

    from archirf_jax.launch import outputs, sampling, sheets

    out, kind = place(args.out)
    check(args, kind)
    changes: dict[str, Any] = how(args)
    if args.image is not None and (args.mask, args.image_to) == (None, None):
        changes = {"strength": STRENGTH} | changes
    run = opened(args)
    if args.image is not None and args.size is None and hasattr(run.task, "reconstruct"):
        return reconstruct(run, args.image, out, kind)
    task = sampling.diffusion(run)
    if (kind != ".npz" or args.arr_0) and run.config.data.channels not in sampling.CHANNELS:
        what = f"cannot hold images of {run.config.data.channels} channels; give an .npz, without --arr_0"
        raise UserError("out", args.out, what)
    if args.size is not None and args.image is not None and len({*size(args.size)}) > 1:
        raise UserError("size", args.size, "must be square with --image, which is cut to a square")
    sheet, names = sheet_of(args, run, task.sampling.replace(**changes))
    check_room(out, kind, sheet)
    if kind == FOLDER and (args.image, args.to_seed) == (None, None):
        outputs.write_each(sheets.fresh_batches(sheet), outputs.texts_of(sheet.rows.labels, sheet.columns, names), out)
    else:
        pixels, shown = draw(args, kind, sheet, task)
        if kind in (FOLDER, ".npz"):  # samples alone; pictures also show what was given
            pixels = pixels[:, drawn_columns(args)]
        if kind == FOLDER:
            texts = outputs.texts_of(shown, pixels.shape[1], names)
            outputs.write_each([pixels.reshape(-1, *pixels.shape[2:])], texts, out)
        else:
            kept = outputs.GUIDED_DIFFUSION if args.arr_0 else outputs.NAMES
            outputs.write(pixels, shown, out, kept, names, prompts=bool(sheet.rows.scales) and not args.arr_0)
    logging.info("images of step %d in %s", run.step, out)


def sheet_of(args: types.SimpleNamespace, run: Any, config: Any) -> tuple[Any, list[str]]:
    """(what is drawn, the name of each label)."""
    from archirf_jax.launch import outputs, prompts, sheet_rows, sheets, sizes

    names = list(run.config.get("identity", {}).get("class_names", []))
    labels = parse_labels(args.labels, names)
    asked = prompts.read(args.prompts) if args.prompts else [prompts.Prompt(text) for text in args.prompt or ()]
    columns = args.per_prompt or args.per_class
    own, run = run, run if args.size is None else run.at_size(*size(args.size))
    given = sheets.to_fill(run, args.image, args.mask)
    rows = sheet_rows.rows(
        *(run, labels, columns, args.seed, args.conditions, config.asks_null),
        asked or None,
        args.negative_prompt,
        given,
    )
    size_of = sizes.given(run.task, rows.batch, *[getattr(args, name) for name in sizes.FLAGS])
    rows = rows._replace(batch=rows.batch | size_of)
    guides = guides_of(args, own, config, rows)
    refiner = refiner_of(args, run, rows, columns, asked or None)
    names = [prompt.text for prompt in asked] or ([] if args.conditions else [*names, outputs.NONE])
    return sheets.Sheet(run, config, rows, columns, guides, args.batch_size, args.latents, refiner), names


def reconstruct(run: Any, image: str, out: pathlib.Path, kind: str) -> None:
    """Write an image and what an autoencoder makes of it."""
    from absl import logging

    from archirf_jax.launch import outputs, sheets

    check_output_folder(out, "out") if kind == FOLDER else check_output(out, "out", *FORMATS)
    pixels = sheets.reconstructed(run, sheets.image(run, "image", image))
    if kind == FOLDER:
        outputs.write_each(pixels, ("image", "reconstruction"), out)
    else:
        outputs.write(pixels, [0], out)
    logging.info("image and reconstruction of step %d in %s", run.step, out)


def check_room(out: pathlib.Path, kind: str, sheet: Any) -> None:
    """Raise a UserError if what is going to be drawn cannot be written."""
    from archirf_jax.launch import sampling
    from archirf_jax.visuals import pictures

    data, count = sheet.run.config.data, len(sheet.rows.labels) * sheet.columns
    size = data.image_size**2 * data.channels * (1 if data.channels in sampling.CHANNELS else 4)
    if kind == FOLDER:
        return check_output_folder(out, "out", room=count * max(size, BLOCK))
    check_output(out, "out", *FORMATS, room=count * size if kind == ".npz" else 0)
    if kind != ".npz":
        pictures.check_side("labels", len(sheet.rows.labels), data.image_size)
        pictures.check_side("per_class", sheet.columns, data.image_size)


def draw(args: types.SimpleNamespace, kind: str, sheet: Any, task: Any) -> tuple[Any, list[int]]:
    """((rows, columns, H, W, C) uint8, with a stride (states, rows, columns, H, W, C); the label of each row)."""
    from archirf_jax.launch import sheets

    if args.to_seed is not None:
        return sheets.between_noises(sheet, args.to_seed), sheet.rows.labels
    if args.image is None:
        return sheets.fresh(sheet, (args.stride or 1) if kind == ".gif" else 0), sheet.rows.labels
    image = sheets.image(sheet.run, "image", args.image)
    if args.image_to is not None:
        other = sheets.image(sheet.run, "image_to", args.image_to)
        return sheets.between_images(sheet, image, other, args.seed), [task.num_classes]
    if args.mask is not None:
        return sheets.filled(sheet, image, sheets.mask(args.mask, image.shape[0])), sheet.rows.labels
    return sheets.from_image(sheet, image), sheet.rows.labels


def drawn_columns(args: types.SimpleNamespace) -> slice:
    """The columns of a sheet without the images that were given."""
    return slice(int(args.image is not None), -1 if args.image_to is not None else None)


if __name__ == "__main__":
    COMMAND.run(main)
