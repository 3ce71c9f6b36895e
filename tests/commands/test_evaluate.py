"""The evaluate command: what it measures of any run, writes down, and says of what it cannot measure."""

from __future__ import annotations

import json
import math
import os
import pathlib
import shutil
from typing import Any

import pytest
from PIL import Image

from archirf_jax.interop import files
from configs import adm_classifier, adm_ddpm, dit_rf
from tests import running
from tests.commands import saved
from tests.golden.cases import load

TINY = saved.TINY_DIT | {"sample.guidance.scale": 1.0}
FEW = ("--solver=euler", "--steps=3", "--images=24", "--batch_size=8")
NEIGHBOURS = {"precision", "recall", "density", "coverage", "novelty"}
OF_LOSS = {"loss_t/0_0.25", "loss_t/0.25_0.5", "loss_t/0.5_0.75", "loss_t/0.75_1", "attention_logit"}
PYTHON = "def features(images):\n    return images.reshape(len(images), 4, 16)\n"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A cache directory of the test's own."""
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    return path


@pytest.fixture(scope="module")
def original(data_dir: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("evaluate") / "run"
    saved.save(dit_rf, path, {**TINY, "data.dir": str(data_dir)})
    return path


@pytest.fixture(scope="module")
def classifier(data_dir: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("evaluate") / "classifier"
    saved.save(adm_classifier, path, {**saved.TINY_ADM, "data.dir": str(data_dir)})
    return path


@pytest.fixture
def run(original: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(original, tmp_path / "run"))


def rows(workdir: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "evaluations.jsonl").read_text().splitlines()]


def evaluate(workdir: pathlib.Path, *arguments: str) -> None:
    running.call("evaluate", f"--workdir={workdir}", *arguments)


def refused(workdir: pathlib.Path, *arguments: str) -> running.Refusal:
    return running.refused("evaluate", f"--workdir={workdir}", *arguments)


def test_it_reports_and_adds_a_row_of_loss_and_samples_and_gives_the_same_again(
    run: pathlib.Path, cache: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "evaluations.jsonl").write_text('{"step": 1, "figures": {"lo')  # of a process that was killed
    with running.messages() as lines:
        evaluate(run, *FEW)
    evaluate(run, *FEW, "--json")
    _, *found = (run / "evaluations.jsonl").read_text().splitlines()
    first, second = map(json.loads, found)
    assert first == second == json.loads(capsys.readouterr().out)  # one object and nothing else
    assert set(first["figures"]) == {"loss", *OF_LOSS, "frechet", "kernel", *NEIGHBOURS}
    assert all(map(math.isfinite, first["figures"].values())) and set(first["errors"]) == {"loss"}
    assert set(first["halves"]["samples"]) == set(first["halves"]["real"]) == {"frechet", "kernel", *NEIGHBOURS}
    assert {"step": saved.STEP, "ema": "ema", "images": 24, "features": "pixels"}.items() <= first.items()
    assert {"name": "digits", "split": "train"}.items() <= first["data"].items()
    assert (first["sampling"]["solver"], first["sampling"]["steps"]) == ({"name": "euler"}, 3)
    shown = next(line for line in lines if line.startswith("Frechet distance")).split()[2:]
    expected = [first["figures"]["frechet"], *(first["halves"][name]["frechet"] for name in ("samples", "real"))]
    assert list(map(float, shown)) == pytest.approx(expected, rel=1e-4)
    assert len(list((cache / "archirf_jax" / "references").iterdir())) == 1


def test_every_part_of_the_question_matters(run: pathlib.Path) -> None:
    usual = ("--metrics=samples", *FEW)
    for more in ((), ("--seed=1",), ("--split=train[:50%]",), ("--steps=4",), ("--repeats=2",)):
        evaluate(run, *usual, *more)
    found = rows(run)
    assert len({row["figures"]["frechet"] for row in found}) == 5
    single, other, *_, repeated = (row["figures"]["frechet"] for row in found)
    assert repeated == pytest.approx((single + other) / 2)
    assert found[-1]["errors"]["frechet"] == pytest.approx(abs(single - other) / math.sqrt(2))
    assert found[2]["real_digest"] != found[0]["real_digest"] == found[1]["real_digest"]


def test_a_classifier_has_its_loss_and_accuracy(classifier: pathlib.Path) -> None:
    evaluate(classifier, "--images=16")
    row = rows(classifier)[-1]
    assert {"loss", "accuracy"} <= set(row["figures"]) <= {"loss", "accuracy", *OF_LOSS}
    assert 0 <= row["figures"]["accuracy"] <= 1 and row["halves"] == {}


def test_samples_are_seen_by_a_classifiers_run_or_by_a_python_file(run: pathlib.Path, classifier: pathlib.Path) -> None:
    (run / "see.py").write_text(PYTHON)
    for features in (classifier, run / "see.py"):
        evaluate(run, "--metrics=samples", *FEW, f"--features={features}")
    first, second = rows(run)
    assert set(first["figures"]) == {"frechet", "kernel", *NEIGHBOURS, "accuracy"}
    assert first["features"] == f"{classifier} at step {saved.STEP}" and second["features"] == str(run / "see.py")
    assert set(second["figures"]) == {"frechet", "kernel", *NEIGHBOURS}


@pytest.mark.slow
def test_samples_are_seen_by_inception_whose_weights_are_a_file(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    weights = tmp_path / "inception.safetensors"
    state = load(pathlib.Path(__file__).parents[1] / "golden" / "inception_fid.npz").params
    files.write(state, weights)
    arguments = ("--metrics=samples", "--split=train[:6]", *FEW, "--images=6")  # one batch of each
    evaluate(run, *arguments, f"--features={weights}")
    row = rows(run)[-1]
    assert set(row["figures"]) == {"frechet", "kernel", *NEIGHBOURS, "inception_score"}
    assert row["features"] == "inception" and 1 <= row["figures"]["inception_score"] < 1008
    files.write({name: value for name, value in state.items() if name != "fc.bias"}, weights)
    refusal = refused(run, *arguments, f"--features={weights}")
    assert refusal.flag == "--features" and "fc.bias" in refusal.line


def photos(folder: pathlib.Path, count: int) -> pathlib.Path:
    """A folder of images of ten classes."""
    for number in range(count):
        file = folder / f"{number % 10}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 12), (9 * number, 0, 0)).save(file)
    return folder


def test_images_of_a_folder_may_be_the_real_ones_and_few_images_are_warned_of(
    run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    real = photos(tmp_path / "real", 14)
    with running.messages() as lines:
        evaluate(run, f"--data=folder:{real}", "--metrics=samples", *FEW[:2])
    row = rows(run)[-1]
    assert row["images"] == 14 and row["data"]["name"] == f"folder:{real}"
    assert any("no more images than features" in line for line in lines), lines


# Arguments -> the flag that the answer names.
BAD = {
    "--metrics=fid": "--metrics",
    "--metrics=loss,loss": "--metrics",
    "--metrics=": "--metrics",
    "--metrics=loss --steps=4": "--steps",
    "--metrics=loss --features=pixels": "--features",
    "--levels=17": "--levels",
    "--label_key=name": "--label_key",
    "--images=5": "--images",
    "--metrics=bits_per_dim --ode_steps=3": "--ode_steps",
    "--split=test": "--split",
    "--data_dir=/nowhere": "--data",
    "--value_range=4095": "--value_range",
    "--value_range=4095,0": "--value_range",
    "--data=digitz": "--data",
    "--features=x.npz": "--features",
    "--features=x.pth": "--features",
    "--features=docs": "--features",
    "--solver=eular": "--solver",
    "--ema=x": "--ema",
    "--step=4": "--step",
    "--workdir=docs": "--workdir",
    "--weak_step=3": "--weak_workdir",
}


@pytest.mark.parametrize("arguments", BAD)
def test_what_cannot_be_measured_is_answered_with_its_flag_before_anything_is(
    arguments: str, original: pathlib.Path
) -> None:
    refusal = refused(original, *arguments.split(" "))
    assert refusal.flag == BAD[arguments], refusal
    assert not (original / "evaluations.jsonl").exists()


def test_what_a_classifier_and_other_runs_do_not_have_is_refused(
    classifier: pathlib.Path, original: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    def changed(**data: Any) -> pathlib.Path:
        copy = pathlib.Path(shutil.copytree(original, tmp_path / "-".join(data)))
        return saved.change(copy, {f"data.{name}": value for name, value in data.items()})

    assert refused(classifier, "--metrics=samples").flag == "--metrics"
    assert refused(original, f"--features={original}").flag == "--features"
    assert refused(changed(name="imported")).flag == "--data"
    other = changed(image_size=10)
    refusal = refused(other, f"--features={classifier}", "--metrics=samples")
    assert refusal.flag == "--features" and "data.image_size" in refusal.line
    path = other / "evaluations.jsonl"
    for make in (pathlib.Path.mkdir, os.mkfifo, lambda path: path.symlink_to(tmp_path / "victim")):
        make(path)
        assert refused(other, "--metrics=nothing").flag == "--workdir"  # before anything else
        path.rmdir() if path.is_dir() else path.unlink()


def test_a_set_whose_classes_have_other_numbers_is_refused(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    real = photos(tmp_path / "real", 14)
    (real / "3").rename(real / "x")
    saved.change(run, {"identity": {"class_names": [*map(str, range(10))]}})
    for metric in ("loss", "samples"):
        refusal = refused(run, f"--data=folder:{real}", f"--metrics={metric}", "--images=14")
        assert refusal.flag == "--data" and "'3'" in refusal.line and "'4'" in refusal.line


def test_a_python_file_that_fails_is_named_with_its_line(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for body, words in {
        "raise KeyError(3)": "line 5: KeyError",
        "raise Odd('x')": "line 5: Odd",
        "raise SystemExit": "line 5: SystemExit",
        "return {}": "dict",
        "return images + 1j": "complex",
    }.items():
        path = tmp_path / "see.py"
        path.write_text(f"class Odd(Exception):\n    pass\n\ndef features(images):\n    {body}\n")
        refusal = refused(run, "--metrics=samples", *FEW, f"--features={path}")
        assert refusal.flag == "--features" and words in refusal.line
    path.write_text("import sys\n\nsys.exit()\n")
    assert "line 3: SystemExit" in refused(run, "--metrics=samples", *FEW, f"--features={path}").line
    assert not (run / "evaluations.jsonl").exists()


def test_a_run_that_diverged_is_refused(tmp_path: pathlib.Path, data_dir: pathlib.Path) -> None:
    saved.save(dit_rf, tmp_path, {**TINY, "data.dir": str(data_dir)}, spread=math.nan)
    refusal = refused(tmp_path, "--metrics=loss", "--images=8")
    assert refusal.flag == "--step" and "nan" in refusal.line and not (tmp_path / "evaluations.jsonl").exists()


def test_images_that_cannot_be_read_are_left_out_where_asked_to(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    real = photos(tmp_path / "real", 20)
    (real / "9" / "19.png").write_text("not an image")
    arguments = (f"--data=folder:{real}", "--metrics=loss")
    refusal = refused(run, *arguments)
    assert refusal.flag in ("--data", "--skip_unreadable")
    evaluate(run, *arguments, "--skip_unreadable=True")
    assert rows(run)[-1]["images"] == 19


@pytest.mark.slow
def test_whatever_sample_draws_is_evaluated(
    classifier: pathlib.Path, data_dir: pathlib.Path, run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Guided by a classifier or by a weaker run; and the likelihood of either kind."""
    saved.save(adm_ddpm, tmp_path / "ddpm", {**saved.TINY_ADM, "data.dir": str(data_dir)})
    few = ("--metrics=samples", "--steps=3", "--images=16", "--batch_size=8", "--guidance_scale=1")
    for more in ((), (f"--classifier={classifier}", "--classifier_scale=9")):
        evaluate(tmp_path / "ddpm", *few, "--solver=ddim", "--grid=trailing", *more)
    plain, guided = rows(tmp_path / "ddpm")
    assert plain["figures"]["frechet"] != guided["figures"]["frechet"]
    assert guided["sampling"]["classifier"] == str(classifier)
    weak = shutil.copytree(run, tmp_path / "weak")
    evaluate(run, *few[:-1], "--guidance=autoguidance", "--guidance_scale=2", f"--weak_workdir={weak}")
    assert rows(run)[-1]["sampling"]["weak"] == str(weak)
    evaluate(run, "--metrics=bits_per_dim", "--levels=17", "--ode_steps=4", "--images=8")
    assert rows(run)[-1]["bits_per_dim"] == {"levels": 17, "steps": 4, "probes": 8}
    evaluate(tmp_path / "ddpm", "--metrics=bits_per_dim", "--images=2", "--batch_size=2")
    assert set(rows(tmp_path / "ddpm")[-1]["figures"]) == {"bits_per_dim_bound"}
    assert refused(tmp_path / "ddpm", "--metrics=bits_per_dim", "--levels=128").flag == "--levels"
