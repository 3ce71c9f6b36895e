"""Flags are data: many commands fit into one process, and what is wrong is named by its field."""

from __future__ import annotations

import pathlib

import pytest

from archirf_jax.errors import UserError
from archirf_jax.launch.cli import Command
from archirf_jax.launch.flags import CONFIG, WORKDIR, Flag

SAMPLE = Command(
    "Sample.",
    WORKDIR,
    Flag("seed", "of the noise", int, 0, low=0, high=9),
    Flag("guidance_scale", "1 is off", float, low=0, field="sample.guidance.scale"),
    Flag("threshold", "of predicted images", choices=("static", "dynamic"), field="sample.threshold"),
    Flag("metrics", "what is measured", list),
    Flag("stride", "between frames", bool, False),
    Flag("sample", "how to sample", dict),
    Flag("out", "a file", pathlib.Path, "samples.png"),
)
TRAIN = Command("Train.", CONFIG, WORKDIR, Flag("seed", "of another kind", str, "none"))
RUN = "--workdir=runs/x"


def test_two_commands_with_flags_of_the_same_names_are_parsed_in_one_process() -> None:
    first = SAMPLE.parse([RUN, "--seed=3"])
    second = TRAIN.parse([RUN, "--config=configs/dit_rf.py", "--seed=three"])
    again = SAMPLE.parse([RUN])
    assert (first.seed, second.seed, again.seed) == (3, "three", 0)


def test_values_have_their_types_and_what_was_given_is_known() -> None:
    args = SAMPLE.parse(["--workdir", "~/x", "-guidance_scale=2", "--metrics=loss,samples", "--stride"])
    assert args.workdir == pathlib.Path("~/x").expanduser() and args.out == pathlib.Path("samples.png")
    assert args.guidance_scale == 2.0 and isinstance(args.guidance_scale, float)
    assert args.metrics == ["loss", "samples"] and args.stride is True and args.threshold is None
    assert args.given.keys() == {"workdir", "guidance_scale", "metrics", "stride"}


def test_fields_of_a_group_come_as_they_were_written() -> None:
    args = SAMPLE.parse([RUN, "--sample.solver.churn=40", "--sample.guidance.interval", "(0.2,0.8)", "--sample.x"])
    assert args.sample == [
        ("sample.solver.churn", "40"),
        ("sample.guidance.interval", "(0.2,0.8)"),
        ("sample.x", "true"),
    ]
    assert args.given["sample"] == args.sample


@pytest.mark.parametrize("flags", [["--config.steps", "12"], ["-config.steps=12"], ["--config.steps=0xc"]])
@pytest.mark.parametrize("before", [True, False])
def test_fields_of_a_configuration_are_changed_wherever_they_stand(flags: list[str], before: bool) -> None:
    config = ["--config=configs/dit_rf.py:mnist"]
    args = TRAIN.parse([RUN, *(flags + config if before else config + flags)])
    assert args.config.steps == 12 and args.config.data.name == "mnist" and args.config.is_locked


def test_a_field_without_a_value_is_switched_on() -> None:
    args = TRAIN.parse(
        ["--config=configs/dit_rf.py", "--config.data.flip", RUN, "--config.optimizer.weight_decay", "-1"]
    )
    assert args.config.data.flip is True and args.config.optimizer.weight_decay == -1


def test_flags_may_stand_in_a_file(tmp_path: pathlib.Path) -> None:
    (tmp_path / "flags").write_text(f"{RUN}\n--config=configs/dit_rf.py\n--config.seed=4\n")
    assert TRAIN.parse([f"--flagfile={tmp_path / 'flags'}"]).config.seed == 4


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ([], "workdir"),
        (["--workdir="], "workdir"),
        (["--workdir=~nobody_has_this_name"], "workdir"),
        ([RUN, "--seed=-1"], "seed"),
        ([RUN, "--seed=10"], "seed"),
        ([RUN, "--seed=x"], "seed"),
        ([RUN, "--guidance_scale=nan"], "sample.guidance.scale"),
        ([RUN, "--guidance_scale=1e300"], "sample.guidance.scale"),
        ([RUN, "--threshold=statc"], "sample.threshold"),
        ([RUN, "--stride=perhaps"], "stride"),
        ([RUN, "--sed=1"], None),
        ([RUN, "seven"], None),
        (["--flagfile=/nowhere/at/all"], None),
    ],
)
def test_a_wrong_flag_is_named(arguments: list[str], field: str | None) -> None:
    with pytest.raises(UserError) as caught:
        SAMPLE.parse(arguments)
    assert caught.value.field == field and "\n" not in str(caught.value)


def test_a_file_of_flags_that_is_not_text_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "flags").write_bytes(b"--seed=1\n\xff\xfe")
    with pytest.raises(UserError) as caught:
        SAMPLE.parse([RUN, f"--flagfile={tmp_path / 'flags'}"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ([RUN], "config"),
        ([RUN, "--config="], "config"),
        ([RUN, "--config=configs/dit_rf.py:cifar"], "config"),
        ([RUN, "--config=configs/dit_rf.py", "--config.stepz=3"], "stepz"),
        ([RUN, "--config=configs/dit_rf.py", "--config.steps=x"], "steps"),
    ],
)
def test_a_wrong_configuration_is_named(arguments: list[str], field: str) -> None:
    with pytest.raises(UserError) as caught:
        TRAIN.parse(arguments)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("sample.guidance.scale", "--guidance_scale"),
        ("seed", "--seed"),
        ("sample.solver.churn", "config.sample.solver.churn"),
        ("model.depth", "config.model.depth"),
    ],
)
def test_an_error_is_rendered_as_the_flag_that_sets_its_field(field: str, name: str) -> None:
    assert SAMPLE.render(UserError(field, 3, "is wrong")).startswith(f"{name}: 3 ")


def test_an_error_without_a_field_is_its_message() -> None:
    assert SAMPLE.render(UserError("nothing fits")) == "nothing fits"
