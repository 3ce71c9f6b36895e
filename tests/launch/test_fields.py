"""Every field has a type and a range, in configurations and in what was saved of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ml_collections import ConfigDict

from archirf_jax.errors import UserError
from archirf_jax.launch import fields
from configs import default, dit_rf


def refused(values: Any, field: str, check: Any = fields.check) -> None:
    with pytest.raises(UserError) as caught:
        check(values)
    assert caught.value.field == field


@pytest.mark.parametrize("name", [name for name, field in fields.FIELDS.items() if field.low is not None])
def test_ends_of_a_range_are_allowed_and_what_lies_beyond_is_not(name: str) -> None:
    config, field = default.get_config(), fields.FIELDS[name]
    for value in (field.low, field.high):
        config.update_from_flattened_dict({name: value})
        fields.check(config)
    assert field.low is not None and field.high is not None
    for value in (field.low - 1, 2 * field.high + 1):
        config.update_from_flattened_dict({name: value})
        refused(config, name)


@pytest.mark.parametrize("name", ["optimizer.learning_rate", "guard.jump", "sample.guidance.scale"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_numbers_are_finite_in_the_type_that_is_computed_in(name: str, value: float) -> None:
    config = default.get_config()
    config.update_from_flattened_dict({name: value})
    refused(config, name)


@pytest.mark.parametrize("group, name", [("guard", "patience"), ("schedule", "warmup_steps")])
def test_what_a_network_sets_for_itself_has_the_ranges_of_the_run(group: str, name: str) -> None:
    config = default.get_config()
    with config.unlocked():
        config.networks = ConfigDict({"critic": {group: {name: 10}}})
    fields.check(config)
    config.networks.critic[group][name] = 10**12
    refused(config, f"networks.critic.{group}.{name}")


@pytest.mark.parametrize("name", [name for name, field in fields.FIELDS.items() if not field.optional])
def test_none_is_allowed_where_it_says_so_alone(name: str) -> None:
    config = default.get_config()
    config.update_from_flattened_dict({name: None})
    refused(config, name)


def saved() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(dit_rf.get_config().to_dict()))
    return found


def test_what_a_training_saves_may_be_read() -> None:
    fields.check_saved(saved())


def test_a_run_that_was_saved_before_a_field_existed_may_be_read() -> None:
    values = saved()
    for name in [name for name, field in fields.FIELDS.items() if field.later]:
        group, last = name.split(".")
        del values[group][last]
    fields.check_saved(values)


@pytest.mark.parametrize("name", fields.FIELDS)
def test_a_saved_field_that_is_missing_or_of_another_type_is_named(name: str) -> None:
    *groups, last = name.split(".")
    wrong = lambda group: group.update({last: {"a": 1}})  # noqa: E731
    for change in (wrong,) if fields.FIELDS[name].later else (wrong, lambda group: group.pop(last)):
        values = saved()
        inner = values
        for group in groups:
            inner = inner[group]
        change(inner)
        refused(values, name, fields.check_saved)


@pytest.mark.parametrize("group", ["model", "process", "objective", "sample.solver"])
def test_a_saved_choice_has_a_name(group: str) -> None:
    for value in (None, 3, ["dit"], {"name": ["dit"]}, {}):
        values = saved()
        inner: Any = values
        *groups, last = group.split(".")
        for each in groups:
            inner = inner[each]
        inner[last] = value
        with pytest.raises(UserError) as caught:
            fields.check_saved(values)
        assert caught.value.field in (group, f"{group}.name")


HOLDERS = {
    "conditioners",
    "frozen",
    "networks",
    "data.fields",
    "conditioners.label",
    "frozen.teacher",
    "networks.model",
}


@pytest.mark.parametrize("name", sorted(HOLDERS))
@pytest.mark.parametrize("value", [None, "two", ["dit"], 3, 1.5, True])
def test_what_holds_groups_holds_nothing_else(name: str, value: Any) -> None:
    values = saved()
    inner: Any = values
    *groups, last = name.split(".")
    for each in groups:
        inner = inner[each]
    inner[last] = value
    if (name, value) != ("frozen.teacher", "two"):
        refused(values, name, fields.check_saved)
        refused(ConfigDict(values), name)


def test_imported_weights_have_no_training_and_may_be_read() -> None:
    data = {"name": "imported", "image_size": 8, "channels": 1, "num_classes": None}
    values: dict[str, Any] = {"task": "classifier", "data": data, "model": {"name": "adm_classifier"}, "sample": {}}
    fields.check_saved(values)
    del data["channels"]
    refused(values, "data.channels", fields.check_saved)
