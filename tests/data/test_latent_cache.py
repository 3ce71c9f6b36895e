"""Laws of latent caches: one pass or many give the same bytes, statistics are those of the set, damage is named."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.data import kept_texts, latent_cache, resumable
from archirf_jax.data.dataset import Dataset
from archirf_jax.data.feeds import make_feed
from archirf_jax.data.fields import latents, make_fields
from archirf_jax.data.latent_cache import Plan, statistics
from archirf_jax.data.latent_source import HEADER, LABELS, MOMENTS, TEXTS, LatentSource
from archirf_jax.data.library import from_arrays
from archirf_jax.data.pipeline import load
from archirf_jax.errors import UserError
from tests.data import settings
from tests.mutations import mutated

COUNT, BATCH = 23, 4
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 1), np.uint8)
SET = from_arrays(IMAGES, np.arange(COUNT) % 3, ["a", "b", "c"])
CAPTIONS = [[f"image {i}", *(["größer"] if i % 2 else [])] for i in range(COUNT)]
CAPTIONED = from_arrays(IMAGES, np.arange(COUNT) % 3, ["a", "b", "c"], captions=CAPTIONS)


def encode(images: np.ndarray) -> np.ndarray:
    """(B, 2, 2, 6): three means and three logarithms of variances."""
    halves = images.reshape(len(images), 2, 4, 2, 4).astype(np.float32) / 255
    means = np.stack([halves.mean(axis=(2, 4)), halves[:, :, 0, :, 0], halves.max(axis=(2, 4)) - 3], axis=-1)
    return np.concatenate([means, means - 1], axis=-1)


def plan(**changes: Any) -> Plan:
    images = {"name": "arrays", "image_size": 8, "channels": 1, "label_key": "label"}
    fields: dict[str, Any] = dict(images=images, autoencoder="digest", shape=(2, 2, 6), views=2, distribution=True)
    return Plan(**fields | {"batch_size": BATCH} | changes)


def killed_after(calls: int) -> Callable[[np.ndarray], np.ndarray]:
    left = [calls]

    def encode_until(images: np.ndarray) -> np.ndarray:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return encode(images)

    return encode_until


def files(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def opened(folder: pathlib.Path, **changes: Any) -> Dataset:
    return load(settings.data(name=f"latents:{folder}", **changes))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("cache") / "latents"
    latent_cache.make(folder, SET, encode, plan())
    return folder


@pytest.mark.parametrize("calls", [0, 1, 5, 2 * -(-COUNT // BATCH) - 1])
def test_a_pass_that_was_killed_goes_on_with_the_same_bytes(
    calls: int, cache: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        latent_cache.make(tmp_path, SET, killed_after(calls), plan())
    with pytest.raises(UserError) as caught:
        LatentSource(tmp_path)
    assert caught.value.field == "data.name"
    latent_cache.make(tmp_path, SET, killed_after(2 * -(-COUNT // BATCH) - calls // 2 * 2), plan())
    assert files(tmp_path) == files(cache)
    assert files(cache).keys() == {HEADER, MOMENTS, LABELS}


def test_the_latents_are_those_of_the_images_in_order_and_mirrored(cache: pathlib.Path) -> None:
    source = LatentSource(cache)
    assert len(source) == COUNT and source.class_names == ["a", "b", "c"]
    for i in range(COUNT):
        found = source[i]
        assert found["label"] == i % 3
        for view, image in enumerate((IMAGES[i], IMAGES[i][:, ::-1])):
            np.testing.assert_array_equal(found["moments"][view], encode(image[None])[0].astype(np.float16))


def test_the_statistics_are_those_of_what_is_drawn(cache: pathlib.Path) -> None:
    source = LatentSource(cache)
    both = np.concatenate([IMAGES, IMAGES[:, :, ::-1]])
    mean, logvar = np.split(encode(both).astype(np.float16).astype(np.float64), 2, axis=-1)
    drawn = mean + np.exp(logvar / 2) * np.random.default_rng(1).normal(size=(4000, *mean.shape))
    np.testing.assert_allclose(source.header.mean, mean.mean(axis=(0, 1, 2)), atol=1e-12)
    np.testing.assert_allclose(source.header.std, drawn.std(axis=(0, 1, 2, 3)), rtol=5e-3)
    plain = statistics(mean[:, None], distribution=False)
    np.testing.assert_allclose(plain[1], mean.std(axis=(0, 1, 2)), atol=1e-12)


def test_a_batch_holds_latents_and_labels_and_mirrored_ones_only_if_asked(cache: pathlib.Path) -> None:
    for flip in (False, True):
        data = opened(cache, flip=flip)
        feed = make_feed(data, settings.config(8, 4, name=f"latents:{cache}"))
        chunk, _ = feed.chunk(0, 1)
        batch = feed.batch(chunk, jnp.int32(0), jax.random.key(3))
        assert batch.keys() == {"moments", "label"} and batch["moments"].shape == (8, 2, 2, 6)
        plain = np.stack([LatentSource(cache)[i]["moments"] for i in range(COUNT)]).astype(np.float32)
        seen = [
            {view for i in range(COUNT) for view in (0, 1) if np.array_equal(plain[i, view], one)}
            for one in np.asarray(batch["moments"])
        ]
        assert all(seen) and ({1} in seen) == flip


def test_the_field_follows_from_the_configuration_alone(cache: pathlib.Path) -> None:
    config = settings.data(name=f"latents:{cache}")
    load(config)
    again = make_fields(settings.data(name="latents:elsewhere", fields=config.fields))
    assert again.keys() == {"label", "moments"} and again["moments"] == latents.build((2, 2, 6), 2)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        (dict(image_size=16), "data.image_size"),
        (dict(channels=3), "data.channels"),
        (dict(crop="center"), "data.crop"),
        (dict(buckets=(2, 2)), "data.buckets"),
    ],
)
def test_a_cache_of_other_images_is_refused(changes: dict[str, Any], field: str, cache: pathlib.Path) -> None:
    with pytest.raises(UserError) as caught:
        opened(cache, **changes)
    assert caught.value.field == field


def test_mirrored_latents_that_are_not_there_are_refused(tmp_path: pathlib.Path) -> None:
    latent_cache.make(tmp_path, SET, encode, plan(views=1))
    assert len(opened(tmp_path)) == COUNT
    with pytest.raises(UserError) as caught:
        opened(tmp_path, flip=True)
    assert caught.value.field == "data.flip"


def test_a_set_without_labels_has_none(tmp_path: pathlib.Path) -> None:
    latent_cache.make(tmp_path, from_arrays(IMAGES), encode, plan())
    assert opened(tmp_path, label_key=None).num_classes is None
    with pytest.raises(UserError) as caught:
        opened(tmp_path)
    assert caught.value.field == "data.label_key"


@pytest.mark.parametrize("name", [HEADER, MOMENTS, LABELS])
def test_a_cache_that_is_cut_short_is_refused_in_a_line(name: str, cache: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for other in (HEADER, MOMENTS, LABELS):
        content = (cache / other).read_bytes()
        (tmp_path / other).write_bytes(content[: len(content) // 2] if other == name else content)
    with pytest.raises(UserError) as caught:
        opened(tmp_path)
    assert caught.value.field == "data.name" and "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", [HEADER, MOMENTS])
def test_a_changed_cache_is_read_or_refused(name: str, cache: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for other in (HEADER, MOMENTS, LABELS):
        (tmp_path / other).write_bytes((cache / other).read_bytes())
    content = (cache / name).read_bytes()
    for changed in mutated(content, seed=0):
        (tmp_path / name).write_bytes(changed)
        try:
            source = LatentSource(tmp_path)
            assert source[0]["moments"].shape == (2, 2, 2, 6) or name == HEADER
        except UserError as e:
            assert "\n" not in str(e)


def test_a_folder_that_holds_something_else_is_left_alone(cache: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "mine").write_text("")
    before = files(cache)
    for folder, asked in ((tmp_path, plan()), (cache, plan(autoencoder="other"))):
        with pytest.raises(UserError) as caught:
            latent_cache.make(folder, SET, killed_after(0), asked)
        assert caught.value.field == "out"
    assert latent_cache.make(cache, SET, killed_after(0), plan()) == LatentSource(cache).header  # nothing to do
    assert files(cache) == before and [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_beginning_of_another_cache_is_not_gone_on_with(tmp_path: pathlib.Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        latent_cache.make(tmp_path, SET, killed_after(4), plan())
    before = files(tmp_path)
    with pytest.raises(UserError) as caught:
        latent_cache.make(tmp_path, SET, encode, plan(autoencoder="other"))
    assert caught.value.field == "out" and "autoencoder" in str(caught.value) and files(tmp_path) == before
    (tmp_path / resumable.PROGRESS).write_text(json.dumps({"plan": 3}))
    with pytest.raises(UserError):
        latent_cache.make(tmp_path, SET, encode, plan())


def test_latents_that_are_not_finite_end_the_pass(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError) as caught:
        latent_cache.make(tmp_path, SET, lambda images: encode(images) * np.nan, plan())
    assert caught.value.field == "autoencoder"


def test_a_cache_keeps_the_captions_of_its_images_and_is_trained_on_by_them(tmp_path: pathlib.Path) -> None:
    for folder, calls in (("whole", 2 * COUNT), ("cut", 3)):
        with contextlib.suppress(KeyboardInterrupt):
            latent_cache.make(tmp_path / folder, CAPTIONED, killed_after(calls), plan())
    latent_cache.make(tmp_path / "cut", CAPTIONED, encode, plan())
    assert files(tmp_path / "cut") == files(tmp_path / "whole") and (tmp_path / "cut" / TEXTS).exists()
    field = {"caption": {"name": "caption"}}
    ours = opened(tmp_path / "cut", fields=field)
    assert ours.captions(range(COUNT)) == CAPTIONS and ours.arrays is not None and CAPTIONED.arrays is not None
    for name in ("ids", "mask", "caption_count"):
        np.testing.assert_array_equal(ours.arrays[name], CAPTIONED.arrays[name])
    assert ours.digest != opened(tmp_path / "cut").digest


def test_a_whole_cache_without_captions_is_given_them_and_nothing_is_encoded(tmp_path: pathlib.Path) -> None:
    for folder in ("now", "before"):
        latent_cache.make(tmp_path / folder, CAPTIONED, encode, plan())
    older = json.loads((tmp_path / "before" / HEADER).read_text())
    del older["texts"]
    (tmp_path / "before" / HEADER).write_text(json.dumps(older))
    (tmp_path / "before" / TEXTS).unlink()
    with pytest.raises(UserError) as caught:
        opened(tmp_path / "before", fields={"caption": {"name": "caption"}})
    assert caught.value.field == "data.fields" and len(opened(tmp_path / "before")) == COUNT
    latent_cache.make(tmp_path / "before", CAPTIONED, killed_after(0), plan())
    assert files(tmp_path / "before") == files(tmp_path / "now")


@pytest.mark.parametrize("damage", ["cut", "other", "absent"])
def test_damaged_captions_are_named(damage: str, tmp_path: pathlib.Path) -> None:
    latent_cache.make(tmp_path, CAPTIONED, encode, plan())
    path = tmp_path / TEXTS
    content = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[:-40])
    if damage == "other":
        kept_texts.write(path, [{"title": [""]}] * COUNT)
    assert len(opened(tmp_path)) == COUNT  # what does not read them does not mind
    with pytest.raises(UserError) as caught:
        opened(tmp_path, fields={"caption": {"name": "caption"}})
    assert caught.value.field == "data.name" and "\n" not in str(caught.value)
