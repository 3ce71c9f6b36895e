"""What is measured of a run: losses and likelihoods of the images that count, samples that depend on nothing else."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.contracts import Network, TrainState
from archirf_jax.data.dataset import Dataset
from archirf_jax.data.fields import finish, make_fields
from archirf_jax.errors import UserError
from archirf_jax.evaluation.features import Extractor, Features, pixels
from archirf_jax.evaluation.reference import Sample, gather
from archirf_jax.evaluation.statistics import moments
from archirf_jax.tasks import evaluating
from archirf_jax.tasks.building import make_task
from archirf_jax.tasks.diffusion import Diffusion
from archirf_jax.tasks.evaluating import RealImages
from archirf_jax.training.state import purpose_key
from configs import adm_classifier, adm_ddpm, dit_ddpm, dit_rf
from tests.tasks.settings import config, noisy

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (11, 8, 8, 1), np.uint8)
LABELS = np.arange(11, dtype=np.int32) % 3
KEY = purpose_key(0, "evaluate")
TINY_ADM = {
    **{"model.channel_mult": (1,), "model.attention_downsamples": (), "model.num_head_channels": 16},
    **{"data.num_classes": 3, "schedule.warmup_steps": 0},
}


def real(batch_size: int = 4, flip: bool = False, resident: bool = True) -> RealImages:
    """Images with labels in memory, or streamed from a list."""
    fields = make_fields(config(changes={"data.flip": flip}).data)
    source: Any = [{"image": image, "label": label} for image, label in zip(IMAGES, LABELS, strict=True)]
    arrays = {"image": IMAGES, "label": LABELS} if resident else None
    return RealImages(Dataset(source, fields, np.arange(11), arrays, {}), 3, batch_size)


def state_of(task: Any, params: Any) -> TrainState:
    return evaluating.evaluated_state(task, params)


@pytest.fixture(scope="module")
def task() -> Diffusion:
    return Diffusion(config(), {})


@pytest.fixture(scope="module")
def params(task: Diffusion) -> Any:
    return noisy(task, scale=0.3)


def test_an_order_shows_every_example_once_and_begins_again() -> None:
    seen = list(real().batches())
    assert [len(arrays["label"]) for arrays in seen] == [4, 4, 3]
    found = np.concatenate([arrays["image"] for arrays in seen])
    assert sorted(image.tobytes() for image in found) == sorted(image.tobytes() for image in IMAGES)
    assert np.any(found != IMAGES)
    more = np.concatenate(list(real(5).images(25)))
    np.testing.assert_array_equal(more, np.concatenate([found, found, found])[:25])
    np.testing.assert_array_equal(np.concatenate(list(real(resident=False).images())), found)


@pytest.mark.parametrize("resident", [True, False])
def test_images_are_never_mirrored_where_they_are_measured(resident: bool) -> None:
    """Training mirrors them at random; evaluation measures the images that are there."""
    found = np.concatenate([batch["image"][:n] for n, batch, _ in real(4, True, resident).finished(40, KEY, "images")])
    order = np.resize(real().order, 40)
    np.testing.assert_allclose(found, IMAGES[order] / 127.5 - 1, atol=1e-6)
    dataset = real(flip=True).dataset
    trained = finish(dataset.fields, {"image": IMAGES, "label": LABELS}, KEY)["image"]
    assert np.any(np.abs(trained - (IMAGES / 127.5 - 1)) > 0.1)


def test_a_flipping_run_has_the_loss_of_one_that_does_not(task: Diffusion, params: Any) -> None:
    losses = [
        evaluating.loss(task, state_of(task, params), {}, real(flip=flip), 8, KEY)["loss"] for flip in (False, True)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(("file", "batch_size"), [(dit_rf, 4), (adm_classifier, 8)])
def test_the_loss_is_the_mean_of_those_that_training_would_see_in_any_batch(file: Any, batch_size: int) -> None:
    small = TINY_ADM if file is adm_classifier else None
    task: Any = make_task(config(file, small=small))
    params, count, found, reported = noisy(task, scale=0.3), 6, [], []
    network = next(iter(task.updates))
    state = TrainState(jnp.int32(0), {network: Network(params, {"ema": params}, ())})

    @jax.jit
    def one(batch: Any, key: jax.Array) -> Any:
        drawn, losses = task.losses(state, {}, batch, key, network, train=False)
        return losses(params, drawn, 0)[:2]

    one_by_one = (each for arrays in real().batches(count) for each in zip(*arrays.values(), strict=True))
    for number, values in enumerate(one_by_one):
        batch = finish(task.fields, dict(zip(("image", "label"), (v[None] for v in values), strict=True)), KEY)
        loss, metrics = one(batch, jax.random.fold_in(KEY, number))
        found.append(float(loss[0]))
        reported.append(metrics)
    figures = evaluating.loss(task, state, {}, real(batch_size), count, KEY)
    assert figures["loss"].value == pytest.approx(np.mean(found), rel=1e-5)
    assert figures["loss"].error == pytest.approx(np.std(found, ddof=1) / math.sqrt(count), rel=1e-4)
    for name in reported[0]:
        total, weight = np.sum([metrics[name] for metrics in reported], axis=0)
        assert (name in figures) == (weight > 0)
        if weight:
            assert figures[name].value == pytest.approx(total / weight, rel=1e-4)
    assert ("accuracy" in figures) == (file is adm_classifier)


@pytest.mark.slow
def test_a_network_is_measured_without_its_dropout() -> None:
    tasks = [Diffusion(config(adm_ddpm, {"model.dropout": dropout}, TINY_ADM), {}) for dropout in (0.0, 0.9)]
    params = noisy(tasks[0])
    first, second = (evaluating.loss(task, state_of(task, params), {}, real(), 4, KEY)["loss"].value for task in tasks)
    assert first == second


def test_bits_per_dim_are_of_each_image_once_and_ddpm_has_a_bound(task: Diffusion, params: Any) -> None:
    """The ODE's figure is that of `samplers.likelihood`, whose laws are proven elsewhere."""
    found = evaluating.bits_per_dim(task, params, {}, real(), 5, KEY, levels=17, steps=4, probes=2)
    assert set(found) == {"bits_per_dim", "bits_per_dim_step_error"}
    assert math.isfinite(found["bits_per_dim"].value)
    again = evaluating.bits_per_dim(task, params, {}, real(8), 5, KEY, levels=17, steps=4, probes=2)
    assert again["bits_per_dim"].value == pytest.approx(found["bits_per_dim"].value, rel=1e-4)
    ddpm = Diffusion(config(dit_ddpm, {"process.steps": 4}), {})
    bound = evaluating.bits_per_dim(ddpm, noisy(ddpm), {}, real(), 5, KEY, levels=256, steps=4, probes=2)
    assert set(bound) == {"bits_per_dim_bound"} and bound["bits_per_dim_bound"].error > 0


def test_bits_per_dim_ask_for_attention_that_has_derivatives(
    task: Diffusion, params: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flash attention, which a GPU would take for training, has none of the forward mode."""
    asked: list[bool] = []
    make = Diffusion.model_fn

    def noted(self: Diffusion, params: Any, *rest: Any, higher_derivatives: bool = False) -> Any:
        asked.append(higher_derivatives)
        return make(self, params, *rest, higher_derivatives=higher_derivatives)

    monkeypatch.setattr(Diffusion, "model_fn", noted)
    evaluating.bits_per_dim(task, params, {}, real(), 4, KEY, levels=17, steps=2, probes=2)
    assert asked == [True]


@pytest.mark.parametrize("resident", [True, False])
def test_labels_are_as_frequent_as_the_data_has_them(resident: bool) -> None:
    found = real(resident=resident).labels(22)
    assert np.bincount(found).tolist() == (2 * np.bincount(LABELS)).tolist() and found.dtype == np.int32
    np.testing.assert_array_equal(found, np.concatenate([arrays["label"] for arrays in real().batches(22)]))


def sample_of(features: np.ndarray, log_p: np.ndarray | None = None) -> Sample:
    return Sample(moments(features), features, log_p)


def test_scores_are_of_classes_where_some_are_known() -> None:
    labels = np.asarray([0, 1, 1, 0])
    log_p = np.log(np.maximum(np.eye(2)[[0, 1, 0, 0]], 1e-9))

    def extractor(labelled: bool) -> Extractor:
        return Extractor("x", "x", lambda images: Features(images), labelled)

    drawn = sample_of(RANDOM.normal(size=(4, 2)), log_p)
    assert evaluating.score(drawn, labels, extractor(True)) == {"accuracy": 0.75}
    assert set(evaluating.score(drawn, labels, extractor(False))) == {"inception_score"}
    assert evaluating.score(drawn, None, extractor(True)) == {}  # drawn for rows of a file, not for classes
    assert evaluating.score(dataclasses.replace(drawn, log_p=None), labels, extractor(True)) == {}


def test_figures_of_repeats_are_their_mean_and_spread() -> None:
    known = gather(real().images(), pixels(), 11, 4)
    sets = [gather([RANDOM.integers(0, 256, (8, 8, 8, 1), np.uint8)], pixels(), 8, 8) for _ in range(2)]
    single = [evaluating.of_samples([each], None, known, pixels())[0]["frechet"] for each in sets]
    both = evaluating.of_samples(sets, None, known, pixels())[0]["frechet"]
    values = [figure.value for figure in single]
    assert math.isnan(single[0].error) and values[0] != values[1]
    assert both == pytest.approx((np.mean(values), np.std(values, ddof=1)))


def test_halves_are_compared_with_the_same_other_half_and_as_many() -> None:
    features = RANDOM.normal(size=(40, 2)).astype(np.float32)
    drawn = RANDOM.normal(size=(30, 2)).astype(np.float32) + 1
    found = evaluating.halves(sample_of(features), sample_of(drawn))
    other = sample_of(features[15:30])
    assert found["samples"] == pytest.approx(evaluating.compare(other, sample_of(drawn[:15])))
    assert found["real"] == pytest.approx(evaluating.compare(other, sample_of(features[:15])))
    assert found["real"]["frechet"] < found["samples"]["frechet"]
    assert evaluating.halves(sample_of(features), sample_of(drawn[:11])) == {}


def test_what_is_known_of_an_image_twice_counts_once_in_the_error() -> None:
    values = RANDOM.normal(size=11)
    once = real().mean(values)
    assert once == pytest.approx((values.mean(), values.std(ddof=1) / math.sqrt(11)))
    assert real().mean(np.tile(values, 3)) == pytest.approx(once)
    assert math.isnan(real().mean(values[:1]).error)


def test_a_network_of_one_class_gets_label_0_alone() -> None:
    one = real()._replace(classes=1)
    assert not one.labels(22).any() and not any(arrays["label"].any() for arrays in one.batches())


def test_a_ddpm_is_not_asked_about_finer_levels_than_its_least_noise() -> None:
    process = Diffusion(config(dit_ddpm), {}).process
    for levels in (17, 34, 256):
        evaluating.check_levels(process, levels)
    with pytest.raises(UserError, match="at most 34, or 256") as caught:
        evaluating.check_levels(process, 128)
    assert caught.value.field == "levels"
    evaluating.check_levels(Diffusion(config(), {}).process, 1000)
