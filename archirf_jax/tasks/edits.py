"""Sheets of pictures: fresh ones, ways between two, ones begun from a picture, filled holes.

Every function gives uint8 (rows, columns, H, W, C), one row a label; a picture that was given stands first in each row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.errors import UserError
from archirf_jax.samplers.choice import Choice
from archirf_jax.samplers.interpolate import slerp
from archirf_jax.samplers.sample import noise
from archirf_jax.tasks.diffusion import NOTHING, Diffusion, Inputs, Judge, class_grid
from archirf_jax.visuals.pictures import to_uint8

PICTURES = (1, 3)  # channels of what can be looked at; anything else stays float32


@dataclasses.dataclass(frozen=True)
class Sheet:
    """Who draws what.

    Attributes:
        task: the network and its process.
        params: of the network.
        choice: how it is sampled.
        key: of the noise; that of a picture follows from its label and its number in the row.
        labels: one a row.
        count: pictures drawn in a row.
        batch_size: pictures drawn at a time.
        given: what else every picture is drawn with: parameters of a weaker network or a classifier, conditions.
        weaker: the task of the weaker network; None = `task`.
        judge: makes log p(y | x_t) of the classifier's parameters.
        place: where the pictures of a batch are drawn, which batch_size fits; None = on one device.
    """

    task: Diffusion
    params: Any
    choice: Choice
    key: jax.Array
    labels: list[int]
    count: int
    batch_size: int = 128
    given: Inputs = NOTHING
    weaker: Diffusion | None = None
    judge: Judge | None = None
    place: Any = None

    def draw(self, y: jax.Array, keys: jax.Array, inputs: Inputs = NOTHING, stride: int = 0) -> np.ndarray:
        """One picture a label of y and key; with a stride the states on the way, (states, rows, columns, H, W, C).

        Raises:
            UserError: a picture with nan or infinity.
        """
        whole = np.concatenate(list(self.batches(y, keys, inputs, stride)), axis=-4)
        return whole.reshape(*whole.shape[:-4], -1, self.count, *self.task.image_shape)

    def batches(self, y: jax.Array, keys: jax.Array, inputs: Inputs = NOTHING, stride: int = 0) -> Iterator[np.ndarray]:
        """The same pictures one batch after the other, (B, H, W, C) or (states, B, H, W, C), the last ones fewer."""
        sampler = self.task.sampler(self.choice, stride, self.weaker, self.judge)
        given = {name: value for name, value in self.given._asdict().items() if value is not None}
        inputs = inputs._replace(**given)
        total, size = len(y), self.batch_size if self.place else min(self.batch_size, len(y))
        for first in range(0, total, size):
            part = np.arange(first, first + size) % total  # the last batch is filled up: one program for all
            start = None if inputs.start is None else inputs.start[part]
            here = (keys[part], y[part]) if self.place is None else jax.device_put((keys[part], y[part]), self.place)
            images = np.asarray(sampler(self.params, *here, inputs._replace(start=start)))
            if not np.all(np.isfinite(images)):
                raise UserError(
                    "the pictures hold nan or infinity; try a lower --guidance_scale or another --solver or --step"
                )
            pictures = to_uint8(images) if self.task.image_shape[-1] in PICTURES else images
            yield pictures[..., : total - first, :, :, :]


def plain(sheet: Sheet, stride: int = 0) -> np.ndarray:
    """Fresh pictures; with a stride (states, rows, columns, H, W, C)."""
    return sheet.draw(*class_grid(sheet.key, sheet.labels, sheet.count), stride=stride)


def between_noises(sheet: Sheet, to_key: jax.Array) -> np.ndarray:
    """On the arc between the noises of the first picture of each label with the sheet's key and with another."""
    y, keys = class_grid(sheet.key, sheet.labels, 1)
    sigma = sheet.task.process.sigma(jnp.asarray(sheet.choice.make_grid(sheet.task.process)[0, 0]))
    first, second = (
        sigma * noise(each, sheet.task.image_shape) for each in (keys, class_grid(to_key, sheet.labels, 1)[1])
    )
    start = Inputs(start=_arcs(first, second, sheet.count))
    return sheet.draw(jnp.repeat(y, sheet.count), jnp.repeat(keys, sheet.count), start)


def between_images(sheet: Sheet, images: jax.Array) -> np.ndarray:
    """One row without label: two images (2, H, W, C), and between them those on the arc between their noises.

    Raises:
        UserError: guidance or noise, with which an image has no noise of its own.
    """
    choice = sheet.choice
    if choice.guidance_scale != 1 or choice.threshold != "none" or choice.solver not in ("euler", "ddim"):
        raise UserError(
            "image_to: an image is encoded by euler or ddim without guidance and threshold; "
            "add --solver=euler --guidance_scale=1 --threshold=none"
        )
    if choice.eta > 0:
        raise UserError(f"eta: {choice.eta} adds noise, and an image is encoded without any; set it to 0")
    sheet.task.check_null("image_to: a way without label")
    sheet = dataclasses.replace(sheet, choice=dataclasses.replace(choice, guidance="classifier_free"))
    null = sheet.task.null
    ends = sheet.task.encoder(sheet.choice)(sheet.params, images, jnp.full(2, null))
    keys = jnp.broadcast_to(sheet.key, (sheet.count,))
    drawn = sheet.draw(jnp.full(sheet.count, null), keys, Inputs(start=_arcs(ends[:1], ends[1:], sheet.count)))
    return np.concatenate([_column(images[0], 1), drawn, _column(images[1], 1)], axis=1)


def from_image(sheet: Sheet, image: jax.Array) -> np.ndarray:
    """The image (H, W, C), then pictures begun from it, noised to `choice.strength` (Meng et al. 2021, "SDEdit")."""
    drawn = sheet.draw(*class_grid(sheet.key, sheet.labels, sheet.count), Inputs(image=image))
    return np.concatenate([_column(image, len(drawn)), drawn], axis=1)


def fill(sheet: Sheet, image: jax.Array, mask: jax.Array) -> np.ndarray:
    """The image (H, W, C) with its hole, where mask (H, W, 1) is 1, grey; then pictures that are its own elsewhere."""
    drawn = sheet.draw(*class_grid(sheet.key, sheet.labels, sheet.count), Inputs(known=image, mask=mask))
    return np.concatenate([_column(jnp.where(mask > 0.5, 0.0, image), len(drawn)), drawn], axis=1)


def _arcs(first: jax.Array, second: jax.Array, count: int) -> jax.Array:
    """(rows * count, H, W, C) from the ends (rows, H, W, C), row after row."""
    weights = jnp.tile(jnp.linspace(0.0, 1.0, count), len(first))
    return slerp(jnp.repeat(first, count, 0), jnp.repeat(second, count, 0), weights)


def _column(image: jax.Array, rows: int) -> np.ndarray:
    return np.broadcast_to(to_uint8(np.asarray(image)), (rows, 1, *image.shape))
