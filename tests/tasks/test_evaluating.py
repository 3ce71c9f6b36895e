"""What is measured of a run: losses and likelihoods of the images that count, samples that depend on nothing else."""

from __future__ import annotations

import dataclasses
import math
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax import sharding
from archirf_jax.data.pipeline import Dataset, finish
from archirf_jax.errors import UserError
from archirf_jax.evaluation.features import Extractor, Seen, pixels
from archirf_jax.evaluation.reference import Sample, gather
from archirf_jax.evaluation.statistics import moments
from archirf_jax.tasks import evaluating
from archirf_jax.tasks.classifier import Classifier
from archirf_jax.tasks.diffusion import NOTHING, Diffusion
from archirf_jax.tasks.edits import Sheet
from archirf_jax.tasks.evaluating import Pictures
from archirf_jax.training.state import TrainState, purpose_key
from configs import adm_classifier, adm_ddpm, dit_ddpm, dit_rf
from tests.commands.saved import TINY_ADM

SMALL = {"model.hidden_size": 16, "model.depth": 1, "data.num_classes": 3, "sample.steps": 3}
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (11, 8, 8, 1), np.uint8)
LABELS = np.arange(11, dtype=np.int32) % 3
KEY = purpose_key(0, "evaluate")


def pictures(batch_size: int = 4, place: Any = None) -> Pictures:
    """Resident ones; the source is never asked."""
    return Pictures(Dataset(types.SimpleNamespace(), np.arange(11), IMAGES, LABELS), 8, 1, 3, batch_size, place)  # type: ignore[arg-type]


def config(file: Any = dit_rf, fields: dict[str, Any] | None = None) -> Any:
    made = file.get_config()
    made.update_from_flattened_dict(SMALL if fields is None else fields)
    return made


def noisy(task: Any) -> Any:
    """Parameters of a network that does not answer zero, and differently to each label."""
    random = np.random.default_rng(0)
    fresh = jax.jit(task.init_params)(jax.random.key(0))
    return jax.tree.map(lambda p: p + 0.3 * random.normal(size=p.shape).astype(np.float32), fresh)


@pytest.fixture(scope="module")
def task() -> Diffusion:
    return Diffusion(config())


@pytest.fixture(scope="module")
def params(task: Diffusion) -> Any:
    return noisy(task)


def test_an_order_shows_every_example_once_and_begins_again() -> None:
    seen = [(images, labels) for images, labels in pictures().batches()]
    assert [len(labels) for _, labels in seen] == [4, 4, 3]
    found = np.concatenate([images for images, _ in seen])
    assert sorted(image.tobytes() for image in found) == sorted(image.tobytes() for image in IMAGES)
    assert np.any(found != IMAGES)
    more = np.concatenate([images for images, _ in pictures(5).batches(25)])
    np.testing.assert_array_equal(more, np.concatenate([found, found, found])[:25])


@pytest.mark.parametrize(("file", "batch_size"), [(dit_rf, 4), (dit_rf, 8), (adm_classifier, 4)])
def test_the_loss_is_the_mean_of_those_that_training_would_see_in_any_batch(file: Any, batch_size: int) -> None:
    classes = {"data.num_classes": 3}
    task: Any = (Classifier if file is adm_classifier else Diffusion)(
        config(file, TINY_ADM | classes if file is adm_classifier else None)
    )
    params, count, drawn = noisy(task), 6, []
    state = TrainState(jnp.int32(0), {}, {}, (), task.process.init_memory())
    losses = jax.jit(task.losses(jax.random.key(7)))  # no dropout here, so that its key is nothing
    one_by_one = (pair for batch in pictures().batches(count) for pair in zip(*batch, strict=True))
    for number, (image, label) in enumerate(one_by_one):
        key = jax.random.fold_in(KEY, number)
        each, aux = losses(params, task.draw(state, finish(image[None], label[None], False, key), key), 0)
        drawn.append(tuple(float(value[0]) for value in (each, aux["t"], aux["raw"])))
    each, t, raw = np.asarray(drawn).T
    assert len(each) == count
    found = evaluating.loss(task, params, pictures(batch_size), count, KEY)
    assert found["loss"].value == pytest.approx(each.mean(), rel=1e-5)
    assert found["loss"].error == pytest.approx(each.std(ddof=1) / math.sqrt(count), rel=1e-4)
    for i in range(4):
        inside = raw[np.floor(t * 4) == i]
        name = f"loss_t/{i / 4:g}_{(i + 1) / 4:g}"
        assert (name in found) == bool(len(inside))
        if len(inside):
            assert found[name].value == pytest.approx(inside.mean(), rel=1e-5)
    assert ("accuracy" in found) == (file is adm_classifier) and "attention_logit" not in found


def test_a_network_is_measured_without_its_dropout() -> None:
    def loss(dropout: float) -> float:
        fields = TINY_ADM | {"model.dropout": dropout, "data.num_classes": 3}
        task = Diffusion(config(adm_ddpm, fields))
        return evaluating.loss(task, noisy(task), pictures(), 4, KEY)["loss"].value

    assert loss(0.0) == loss(0.9)


def test_bits_per_dim_are_of_each_image_once_and_ddpm_has_a_bound(task: Diffusion, params: Any) -> None:
    """The ODE's figure is that of `samplers.likelihood`, whose laws are proven elsewhere."""
    found = evaluating.bits_per_dim(task, params, pictures(), 5, KEY, levels=17, steps=4, probes=2)
    assert set(found) == {"bits_per_dim", "bits_per_dim_step_error"}
    assert math.isfinite(found["bits_per_dim"].value)
    again = evaluating.bits_per_dim(task, params, pictures(8), 5, KEY, levels=17, steps=4, probes=2)
    assert again["bits_per_dim"].value == pytest.approx(found["bits_per_dim"].value, rel=1e-4)
    ddpm = Diffusion(config(dit_ddpm, SMALL | {"process.steps": 4}))
    bound = evaluating.bits_per_dim(ddpm, noisy(ddpm), pictures(), 5, KEY, levels=256, steps=4, probes=2)
    assert set(bound) == {"bits_per_dim_bound"} and bound["bits_per_dim_bound"].error > 0


def sheet(task: Diffusion, params: Any, batch_size: int, place: Any = None) -> Sheet:
    choice = dataclasses.replace(task.choice, guidance_scale=1.0)
    key: jax.Array = purpose_key(3, "sample")
    return Sheet(task, params, choice, key, [], 1, batch_size, place=place)


def test_samples_depend_on_label_and_number_alone_not_on_batches_or_devices(task: Diffusion, params: Any) -> None:
    labels = np.asarray([2, 0, 1, 1, 0, 2, 1], np.int32)
    few = evaluating.draw(sheet(task, params, 3), labels, pixels()).features
    many = evaluating.draw(sheet(task, params, 8), labels, pixels()).features
    assert few.shape == (7, 64) and few.std() > 0.1
    level = 2.01 / 255
    keys = jnp.stack([jax.random.fold_in(purpose_key(3, "sample"), i) for i in range(7)])
    alone = task.sampler(sheet(task, params, 1).choice)(params, keys, jnp.asarray(labels))
    np.testing.assert_allclose(few, np.clip(alone, -1, 1).reshape(7, 64), atol=level)
    np.testing.assert_allclose(few, many, atol=level)
    mesh = sharding.make_mesh()
    assert mesh.size == 8
    spread = sheet(task, jax.device_put(params, sharding.whole(mesh)), 8, sharding.of_batch(mesh))
    np.testing.assert_allclose(evaluating.draw(spread, labels, pixels()).features, many, atol=level)
    changed = evaluating.draw(sheet(task, params, 8), labels[::-1].copy(), pixels()).features
    difference = np.abs(changed - many).max(axis=1)
    same = labels == labels[::-1]
    assert np.all(difference[same] <= level) and np.all(difference[~same] > 5 * level)


def test_labels_are_drawn_as_often_as_the_data_has_them() -> None:
    found = evaluating.labels_of(pictures(), NOTHING, 22)
    assert np.bincount(found).tolist() == (2 * np.bincount(LABELS)).tolist() and found.dtype == np.int32
    expected = np.concatenate([labels for _, labels in pictures().batches(22)])
    np.testing.assert_array_equal(found, expected)
    known = pictures()
    source = [(b"", label) for label in LABELS]
    streamed = known._replace(dataset=Dataset(source, np.arange(11), None, None))  # type: ignore[arg-type]
    np.testing.assert_array_equal(evaluating.labels_of(streamed, NOTHING, 22), expected)
    rows = NOTHING._replace(conditions={"tokens": jnp.zeros((4, 2, 3))})
    assert evaluating.labels_of(pictures(), rows, 6).tolist() == [0, 1, 2, 3, 0, 1]


def told(log_p: np.ndarray) -> Sample:
    features = RANDOM.normal(size=(len(log_p), 2))
    return Sample(moments(features), features, log_p)


def test_scores_are_of_classes_where_some_are_told() -> None:
    labels = np.asarray([0, 1, 1, 0])
    log_p = np.log(np.maximum(np.eye(2)[[0, 1, 0, 0]], 1e-9))

    def judge(labelled: bool) -> Extractor:
        return Extractor("x", "x", lambda images: Seen(images), labelled)

    assert evaluating.score(told(log_p), labels, judge(True)) == {"accuracy": 0.75}
    assert set(evaluating.score(told(log_p), labels, judge(False))) == {"inception_score"}
    assert evaluating.score(told(log_p), None, judge(True)) == {}  # asked for rows of a file, not for classes
    assert evaluating.score(dataclasses.replace(told(log_p), log_p=None), labels, judge(True)) == {}


def test_repeats_are_told_by_their_mean_and_spread(task: Diffusion, params: Any) -> None:
    real = gather((images for images, _ in pictures().batches()), pixels(), 11, 4)
    labels = evaluating.labels_of(pictures(), NOTHING, 8)
    one = sheet(task, params, 8)
    other = dataclasses.replace(one, key=purpose_key(4, "sample"))
    single = [evaluating.of_samples([each], labels, real, pixels())[0]["frechet"] for each in (one, other)]
    both = evaluating.of_samples([one, other], labels, real, pixels())[0]["frechet"]
    values = [figure.value for figure in single]
    assert math.isnan(single[0].error) and values[0] != values[1]
    assert both == pytest.approx((np.mean(values), np.std(values, ddof=1)))


def test_halves_are_compared_with_the_same_other_half_and_as_many() -> None:
    features = RANDOM.normal(size=(40, 2)).astype(np.float32)
    drawn = RANDOM.normal(size=(30, 2)).astype(np.float32) + 1
    found = evaluating.halves(Sample(moments(features), features), Sample(moments(drawn), drawn))

    def sample(part: np.ndarray) -> Sample:
        return Sample(moments(part), part)

    other = sample(features[15:30])
    assert found["samples"] == pytest.approx(evaluating.compare(other, sample(drawn[:15])))
    assert found["real"] == pytest.approx(evaluating.compare(other, sample(features[:15])))
    assert found["real"]["frechet"] < found["samples"]["frechet"]
    assert evaluating.halves(sample(features), sample(drawn[:11])) == {}


def test_what_is_known_of_an_image_twice_counts_once_in_the_error() -> None:
    values = RANDOM.normal(size=11)
    once = pictures().mean(values)
    assert once == pytest.approx((values.mean(), values.std(ddof=1) / math.sqrt(11)))
    assert pictures().mean(np.tile(values, 3)) == pytest.approx(once)
    assert math.isnan(pictures().mean(values[:1]).error)


def test_a_network_of_one_class_is_told_no_other() -> None:
    one = pictures()._replace(classes=1)
    assert not one.labels(22).any() and not any(labels.any() for _, labels in one.batches())


def test_a_ddpm_is_not_asked_about_finer_levels_than_its_least_noise() -> None:
    process = Diffusion(config(dit_ddpm)).process
    for levels in (17, 34, 256):
        evaluating.check_levels(process, levels)
    with pytest.raises(UserError, match=r"--levels: 128 are too fine .* at most 34, or 256 for its variational bound"):
        evaluating.check_levels(process, 128)
    evaluating.check_levels(Diffusion(config()).process, 1000)
