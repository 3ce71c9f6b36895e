"""A step of several networks is done whole or not at all, and a network rests while it is not its turn."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.contracts import Batch, TrainState
from archirf_jax.errors import UserError
from archirf_jax.training import guard
from archirf_jax.training.step_runner import StepRunner
from archirf_jax.training.update import Update, commit
from tests.training.toys import Adversarial, Denoising, Feed, config, other, same

NAN = float("nan")
KEY = jax.random.key(0)


def batch(critic: float = 0.0, both: float = 0.0) -> Batch:
    image = jax.random.normal(jax.random.key(1), (8, 4))
    return {"image": image, "extra": jnp.zeros(8).at[3].set(critic)}


Made = tuple[Adversarial, Any, TrainState]


@pytest.fixture(scope="module")
def impatient() -> Made:
    """(a task whose critic is stopped by one bad step, its compiled step, its state after three)."""
    task = Adversarial(config(networks={"critic": {"guard": {"patience": 1}}}, ema__more_decays=(0.5,)))
    state, step = jax.jit(task.init)(KEY, {}), jax.jit(task.step)
    for i in range(3):
        state, _ = step(state, {}, batch(), jax.random.key(i))
    return task, step, state


@pytest.fixture(scope="module")
def late() -> Made:
    """(a task whose critic rests in two steps, its compiled step, its first state)."""
    task = Adversarial(config(schedule__warmup_steps=5), start=2)
    return task, jax.jit(task.step), jax.jit(task.init)(KEY, {})


def test_a_nan_in_either_skips_both_and_leaves_every_byte_but_the_culprits_counts(impatient: Made) -> None:
    task, state = Adversarial(config(ema__more_decays=(0.5,))), impatient[2]

    @jax.jit
    def spoilt(state: TrainState, factors: dict[str, float]) -> Any:
        gradients = {}
        for name, update in task.updates.items():
            drawn, losses = task.losses(state, {}, batch(), KEY, name)
            drawn = jax.tree.map(lambda leaf, name=name: leaf * factors[name], drawn)
            gradients[name] = update.gradient(state.networks[name], drawn, losses)
        return commit(state, task.updates, gradients)

    for culprit in task.updates:
        after, metrics = spoilt(state, {name: NAN if name == culprit else 1.0 for name in task.updates})
        for name, network in after.networks.items():
            before = state.networks[name]
            if name == culprit:
                assert int(network.guard.skipped) == 1 and int(network.guard.in_a_row) == 1
                network = other(network, guard=before.guard)
            assert same(network, before)
        assert int(after.step) == 4 and metrics["skipped"].tolist() == [1, 1]
        # A loss that is not done has no share in any mean.
        assert {name for name, value in metrics.items() if np.any(value != 0)} == {"skipped", "stopped"}


def test_guards_are_each_networks_own(impatient: Made) -> None:
    networks = impatient[2].networks
    means = {name: float(network.guard.mean) for name, network in networks.items()}
    assert abs(means["zenerator"] - means["critic"]) > 0.1
    assert all(int(network.guard.updates) == 3 for network in networks.values())


def test_a_stop_of_one_guard_leaves_all_of_the_step_undone(impatient: Made) -> None:
    _, step, state = impatient
    after, metrics = step(state, {}, batch(critic=NAN), KEY)
    assert metrics["stopped"][0] == guard.NOT_FINITE and int(after.step) == int(state.step)
    stopped = {name: int(network.guard.stopped) for name, network in after.networks.items()}
    assert stopped == {"zenerator": 0, "critic": guard.NOT_FINITE}
    critic = after.networks["critic"]
    cleared = other(critic, guard=critic.guard.replace(stopped=jnp.int32(0)))
    assert same(dataclasses.replace(after, networks={**after.networks, "critic": cleared}), state)


def test_metrics_of_others_carry_their_name_and_are_the_same_at_every_step(late: Made) -> None:
    (_, step, state), names, weights = late, [], []
    for i in range(4):
        before = state
        state, metrics = step(state, {}, batch(), jax.random.key(i))
        names.append(metrics.keys())
        weights.append([metrics["loss"][1].item(), metrics["critic/loss"][1].item(), metrics["score"][1].item()])
        rests = i < 2
        assert same(before.networks["critic"], state.networks["critic"]) == rests
        assert not same(before.networks["zenerator"].params, state.networks["zenerator"].params)
    assert weights == [[1, 0, 8], [1, 0, 8], [1, 1, 8], [1, 1, 8]]
    assert all(each == names[0] for each in names)
    assert {"loss", "critic/loss", "grad_norm/block", "critic/grad_norm/block", "skipped"} <= names[0]
    assert "critic/skipped" not in names[0] and int(state.networks["critic"].guard.updates) == 2


def test_a_network_that_waited_trains_as_if_it_had_begun_then(late: Made) -> None:
    _, step, state = late
    for i in range(2):
        state, _ = step(state, {}, batch(), jax.random.key(i))
    early = jax.jit(Adversarial(config(schedule__warmup_steps=5)).step)
    (one, first), (two, second) = (each(state, {}, batch(), KEY) for each in (step, early))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8), one, two)
    assert first["critic/learning_rate"][0] == pytest.approx(1e-4 / 5) == second["critic/learning_rate"][0]


def test_a_bad_step_of_a_network_that_rests_skips_nothing(late: Made) -> None:
    _, step, state = late
    state, metrics = step(state, {}, batch(critic=NAN), KEY)
    assert metrics["skipped"][0] == 0 and int(state.networks["zenerator"].guard.updates) == 1


def test_overrides_are_of_one_network_alone() -> None:
    made = config(networks={"critic": {"optimizer": {"learning_rate": 0.5}, "ema": {"more_decays": (0.9,)}}})
    task = Adversarial(made)
    assert float(task.updates["critic"].schedule(0)) == 0.5
    assert float(task.updates["zenerator"].schedule(0)) == pytest.approx(1e-4)
    state = jax.eval_shape(task.init, KEY, {})
    assert [list(state.networks[name].averages) for name in task.updates] == [["ema"], ["decay_0.9", "ema"]]
    assert made.optimizer.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"optimiser": {"b1": 0.5}}, "networks.critic.optimiser"),
        ({"optimizer": {"beta1": 0.5}}, "networks.critic.optimizer.beta1"),
        ({"optimizer": {"b1": "high"}}, "networks.critic.optimizer.b1"),
        ({"guard": {"patience": 0}}, "networks.critic.guard.patience"),
        ({"optimizer": {"name": "sgd"}}, "networks.critic.optimizer.name"),
    ],
)
def test_wrong_overrides_are_named_by_their_place(change: Any, field: str) -> None:
    with pytest.raises(UserError) as caught:
        Update(config(networks={"critic": change}), "critic")
    assert caught.value.field == field


def test_an_error_of_a_field_that_is_not_overridden_carries_the_runs_name() -> None:
    with pytest.raises(UserError) as caught:
        Update(config(networks={"critic": {"guard": {"patience": 2}}}, optimizer__name="sgd"), "critic")
    assert caught.value.field == "optimizer.name"


def test_the_runner_keeps_the_order_of_networks_and_stops_at_any_guard() -> None:
    task, feed = Adversarial(config(guard__patience=2)), Feed(bad=(3, 4))
    runner = StepRunner(task, feed, 0)
    chunk, n = feed.chunk(0, 6)
    state, rows = runner(task.init(KEY, {}), chunk, n)
    assert list(state.networks) == ["zenerator", "critic"]
    assert int(state.step) == 4 and rows["stopped"][:, 0].tolist() == [0, 0, 0, 0, guard.NOT_FINITE, 0]
    assert {name: int(each.guard.in_a_row) for name, each in state.networks.items()} == {"zenerator": 0, "critic": 1}


def test_frozen_parameters_are_an_argument_of_the_program() -> None:
    task, feed, found = Denoising(config(optimizer__learning_rate=0.01)), Feed(), []
    runner = StepRunner(task, feed, 0, {"shift": jnp.zeros(4)})
    chunk, n = feed.chunk(0, 6)
    runner.compile(state := jax.jit(task.init)(KEY, {}), chunk)
    for shift in (0.0, 3.0):
        runner.frozen = {"shift": jnp.full(4, shift)}
        found.append(runner(jax.tree.map(jnp.copy, state), chunk, n)[1]["loss"][0, 0])
    assert found[1] > found[0] + 5
    assert same(runner.frozen["shift"], jnp.full(4, 3.0))  # it is not given away


def test_chunks_of_another_shape_have_a_program_of_their_own() -> None:
    class Wide(Denoising):
        """Sums over whatever width there is."""

        def losses(self, state: Any, frozen: Any, batch: Batch, key: Any, network: str, train: bool = True) -> Any:
            narrow = {"image": batch["image"][:, :4] * batch["image"].shape[1]}
            return super().losses(state, frozen, narrow, key, network)

    feed, task = Feed(widths={4: 5}), Wide(config())
    runner, state, step, served = StepRunner(task, feed, 0), Denoising(config()).init(KEY, {}), 0, []
    while step < 8:
        chunk, n = feed.chunk(step, 6)
        seconds = runner.compile(state, chunk)
        assert (seconds > 0) == (step in (0, 4)) and runner.compile(state, chunk) == 0
        state, _ = runner(state, chunk, n)
        step, served = step + n, [*served, n]
    assert int(state.step) == 10 and served == [4, 6]
