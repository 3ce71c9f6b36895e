"""Arms change one thing each, the summary says what the rows say, and the script runs and goes on at reduced size."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
from PIL import Image

from archirf_jax.errors import UserError
from archirf_jax.evaluation import distances
from archirf_jax.evaluation.statistics import moments
from archirf_jax.launch.config import flat
from archirf_jax.tasks.building import make_task, resolve
from benchmarks.image_features import features
from experiments.autoencoders import summary, trial
from experiments.autoencoders.arms import ARMS, BASE, SETS, autoencoder_config, flow_config
from tests.experiments import reduced

README = pathlib.Path(summary.__file__).with_name("README.md")
# Of every network: body, steps, batches, optimizer, distances and data.
SHARED = ("steps", "batch_size", "seed", "data.", "optimizer.", "schedule.", "ema.", "objective.l1_weight")
BODY = tuple(f"model.{name}" for name in ("block_out_channels", "layers_per_block", "norm_num_groups", "mid_block"))


def fields(name: str, arm: str, seed: int = 0) -> dict[str, Any]:
    return flat(autoencoder_config(name, arm, seed, "data").to_dict())


def differing(first: dict[str, Any], second: dict[str, Any]) -> set[str]:
    return {name for name in first | second if first.get(name) != second.get(name)}


@pytest.mark.parametrize("name", SETS)
def test_an_arm_changes_what_it_says_and_nothing_else(name: str) -> None:
    first = {"bounded": BASE, "kl": "kl_0", "vq": "vq"}
    for arm, what in ARMS.items():
        base = fields(name, first[what.family])
        there = differing(base, fields(name, arm))
        assert there == {field for field, value in what.changes.items() if base[field] != value}
        assert bool(there) == (arm != first[what.family])
    assert differing(fields(name, BASE), fields(name, BASE, seed=1)) == {"seed"}


@pytest.mark.parametrize("name", SETS)
def test_every_autoencoder_has_the_same_body_and_training(name: str) -> None:
    shared = [
        {field: value for field, value in fields(name, arm).items() if field.startswith(SHARED + BODY)} for arm in ARMS
    ]
    assert all(each == shared[0] for each in shared) and len(shared[0]) > 30


def test_no_two_arms_are_the_same() -> None:
    values = {json.dumps([what.family, dict(what.changes)], sort_keys=True) for what in ARMS.values()}
    assert len(values) == len(ARMS)


def test_only_the_place_of_the_latents_and_the_seed_tell_flows_apart() -> None:
    one, other = (
        flat(flow_config("digits", seed, "data", pathlib.Path(f"ae_{seed}"), pathlib.Path(f"z_{seed}")).to_dict())
        for seed in (0, 1)
    )
    assert differing(one, other) == {"seed", "data.name", "frozen.autoencoder"}
    assert one["sample.guidance.scale"] == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_every_arm_builds(name: str) -> None:
    arms = ARMS if name == "digits" else {arm: ARMS[arm] for arm in [*ARMS][:2]}  # they are the same on other images
    for arm, what in arms.items():
        config = autoencoder_config(name, arm, 0, "data")
        resolve(config, 10)
        task: Any = make_task(config)
        side = 8 if name == "openmoji" else 4
        assert task.latent_shape == (side, side, what.changes.get("model.latent_channels", 4))


def row(arm: str, seed: int, psnr: float, reconstruction: float, generation: float) -> dict[str, Any]:
    figures = {"psnr": psnr, "ssim": 0.9, "ms_ssim": 0.8, "frechet": reconstruction}
    halves = {"half_of_samples": 2 * generation, "half_of_real": 0.25}
    return {
        "arm": arm,
        "seed": seed,
        "reconstruction": figures,
        "generation": {"frechet": generation} | halves,
        "latents": {"latent/std": 0.5},
    }


# The better the reconstructions by PSNR, the better the samples; by their distance it is the other way round.
ROWS = [
    row(arm, seed, psnr + seed, reconstruction, generation + seed)
    for seed in (1, 0)
    for arm, psnr, reconstruction, generation in (("vq", 10, 1, 9), ("base", 30, 3, 1), ("tanh", 20, 2, 4))
]


def test_the_rank_correlation_is_of_goodness_and_of_means() -> None:
    found = summary.correlations(ROWS)
    assert found == pytest.approx({"PSNR": 1, "distance of reconstructions": -1})
    assert summary.correlations(ROWS[:2]) == {}


def test_the_table_has_mean_and_seeds_of_every_arm_in_order() -> None:
    lines = summary.table(ROWS).splitlines()
    assert [line.split("`")[1] for line in lines[2:5]] == ["base", "tanh", "vq"]
    assert "| 30.5 (30.0, 31.0) |" in lines[2] and "| 1.5 (1, 2) |" in lines[2]
    assert len({line.count("|") for line in lines[:5]}) == 1
    assert "0.25" in lines[-1]


def test_text_between_marks_is_replaced_and_the_rest_stays(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "README.md"
    shutil.copy(README, path)
    before = path.read_text()
    for text in ("an earlier table", "text"):
        for name in SETS:
            summary.insert(path, f"table of {name}", text)
    after = path.read_text()
    assert after.count("\ntext\n") == len(SETS) and "an earlier table" not in after
    assert before.split("<!--")[0] == after.split("<!--")[0] and before.split("-->")[-1] == after.split("-->")[-1]
    path.write_text(before.replace("<!-- end of table of digits -->", ""))
    with pytest.raises(UserError) as error:
        summary.insert(path, "table of digits", "text")
    assert error.value.field == "OUT"


def test_a_page_has_reconstructions_left_and_samples_right_of_a_gap() -> None:
    originals, back, drawn = (np.full((n, 2, 2, 3), value, np.uint8) for n, value in ((6, 1), (3, 2), (3, 3)))
    whole, names = summary.page(originals, {"base": (back, drawn)})
    assert names == ["originals", "base"] and whole.shape == (2, 7, 2, 2, 3)
    assert whole[1, :, 0, 0, 0].tolist() == [2, 2, 2, 255, 3, 3, 3]


def test_the_features_see_noise_and_more_of_more() -> None:
    random = np.random.default_rng(0)
    images = random.uniform(-0.7, 0.7, (128, 4, 4, 3)).astype(np.float32).repeat(4, axis=1).repeat(4, axis=2)
    noise = random.normal(size=images.shape).astype(np.float32)
    seen = [features(np.clip(images + amount * noise, -1, 1)) for amount in (0, 0.1, 0.3)]
    assert seen[0].shape == (128, 64)
    apart = [distances.frechet(moments(seen[0]), moments(each)) for each in seen]
    assert apart[0] == pytest.approx(0, abs=1e-3 * apart[2]) and apart[0] < apart[1] < apart[2]


def test_a_trial_of_other_settings_is_refused(tmp_path: pathlib.Path) -> None:
    settings = {"samples": 8, "body": (8, 16)}
    assert trial.finished(tmp_path, settings) is None
    (tmp_path / trial.FIGURES).write_text(json.dumps({"arm": "base", "settings": settings}))
    assert trial.finished(tmp_path, settings)["arm"] == "base"
    for broken in ("[]", "{", json.dumps({"settings": settings | {"samples": 9}})):
        (tmp_path / trial.FIGURES).write_text(broken)
        with pytest.raises(UserError) as error:
            trial.finished(tmp_path, settings)
        assert error.value.field == "RUNS"


@pytest.mark.slow
def test_the_script_trains_measures_draws_and_goes_on(
    data_dir: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = SETS["digits"].body | {"block_out_channels": (8,), "patch_size": 2}
    monkeypatch.setitem(SETS, "digits", dataclasses.replace(SETS["digits"], body=body, flow=reduced.TINY))
    small = {"SETS": "digits", "ARMS": "kl_1e-3", "SEEDS": "0", "STEPS": "2", "FLOW_STEPS": "2", "SAMPLES": "64"}
    (tmp_path / "out").mkdir()
    shutil.copy(README, tmp_path / "out")
    reduced.run("autoencoders", small, data_dir, tmp_path, monkeypatch)
    results = json.loads((tmp_path / "out/results.json").read_text())["digits"]
    (only,) = results["trials"]
    assert (only["arm"], only["seed"]) == ("kl_1e-3", 0) and only["cpu_seconds"] > 0 and results["device"]
    assert {"psnr", "ssim", "ms_ssim", "frechet"} == set(only["reconstruction"])
    assert only["generation"]["frechet"] > only["generation"]["half_of_real"] > 0 and only["latents"]["kl"] > 0
    assert "| `kl_1e-3` |" in (tmp_path / "out/README.md").read_text()
    for name in ("images_digits.png", "scatter_digits.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert min(picture.size) > 80
    before = (tmp_path / "out/results.json").read_bytes()
    monkeypatch.setattr(trial, "trained", lambda *_: pytest.fail("a finished trial is trained again"))
    reduced.run("autoencoders", small, data_dir, tmp_path, monkeypatch)
    assert (tmp_path / "out/results.json").read_bytes() == before
