"""python -m benchmarks.scenes --workdir=runs/scenes [--scales=1,2,4,8] [--out=FILE]: do scenes follow their captions?

500 prompts over all 80 pairs of colour and digit, a fifth with one object, are drawn once at each scale of guidance,
and each object is judged in its box: its digit by a support vector machine that was trained on real digits, its colour
by the nearest. A prompt is right if all its objects are. Beside them: the real test scenes, prompts that hold a pair
that no training scene has, and how often the scene of "a red seven above a blue two" is right for the two swapped.

Scenes are also compared with as many real ones of the same prompts, by the Frechet distance of 64 random features
(`image_features.py`); beside it the distance of other real scenes of these prompts. A plot shows both by the scale.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from archirf_jax.data import composition
from archirf_jax.data.composition import COLOURS, CORNERS, PAIRS, SIDE, TRAIN_DIGITS, WITHHELD, Scene, Thing
from archirf_jax.evaluation import distances
from archirf_jax.evaluation.statistics import Moments, moments
from archirf_jax.files import expand
from archirf_jax.launch.runs import open_run
from archirf_jax.visuals import pictures, plots
from benchmarks import image_features
from benchmarks.machine import say, write

PROMPTS, SINGLE = 500, 100
SHOWN = 40  # scenes of the picture
Asked = tuple[str, tuple[Thing, ...]]  # arrangement, objects


class Judge:
    """Says which object stands in a box."""

    def __init__(self) -> None:
        """Train on the digits that training scenes are made of."""
        digits = load_digits()
        self._digits = SVC(C=10, gamma=0.02).fit(digits.data[:TRAIN_DIGITS] / 16, digits.target[:TRAIN_DIGITS])
        self._colours = np.asarray(list(COLOURS.values())) / 255

    def objects(self, images: np.ndarray, arrangements: Sequence[str]) -> list[tuple[Thing, ...]]:
        """The objects of scenes (N, 16, 16, 3) uint8, in the order of CORNERS."""
        found = []
        for image, arrangement in zip(images / 255, arrangements, strict=True):
            boxes = [image[row : row + SIDE, column : column + SIDE] for row, column in CORNERS[arrangement]]
            found.append(tuple(self._object(box) for box in boxes))
        return found

    def _object(self, box: np.ndarray) -> Thing:
        intensity = box.max(axis=-1)  # every colour has a channel of 255
        colour = box.sum(axis=(0, 1)) / max(intensity.sum(), 1e-9)
        nearest = int(np.argmin(np.sum((self._colours - colour) ** 2, axis=1)))
        return Thing(list(COLOURS)[nearest], int(self._digits.predict(intensity.reshape(1, -1))[0]))


def prompts(count: int = PROMPTS, single: int = SINGLE, seed: int = 0) -> list[tuple[str, Asked]]:
    """(caption, what it asks for); each of PAIRS occurs as often as every other, to one."""
    random = np.random.RandomState(seed)
    arrangements = ["single"] * single + [["side by side", "stacked"][i % 2] for i in range(count - single)]
    places = sum(len(CORNERS[arrangement]) for arrangement in arrangements)
    order = np.concatenate([random.permutation(len(PAIRS)) for _ in range(-(-places // len(PAIRS)))])
    found, next_place = [], iter(order)
    for arrangement in arrangements:
        things = tuple(Thing(*PAIRS[next(next_place)]) for _ in CORNERS[arrangement])
        said = composition.wordings(arrangement, things)
        found.append((said[random.randint(len(said))], (arrangement, things)))
    return found


def shares(asked: Sequence[Asked], seen: Sequence[tuple[Thing, ...]]) -> dict[str, float]:
    """Shares of scenes that are right, of several kinds."""
    single = np.asarray([arrangement == "single" for arrangement, _ in asked])
    right = np.asarray([things == found for (_, things), found in zip(asked, seen, strict=True)])
    withheld = np.asarray([any(tuple(thing) in WITHHELD for thing in things) for _, things in asked])
    ordered = np.asarray([len({*things}) == 2 and _all_differ(things) for _, things in asked])
    swapped = np.asarray([things[::-1] == found for (_, things), found in zip(asked, seen, strict=True)])
    objects = [
        (a, b) for (_, things), found in zip(asked, seen, strict=True) for a, b in zip(things, found, strict=True)
    ]
    kinds = {
        "single": right[single],
        "two": right[~single],
        "single_withheld": right[single & withheld],
        "two_withheld": right[~single & withheld],
        "two_swapped": swapped[ordered],
        "digits": np.asarray([a.digit == b.digit for a, b in objects]),
        "colours": np.asarray([a.colour == b.colour for a, b in objects]),
    }
    return {name: float(np.mean(values)) for name, values in kinds.items() if len(values)}


def _all_differ(things: tuple[Thing, ...]) -> bool:
    return things[0].colour != things[1].colour and things[0].digit != things[1].digit


def real_scenes(asked: Sequence[Asked], seed: int) -> np.ndarray:
    """Scenes (N, 16, 16, 3) uint8 of what was asked for, of digits that no training scene is made of."""
    digits, random = load_digits(), np.random.RandomState(seed)
    of_digit = [np.flatnonzero(digits.target[TRAIN_DIGITS:] == digit) + TRAIN_DIGITS for digit in range(10)]
    found = []
    for arrangement, things in asked:
        images = tuple(int(random.choice(of_digit[thing.digit])) for thing in things)
        found.append(composition.render(Scene(arrangement, things, images, ""), digits.images))
    return np.stack(found)


def moments_of(images: np.ndarray) -> Moments:
    """Mean and covariance of the features of uint8 images."""
    return moments(image_features.features(images.astype(np.float32) / 127.5 - 1))


def real(judge: Judge) -> dict[str, float]:
    """The shares of real test scenes."""
    digits = load_digits()
    scenes = composition.compose("test", digits.target)
    images = np.stack([composition.render(scene, digits.images) for scene in scenes])
    asked = [(scene.arrangement, scene.things) for scene in scenes]
    return shares(asked, judge.objects(images, [arrangement for arrangement, _ in asked]))


def measure(workdir: pathlib.Path, scales: Sequence[float], picture: pathlib.Path | None = None) -> dict[str, Any]:
    """The shares at each scale, and those of real scenes; the picture shows scenes of the best scale."""
    judge, run, given = Judge(), open_run(workdir), prompts()
    texts, asked = [text for text, _ in given], [what for _, what in given]
    drawn = {scale: run.sample(prompts=texts, per_class=1, guidance_scale=scale, batch_size=250) for scale in scales}
    arrangements = [arrangement for arrangement, _ in asked]
    found = {str(scale): shares(asked, judge.objects(images, arrangements)) for scale, images in drawn.items()}
    alike, other = (moments_of(real_scenes(asked, seed)) for seed in (0, 1))
    for scale, images in drawn.items():
        found[str(scale)]["frechet"] = distances.frechet(moments_of(images), alike)
    best = max(scales, key=lambda scale: found[str(scale)]["two"])
    if picture is not None:
        chosen = np.linspace(0, len(texts) - 1, SHOWN).astype(int)
        images = drawn[best][chosen].reshape(-1, 8, *drawn[best].shape[1:])
        pictures.save_png(pictures.grid(images), picture)
        say("\n".join(texts[i] for i in chosen))
    right = real(judge) | {"frechet": distances.frechet(other, alike)}
    return {"step": run.step, "scales": found, "best_scale": best, "real": right}


def plot(found: dict[str, Any]) -> Any:
    """A figure of what guidance buys and costs: shares of right scenes, and the distance, against its scale."""
    scales = sorted(found["scales"], key=float)
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    kinds = {"single": "one object", "two": "two objects", "two_withheld": "two, one of a withheld pair"}
    for i, (kind, text) in enumerate(kinds.items()):
        values = [found["scales"][scale][kind] for scale in scales]
        panels[0].plot([float(scale) for scale in scales], values, "o-", color=f"C{i}", label=text)
        panels[0].axhline(found["real"][kind], color=f"C{i}", linestyle=":")
    distance = [found["scales"][scale]["frechet"] for scale in scales]
    panels[1].plot([float(scale) for scale in scales], distance, "o-", color="C3")
    panels[1].axhline(found["real"]["frechet"], color="C3", linestyle=":", label="real scenes of the same prompts")
    panels[0].set(xlabel="guidance scale", ylabel="share of right scenes (dotted: real ones)", ylim=(0, 1))
    panels[1].set(xlabel="guidance scale", ylabel="Frechet distance", yscale="log")
    for panel in panels:
        panel.set_xscale("log", base=2)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    return figure


def main() -> None:
    """Measure, say, and with --out write JSON and a picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--scales", default="1,2,4,8")
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    scales = [float(text) for text in args.scales.split(",")]
    found = measure(expand(args.workdir, "workdir"), scales, args.out.with_suffix(".png") if args.out else None)
    say(json.dumps(found, indent=1))
    write(found, args.out)
    if args.out is not None:
        plots.save(plot(found), args.out.with_name(f"{args.out.stem}_guidance.png"))


if __name__ == "__main__":
    main()
