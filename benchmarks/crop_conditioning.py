"""python -m benchmarks.crop_conditioning [--steps=1000] [--per_class=50] [--out=FILE]: do sizes keep objects uncut?

A network that is trained on random cuts draws cut objects. SDXL (Podell et al. 2023, Sec. 2.2) tells it where each was
cut, and draws at the cut (0, 0), with the original as large as what is drawn: as if nothing had been cut off.

The originals are digits (8x8) in the middle of canvases of 12 times 12, 20, 24 or 28 pixels, half of them upright, and
are cut to 12x12 anywhere along their longer side. A quarter of them are square: these are never cut, so that the digit
is in the middle, and their size alone is (12, 12, 0, 0, 12, 12). All others have their digit in the middle for one cut
of many. Two networks are trained alike, the one conditioned on sizes and the other not, and as many images of each
digit are drawn from both without guidance, the first one's at (12, 12, 0, 0, 12, 12). Measured is the share of images
whose centre of ink lies within a pixel of the middle, and how far it is away on average; beside it the same of the
square originals and of their random cuts. With --steered images of wide originals are drawn as well, at several cuts:
their ink should move to the left by as much as the cut moves to the right. The default takes 8 minutes on 2 CPU cores.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import tempfile
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from archirf_jax.files import expand
from archirf_jax.launch.runs import Run
from archirf_jax.visuals import pictures
from benchmarks import runs
from benchmarks.machine import say, write
from configs import dit_rf

SIZE, SIDE = 12, 8  # pixels a side of what is drawn, and of a digit
LONGER = (12, 20, 24, 28)  # sides of the originals
FAINT = 64  # levels below this are not ink
CUTS, WIDE = (0, 4, 8), 20  # lefts of the cuts of a wide original
SIZED = {"conditioners.size": {"name": "size"}, "model.size_numbers": 6}


def original(number: int, levels: np.ndarray) -> np.ndarray:
    """The uint8 canvas of a digit (8, 8) of 0 to 16: its number decides the sides."""
    longer = LONGER[number % len(LONGER)]
    sides = (SIZE, longer) if number // len(LONGER) % 2 else (longer, SIZE)
    canvas = np.zeros(sides, np.uint8)
    top, left = ((side - SIDE) // 2 for side in sides)
    canvas[top : top + SIDE, left : left + SIDE] = np.round(levels * 255 / 16)
    return canvas


def write_originals(folder: pathlib.Path) -> None:
    """A PNG of each of scikit-learn's digits, in a folder of its class."""
    digits = load_digits()
    for number, (levels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        file = folder / str(label) / f"{number:04}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(original(number, levels)).save(file)


def centres(images: np.ndarray) -> np.ndarray:
    """(N, 2) rows and columns from the middle to the centre of ink of uint8 images (N, H, W, 1); nan without ink."""
    ink = np.where(images[..., 0] < FAINT, 0, images[..., 0]).astype(np.float64)
    total = ink.sum(axis=(1, 2))
    total = np.where(total > 0, total, np.nan)
    places = [np.arange(length) - (length - 1) / 2 for length in ink.shape[1:]]
    return np.stack([ink.sum(axis=2) @ places[0], ink.sum(axis=1) @ places[1]], axis=1) / total[:, None]


def figures(images: np.ndarray) -> dict[str, float]:
    """The share of images within a pixel of the middle, and the mean distance of those that have ink."""
    distance = np.hypot(*centres(images).T)
    return {"within_a_pixel": float(np.mean(distance <= 1)), "distance": float(np.nanmean(distance))}


def train(workdir: pathlib.Path, data: pathlib.Path, steps: int, more: dict[str, Any]) -> Run:
    """The run of a network that is trained on the originals; what was trained before is not trained again."""
    config = dit_rf.get_config("digits").unlock()
    changes = {"data.name": f"folder:{data}", "data.image_size": SIZE, "data.crop": "random", "steps": steps}
    changes |= {"schedule.warmup_steps": steps // 20, "log.every_steps": max(1, steps // 10), "log.tensorboard": False}
    changes |= {"checkpoint.every_steps": max(1, steps // 2), "sample.every_steps": steps}
    config.update_from_flattened_dict(changes)
    for name, value in more.items():
        group, last = name.split(".")
        config[group][last] = value
    return runs.trained(config.lock(), workdir, {})


def real(data: pathlib.Path) -> dict[str, dict[str, float]]:
    """The figures of the square originals, and of all originals' random cuts."""
    config = dit_rf.get_config("digits")
    config.data.update(name=f"folder:{data}", image_size=SIZE, crop="random")
    dataset = runs.load(config.data)
    decoded = [dataset.example(number, position=number) for number in range(len(dataset))]
    images, sides = np.stack([one["image"] for one in decoded]), np.stack([one["size"][:2] for one in decoded])
    square = (sides == SIZE).all(axis=1)
    return {"square_originals": figures(images[square]), "random_cuts": figures(images)}


def steered(run: Run, per_class: int) -> dict[str, float]:
    """The mean column of the ink's centre, from the middle, of images of wide originals at several cuts."""
    found = {}
    for left in CUTS:
        size = np.asarray([[SIZE, WIDE, 0, left, SIZE, SIZE]] * 10, np.float32)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "size.npz"
            np.savez(path, label=np.arange(10), size=size)
            images = run.sample(conditions=path, per_class=per_class, guidance_scale=1.0, batch_size=500)
        found[str(left)] = float(np.nanmean(centres(images)[:, 1]))
    return found


def measure(
    place: pathlib.Path, steps: int, per_class: int, steer: bool, picture: pathlib.Path | None
) -> dict[str, Any]:
    """The figures of both networks, and of real images; the picture shows images of both, side by side."""
    data = place / "originals"
    if not data.exists():
        write_originals(data)
    arms = {"with_sizes": SIZED, "without": {}}
    trained = {name: train(place / f"{name}_{steps}", data, steps, more) for name, more in arms.items()}
    drawn = {name: runs.draw(run, per_class)[0] for name, run in trained.items()}
    found: dict[str, Any] = {"steps": steps, "images": 10 * per_class} | real(data)
    found |= {name: figures(images) for name, images in drawn.items()}
    if steer:
        found["column_by_left"] = steered(trained["with_sizes"], per_class)
    if picture is not None:
        rows = [images.reshape(10, per_class, *images.shape[1:])[:, :8] for images in drawn.values()]
        pictures.save_png(pictures.grid(np.concatenate(rows, axis=1)), picture)
    return found


def main() -> None:
    """Train, measure, say, and with --out write JSON and a picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", default="runs/crop_conditioning", help="folder of originals and runs")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--per_class", type=int, default=50)
    parser.add_argument("--steered", action="store_true", help="also draw images of wide originals")
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    picture = args.out.with_suffix(".png") if args.out else None
    found = measure(expand(args.runs, "workdir"), args.steps, args.per_class, args.steered, picture)
    say(json.dumps(found, indent=1))
    write(found, args.out)


if __name__ == "__main__":
    main()
