"""Fields follow from the configuration alone, and what they promise of a batch is what a feed gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from archirf_jax.data.fields import finish, make_fields, shapes
from archirf_jax.data.pipeline import StreamFeed, load_source, make_feed
from archirf_jax.data.sources import ArraySource
from archirf_jax.errors import UserError
from tests.data import settings

SIZE, BATCH, STEPS = 11, 4, 9
BOX = {"name": "array", "feature": "box", "shape": (2,)}


class Boxes(ArraySource):
    """Images with a further feature: two numbers."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        return super().__getitem__(index) | {"box": [index, 0.5]}


class Crop:
    """A field that draws on the host, and again on the device."""

    draws = True

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {"crop": jax.ShapeDtypeStruct((2,), np.float32)}

    def decode(self, raw: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"crop": rng.random(2, np.float32)}

    def finish(self, arrays: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        return {"crop": arrays["crop"], "noise": jax.random.normal(key, arrays["crop"].shape)}


def source() -> Boxes:
    images = np.random.default_rng(0).integers(0, 256, (SIZE, 8, 8, 1), np.uint8)
    return Boxes(images, np.arange(SIZE) % 2, ["even", "odd"])


def config(**given: Any) -> ConfigDict:
    return settings.config(BATCH, STEPS, name="arrays", **given)


def batches(config: ConfigDict, more: Mapping[str, Any], start: int = 0) -> list[dict[str, np.ndarray]]:
    feed = make_feed(load_source(source(), make_fields(config.data) | more, config.data), config)
    keys = [jax.random.key(step) for step in range(start, STEPS)]
    found = [feed.batch(feed.chunk(start + i, 1)[0], jnp.int32(0), key) for i, key in enumerate(keys)]
    feed.close()
    return [jax.tree.map(np.asarray, one) for one in found]


@pytest.mark.parametrize("cache", [settings.RESIDENT, settings.STREAMED])
def test_batches_are_as_their_fields_promise(cache: int) -> None:
    made = config(device_cache_mib=cache, flip=True, fields={"where": BOX})
    promised = shapes(make_fields(made.data), BATCH)
    assert promised.keys() == {"image", "label", "box"} and promised["image"].shape == (BATCH, 8, 8, 1)
    for batch in batches(made, {}):
        assert {name: (one.shape, one.dtype) for name, one in batch.items()} == {
            name: (one.shape, one.dtype) for name, one in promised.items()
        }
        np.testing.assert_array_equal(batch["box"][:, 0] % 2, batch["label"])


def test_a_field_that_draws_streams_and_draws_anew_at_each_place_of_the_order() -> None:
    found = batches(config(), {"crop": Crop()})
    feed = make_feed(load_source(source(), {"crop": Crop()}, config().data), config())
    assert isinstance(feed, StreamFeed)
    assert len(np.unique(np.concatenate([one["crop"] for one in found]))) == 2 * STEPS * BATCH
    others = batches(config(), {"other": Crop()})
    assert not (found[0]["crop"] == others[0]["crop"]).any() and not (found[0]["noise"] == others[0]["noise"]).any()


def test_what_a_field_draws_depends_on_seed_and_place_alone() -> None:
    whole, later = batches(config(), {"crop": Crop()}), batches(config(), {"crop": Crop()}, start=5)
    jax.tree.map(np.testing.assert_array_equal, whole[5:], later)
    made = config()
    made.seed = 1
    assert not (batches(made, {"crop": Crop()})[0]["crop"] == whole[0]["crop"]).any()


def test_further_fields_leave_images_and_labels_as_they_are() -> None:
    for plain, more in zip(batches(config(flip=True), {}), batches(config(flip=True), {"crop": Crop()}), strict=True):
        jax.tree.map(np.testing.assert_array_equal, plain, {name: more[name] for name in plain})


def test_images_are_mirrored_by_the_key_as_it_is_given() -> None:
    fields = make_fields(config(flip=True).data)
    decoded = {"image": np.arange(8 * 64, dtype=np.uint8).reshape(8, 8, 8, 1), "label": np.zeros(8, np.int32)}
    coin = np.asarray(jax.random.bernoulli(jax.random.key(3), 0.5, (8, 1, 1, 1)))
    expected = np.where(coin, decoded["image"][:, :, ::-1], decoded["image"])
    found = finish(fields, jax.tree.map(jnp.asarray, decoded), jax.random.key(3))["image"]
    np.testing.assert_array_equal(np.round(np.asarray(found) * 127.5 + 127.5), expected)


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("data.image_size", {"image_size": 0}),
        ("data.image_size", {"image_size": 10**6}),
        ("data.value_range", {"value_range": (1.0, 1.0)}),
        ("data.value_range", {"value_range": (4095, 0)}),
        ("data.value_range", {"value_range": (0, float("inf"))}),
        ("data.value_range", {"value_range": (0, float("nan"))}),
        ("data.value_range", {"value_range": (0, 1, 2)}),
        ("data.value_range", {"value_range": 4095}),
        ("data.fields.image", {"fields": {"image": BOX}}),
        ("data.fields.second", {"fields": {"first": BOX, "second": BOX}}),
        ("data.fields.second", {"fields": {"second": BOX | {"feature": "label"}}}),
        ("data.fields", {"fields": {"box": BOX | {"dtype": "string"}}}),
        ("data.fields.box.name", {"fields": {"box": {"feature": "box"}}}),
    ],
)
def test_a_wrong_field_is_refused_before_any_data_is_opened(field: str, given: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        make_fields(settings.data(**given))
    assert caught.value.field == field


@pytest.mark.parametrize("wrong", [{"feature": "boxes"}, {"shape": (3,)}])
def test_a_feature_that_the_set_does_not_have_so_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        batches(config(fields={"where": BOX | wrong}), {})
    assert caught.value.field == "data.fields"
