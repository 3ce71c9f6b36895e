"""What a command line changes of a configuration, and how a configuration file may fail."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from archirf_jax.errors import UserError
from archirf_jax.launch.fields import check, leaves
from archirf_jax.launch.overrides import load_file, override
from configs import adm_classifier, dit_rf


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("steps", "3", 3),
        ("steps", "0x10", 16),
        ("steps", "007", 7),
        ("optimizer.learning_rate", "1", 1.0),
        ("optimizer.clip_norm", "None", None),
        ("data.flip", "true", True),
        ("data.name", "None", "None"),
        ("data.label_key", "None", None),
        ("mesh.data", "2", 2),
        ("ema.sigma_rel", "(0.05,0.1)", (0.05, 0.1)),
        ("ema.sigma_rel", "[0.05]", (0.05,)),
        ("model.depth", "6", 6),
        ("model.qk_norm", "None", None),
        ("model.channel_mult", "(1, 2)", (1, 2)),
        ("model.name", "my_lab.my_net", "my_lab.my_net"),
        ("objective.shift", "3", 3.0),
        ("sample.solver.churn", "40", 40),
        ("sample.guidance.interval", "(0.2,0.8)", (0.2, 0.8)),
        ("sample.guidance.interval", "None", None),
        ("conditioners.text.name", "my_lab.text", "my_lab.text"),
        ("data.fields.caption.name", "my_lab.captions", "my_lab.captions"),
        ("frozen.teacher", "runs/teacher", "runs/teacher"),
        ("networks.discriminator.optimizer.learning_rate", "1e-4", 1e-4),
    ],
)
def test_text_becomes_a_value_of_the_fields_type(field: str, text: str, value: Any) -> None:
    config = dit_rf.get_config()
    override(config, [(field, text)])
    found = dict(leaves(config))[field]
    assert found == value and type(found) is type(value)
    check(config)
    with pytest.raises(AttributeError):
        config.stepz = 3


@pytest.mark.parametrize("texts", [["None", "1.5"], ["2", "None", "1.5"]])
def test_a_field_that_may_be_none_is_set_back_and_forth(texts: list[str]) -> None:
    config = dit_rf.get_config()
    override(config, [("optimizer.clip_norm", text) for text in texts])
    assert config.optimizer.clip_norm == 1.5


def test_groups_are_replaced_by_literals_and_groups_of_conditions_have_a_probability_each() -> None:
    config = dit_rf.get_config()
    changes = [("conditioners", "{'text': {'name': 'x'}}"), ("objective.condition_dropout", "{'tokens,pooled': 0.1}")]
    override(config, changes)
    assert config.conditioners.to_dict() == {"text": {"name": "x"}}
    assert config.objective.condition_dropout.to_dict() == {"tokens,pooled": 0.1}


def test_fields_that_follow_another_go_on_following_it() -> None:
    config = adm_classifier.get_config()
    override(config, [("data.image_size", "16")])
    assert config.model.image_size == 16


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("stepz", "3"),
        ("optimizer.learningrate", "3"),
        ("steps", "3.5"),
        ("steps", "None"),
        ("steps", "true"),
        ("steps.x", "3"),
        ("data", "7"),
        ("data.flip", "7"),
        ("data.num_classes", "1e3"),
        ("ema.sigma_rel", "{}"),
        ("ema.sigma_rel", "wide"),
        ("model.depth", "deep"),
        ("sample.solver", "heun"),
        ("sample.solver.", "1"),
        ("conditioners.text", "{'a.b': 1}"),
    ],
)
def test_a_wrong_field_or_value_is_named(field: str, text: str) -> None:
    with pytest.raises(UserError) as caught:
        override(dit_rf.get_config(), [(field, text)])
    assert caught.value.field == field and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        "def get_config():\n    return nothing\n",
        "class Own(Exception): pass\ndef get_config():\n    raise Own('line 1\\nline 2')\n",
        "raise StopIteration\n",
        "import sys; sys.exit()\n",
        "def get_config():\n    return 3\n",
        "def get_config(:\n",
        "x = 3\n",
    ],
)
def test_a_file_that_fails_is_named_in_one_line(body: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "c.py").write_text(body)
    with pytest.raises(UserError) as caught:
        load_file(str(tmp_path / "c.py"))
    assert caught.value.field == "config" and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["configs/no.py", "configs", "README.md", ""])
def test_what_is_no_file_of_python_is_named(name: str) -> None:
    with pytest.raises(UserError) as caught:
        load_file(name)
    assert caught.value.field == "config"


def test_a_file_is_run_once(tmp_path: pathlib.Path) -> None:
    body = f"open({str(tmp_path / 'runs')!r}, 'a').write('x')\n"
    (tmp_path / "c.py").write_text(
        f"from ml_collections import ConfigDict\n{body}\ndef get_config(): return ConfigDict()\n"
    )
    load_file(str(tmp_path / "c.py"))
    assert (tmp_path / "runs").read_text() == "x"
