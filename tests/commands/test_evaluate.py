"""The evaluate command: what it measures of any run, writes down, and says of what it cannot measure."""

from __future__ import annotations

import json
import logging
import math
import pathlib
import shutil
import sys
from typing import Any

import pytest
from PIL import Image

from archirf_jax.interop import files
from archirf_jax.launch.cli import PACKAGE
from configs import adm_classifier, adm_ddpm, dit_rf
from tests import running
from tests.commands import saved
from tests.commands.alone import command
from tests.golden.cases import load

EVALUATE = command("archirf_jax.evaluate")
TINY = {"model.hidden_size": 32, "model.depth": 1, "sample.guidance_scale": 1.0}
FEW = ("--solver=euler", "--steps=3", "--images=24", "--batch_size=8")
NEIGHBOURS = {"precision", "recall", "density", "coverage", "novelty"}
QUARTERS = {"loss_t/0_0.25", "loss_t/0.25_0.5", "loss_t/0.5_0.75", "loss_t/0.75_1"}
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
    saved.save(dit_rf.get_config(), path, {**TINY, "data.dir": str(data_dir)})
    return path


@pytest.fixture(scope="module")
def judge(data_dir: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("evaluate") / "judge"
    saved.save(adm_classifier.get_config(), path, {**saved.TINY_ADM, "data.dir": str(data_dir)})
    return path


@pytest.fixture
def run(original: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(original, tmp_path / "run"))


def rows(workdir: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "evaluations.jsonl").read_text().splitlines()]


def said(caplog: pytest.LogCaptureFixture, *arguments: str) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="absl"):
        EVALUATE(*arguments)
    return [record.getMessage() for record in caplog.records if record.pathname.startswith(PACKAGE)]


def test_it_tells_and_adds_a_row_of_loss_and_samples_and_gives_the_same_again(
    run: pathlib.Path, cache: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = said(caplog, f"--workdir={run}", *FEW)
    EVALUATE(f"--workdir={run}", *FEW)
    first, second = rows(run)
    assert first == second
    assert set(first["figures"]) == {"loss", *QUARTERS, "frechet", "kernel", *NEIGHBOURS}
    assert all(map(math.isfinite, first["figures"].values())) and set(first["errors"]) == {"loss"}
    assert set(first["halves"]["samples"]) == set(first["halves"]["real"]) == {"frechet", "kernel", *NEIGHBOURS}
    assert {"step": saved.STEP, "ema": "ema", "images": 24, "features": "pixels"}.items() <= first.items()
    assert {"name": "digits", "split": "train"}.items() <= first["data"].items()
    assert (first["sampling"]["solver"], first["sampling"]["steps"]) == ("euler", 3)
    shown = next(line for line in lines if line.startswith("Frechet distance")).split()[2:]
    expected = [first["figures"]["frechet"], *(first["halves"][name]["frechet"] for name in ("samples", "real"))]
    assert list(map(float, shown)) == pytest.approx(expected, rel=1e-4)
    assert len(list((cache / "archirf_jax" / "references").iterdir())) == 1


def test_every_part_of_the_question_matters(run: pathlib.Path) -> None:
    usual = ("--metrics=samples", *FEW)
    for more in ((), ("--seed=1",), ("--split=train[:50%]",), ("--steps=4",), ("--repeats=2",)):
        EVALUATE(f"--workdir={run}", *usual, *more)
    found = rows(run)
    assert len({row["figures"]["frechet"] for row in found}) == 5
    single, other, *_, repeated = (row["figures"]["frechet"] for row in found)
    assert repeated == pytest.approx((single + other) / 2)
    assert found[-1]["errors"]["frechet"] == pytest.approx(abs(single - other) / math.sqrt(2))
    assert found[2]["real_digest"] != found[0]["real_digest"] == found[1]["real_digest"]


def test_a_classifier_has_its_loss_and_accuracy(judge: pathlib.Path) -> None:
    EVALUATE(f"--workdir={judge}", "--images=16")
    row = rows(judge)[-1]
    assert {"loss", "accuracy"} <= set(row["figures"]) <= {"loss", "accuracy", *QUARTERS}
    assert 0 <= row["figures"]["accuracy"] <= 1 and row["halves"] == {}


def test_samples_are_seen_by_a_classifiers_run_or_by_a_python_file(run: pathlib.Path, judge: pathlib.Path) -> None:
    (run / "see.py").write_text(PYTHON)
    for features in (judge, run / "see.py"):
        EVALUATE(f"--workdir={run}", "--metrics=samples", *FEW, f"--features={features}")
    first, second = rows(run)
    assert set(first["figures"]) == {"frechet", "kernel", *NEIGHBOURS, "accuracy"}
    assert first["features"] == f"{judge} at step {saved.STEP}" and second["features"] == str(run / "see.py")
    assert set(second["figures"]) == {"frechet", "kernel", *NEIGHBOURS}


@pytest.mark.slow
def test_samples_are_seen_by_inception_whose_weights_are_a_file(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    weights = tmp_path / "inception.safetensors"
    state = load(pathlib.Path(__file__).parents[1] / "golden" / "inception_fid.npz").params
    files.write(state, weights)
    arguments = (f"--workdir={run}", "--metrics=samples", "--split=train[:1%]", *FEW)
    EVALUATE(*arguments, f"--features={weights}")
    row = rows(run)[-1]
    assert set(row["figures"]) == {"frechet", "kernel", *NEIGHBOURS, "inception_score"}
    assert row["features"] == "inception" and 1 <= row["figures"]["inception_score"] < 1008
    files.write({name: value for name, value in state.items() if name != "fc.bias"}, weights)
    line = EVALUATE.complaint(*arguments, f"--features={weights}")
    assert line.startswith("--features: the tensors do not fit the network; 1 missing: fc.bias")


def test_images_of_a_folder_may_be_the_real_ones_and_are_told_when_features_are_many(
    run: pathlib.Path, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(14):
        file = tmp_path / "real" / f"{number % 10}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 9 * number).save(file)
    lines = said(caplog, f"--workdir={run}", f"--data=folder:{tmp_path / 'real'}", "--metrics=samples", *FEW[:2])
    row = rows(run)[-1]
    assert row["images"] == 14 and row["data"]["name"] == f"folder:{tmp_path / 'real'}"
    assert any(line.startswith("--images: no more than features") for line in lines)


WRONG: dict[str, tuple[list[str], list[str]]] = {
    "another metric": (["--metrics=fid"], ["--metrics: 'fid' is not one of loss, samples, bits_per_dim"]),
    "a metric twice": (["--metrics=loss,loss"], ["--metrics: 'loss,loss'", "once"]),
    "no metric": (["--metrics="], ["--metrics: ''"]),
    "samples unasked": (["--metrics=loss", "--steps=4"], ["--steps: belongs to --metrics=samples"]),
    "features unasked": (["--metrics=loss", "--features=pixels"], ["--features: belongs to --metrics=samples"]),
    "bits unasked": (["--levels=17"], ["--levels: belongs to --metrics=bits_per_dim"]),
    "other classes": (["--label_key="], ["--data: 'digits' has 1 classes by '', but the run knows 10"]),
    "few images": (["--images=5"], ["--images: 5 are too few; at least 6"]),
    "odd steps": (["--metrics=bits_per_dim", "--ode_steps=3"], ["--ode_steps: 3 must be an even number"]),
    "no split": (["--split=test"], ["--split: 'digits' has no split 'test'", "train[:80%]"]),
    "no data": (["--data_dir=/nowhere"], ["--data: 'digits' is not prepared in '/nowhere'"]),
    "another set": (["--data=digitz"], ["--data: 'digitz' is no data set", "did you mean 'digits'"]),
    "no label": (["--label_key=name"], ["--label_key: 'digits' has no feature 'name'"]),
    "no features": (["--features=x.npz"], ["--features: 'x.npz' is neither pixels", "pt_inception"]),
    "no weights": (["--features=x.pth"], ["--features: no file 'x.pth'"]),
    "no classifier": (["--features=docs"], ["--features: 'docs' holds no run"]),
    "another solver": (["--solver=eular"], ["--solver: 'eular' is not one of", "did you mean 'euler'"]),
    "another average": (["--ema=x"], ["there is no average 'x'"]),
    "another step": (["--step=4"], ["--step: ", "4"]),
    "no run": (["--workdir=docs"], ["--workdir: 'docs' holds no run"]),
    "a weaker run without need": (["--weak_step=3"], ["--weak_workdir and --weak_step belong"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_measured_is_told_in_one_line_before_anything_is(case: str, original: pathlib.Path) -> None:
    arguments, words = WRONG[case]
    line = EVALUATE.complaint(f"--workdir={original}", *arguments)
    assert all(word in line for word in words), line
    assert not (original / "evaluations.jsonl").exists()


def test_what_a_classifier_and_other_runs_do_not_have_is_told(
    judge: pathlib.Path, original: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    assert "a classifier has loss alone" in EVALUATE.complaint(f"--workdir={judge}", "--metrics=samples")
    assert "is the run of a diffusion" in EVALUATE.complaint(f"--workdir={original}", f"--features={original}")

    def changed(**data: Any) -> str:
        path = shutil.copytree(original, tmp_path / "-".join(data))
        config = json.loads((path / "config.json").read_text())
        config["data"] |= data
        (path / "config.json").write_text(json.dumps(config))
        return f"--workdir={path}"

    assert EVALUATE.complaint(changed(name="imported")).startswith("--data: is missing; imported weights")
    line = EVALUATE.complaint(changed(image_size=10), f"--features={judge}", "--metrics=samples")
    assert "config.data.image_size is 8 there and 10 here" in line
    (tmp_path / "image_size" / "evaluations.jsonl").mkdir()
    assert "cannot be written" in EVALUATE.complaint(f"--workdir={tmp_path / 'image_size'}")


def test_a_python_file_that_fails_is_told_with_its_line(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for body, words in {
        "raise KeyError(3)": "fails in line 5: KeyError: 3",
        "raise Odd('x')": "fails in line 5: Odd: x",
        "return {}": "gave dict, which is no array of numbers",
        "return images + 1j": "which is no array of numbers: they are complex",
    }.items():
        path = tmp_path / "see.py"
        path.write_text(f"class Odd(Exception):\n    pass\n\ndef features(images):\n    {body}\n")
        line = EVALUATE.complaint(f"--workdir={run}", "--metrics=samples", *FEW, f"--features={path}")
        assert words in line, line
    assert not (run / "evaluations.jsonl").exists()


def test_a_run_that_diverged_is_told_so(original: pathlib.Path, tmp_path: pathlib.Path, data_dir: pathlib.Path) -> None:
    saved.save(dit_rf.get_config(), tmp_path, {**TINY, "data.dir": str(data_dir)}, spread=math.nan)
    line = EVALUATE.complaint(f"--workdir={tmp_path}", "--metrics=loss", "--images=8")
    assert line == f"--step: loss of step {saved.STEP} is nan; choose another step"


def test_images_that_cannot_be_read_are_left_out_if_told_to(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for number in range(20):
        file = tmp_path / "real" / f"{number % 10}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 12), (9 * number, 0, 0)).save(file)
    file.write_text("no picture")
    arguments = (f"--workdir={run}", f"--data=folder:{tmp_path / 'real'}", "--metrics=loss")
    line = EVALUATE.complaint(*arguments)
    assert "or leave them out by --skip_unreadable=True" in line and "config" not in line
    EVALUATE(*arguments, "--skip_unreadable=True")
    assert rows(run)[-1]["images"] == 19


@pytest.mark.slow
def test_whatever_sample_draws_is_evaluated(
    judge: pathlib.Path, data_dir: pathlib.Path, run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Guided by a classifier or by a weaker run; and the likelihood of either kind."""
    saved.save(adm_ddpm.get_config(), tmp_path / "ddpm", {**saved.TINY_ADM, "data.dir": str(data_dir)})
    few = ("--metrics=samples", "--steps=3", "--images=16", "--batch_size=8", "--guidance_scale=1")
    for more in ((), (f"--classifier={judge}", "--classifier_scale=9")):
        EVALUATE(f"--workdir={tmp_path / 'ddpm'}", *few, "--solver=ddim", "--grid=trailing", *more)
    plain, guided = rows(tmp_path / "ddpm")
    assert plain["figures"]["frechet"] != guided["figures"]["frechet"]
    assert guided["sampling"]["classifier"] == str(judge)
    weak = shutil.copytree(run, tmp_path / "weak")
    EVALUATE(f"--workdir={run}", *few[:-1], "--guidance=autoguidance", "--guidance_scale=2", f"--weak_workdir={weak}")
    assert rows(run)[-1]["sampling"]["weak_workdir"] == str(weak)
    EVALUATE(f"--workdir={run}", "--metrics=bits_per_dim", "--levels=17", "--ode_steps=4", "--images=8")
    assert rows(run)[-1]["bits_per_dim"] == {"levels": 17, "steps": 4, "probes": 8}
    EVALUATE(f"--workdir={tmp_path / 'ddpm'}", "--metrics=bits_per_dim", "--images=2", "--batch_size=2")
    assert set(rows(tmp_path / "ddpm")[-1]["figures"]) == {"bits_per_dim_bound"}
    line = EVALUATE.complaint(f"--workdir={tmp_path / 'ddpm'}", "--metrics=bits_per_dim", "--levels=128")
    assert line.startswith("--levels: 128 are too fine")


def test_the_line_comes_with_exit_code_2(tmp_path: pathlib.Path) -> None:
    done = running.run([sys.executable, "-m", "archirf_jax.evaluate", f"--workdir={tmp_path}"])
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: --workdir: ")
