"""Training a diffusion model: a network meets a process, an objective, conditions and a first stage."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from archirf_jax.contracts import Batch, Denoiser, Frozen, Losses, Metrics, ModelFn, Models, Setting, TrainState
from archirf_jax.data.fields import make_fields, shapes
from archirf_jax.errors import UserError
from archirf_jax.models import binding
from archirf_jax.samplers.config import SamplerConfig
from archirf_jax.tasks import building
from archirf_jax.tasks.drawing import Drawing, Params
from archirf_jax.training.update import Update, commit

MODEL = "model"


class Diffusion(Drawing):
    """The task of a resolved configuration (data.num_classes known).

    Raises:
        UserError: a name or field that does not fit.

    Attributes:
        frozen: runs by name; one called "teacher" is handed to the objective as a denoiser.
        model: the network. module: the same with the heads that the objective trains.
        process, objective, conditioner, first_stage: see `contracts`.
        fields: of the data, by name.
        sampling: how it is sampled unless another way is asked for.
        examples: a batch of data for previews of networks that are conditioned on more than labels; None without.
    """

    main = MODEL  # the module that is exported
    use = "--workdir={workdir}"  # the arguments of `sample` for a run

    def __init__(self, config: Any, runs: building.Runs, model: Any = None) -> None:
        self.frozen = dict(runs)
        self.process = building.make_process(config)
        self.objective = building.make_objective(config, self.process, runs)
        self.model = building.make_model(config, model)
        self.module = self.objective.wrap(self.model)
        self.conditioner = building.make_conditioner(config, self.process, runs)
        self.first_stage = building.make_first_stage(config, runs)
        self.fields = make_fields(config.data)
        self.sampling = SamplerConfig.from_config(config.sample)
        self.examples = None
        self.config = config

    def step(self, state: TrainState, frozen: Frozen, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        """One update of the network, and its metrics."""
        drawn, losses = self.losses(state, frozen, batch, key, MODEL)
        gradient = self.updates[MODEL].gradient(state.networks[MODEL], drawn, losses)
        return commit(state, self.updates, {MODEL: gradient})

    def losses(
        self, state: TrainState, frozen: Frozen, batch: Batch, key: jax.Array, network: str, train: bool = True
    ) -> tuple[Any, Losses]:
        """(what is drawn for a batch, the losses of it); without `train` no units are dropped."""
        kept = state.networks[network]
        x0, condition = self.encoded(frozen, batch, key)
        setting = Setting(self.process, self.conditioner.null(frozen), state.step, kept.objective_state)
        drawn = self.objective.draw(key, setting, x0, condition)

        def losses(params: Params, drawn: Any, part: Any) -> Any:
            dropout = building.dropout_key(key, part) if train else None
            average = self.model_fn(kept.averages["ema"], dropout) if kept.averages else None
            models = Models(self.model_fn(params, dropout), average, self.teacher(frozen))
            return self.objective.losses(models, setting, drawn)

        return drawn, losses

    @functools.cached_property
    def updates(self) -> dict[str, Update]:
        """How the network is trained; only a run that trains needs to know."""
        normalize = getattr(self.module, "normalize_weights", None)
        if normalize is not None and self.config.optimizer.name == "schedule_free_adamw":
            raise UserError(
                *("optimizer.name", "schedule_free_adamw"),
                "averages weights, and this network's are normalized; take adam",
            )

        def project(params: Params, objective_state: Any) -> Params:
            del objective_state
            return params if normalize is None else {MODEL: normalize(params[MODEL])}

        return {MODEL: Update(self.config, MODEL, project=project, remember=self.objective.remember)}

    def init_params(self, key: jax.Array, frozen: Frozen) -> Params:
        """Fresh parameters, by module."""
        batch = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes(self.fields, 1))
        x0, condition = self.encoded(frozen, batch, key)
        return {MODEL: binding.init(self.module, key, jnp.zeros_like(x0), jnp.zeros(1), condition)}

    def init(self, key: jax.Array, frozen: Frozen) -> TrainState:
        """The state before the first step."""
        network = self.updates[MODEL].init(self.init_params(key, frozen), self.objective.init())
        return TrainState(step=jnp.zeros((), jnp.int32), networks={MODEL: network})

    def model_fn(
        self, params: Params, dropout: jax.Array | None = None, *, higher_derivatives: bool = False
    ) -> ModelFn:
        """The network with its parameters bound; with a key for dropout as it is trained.

        `higher_derivatives` asks for forward-mode and second derivatives beyond what the objective needs.
        """
        higher = higher_derivatives or self.objective.higher_derivatives
        return binding.bind(self.module, params[MODEL], dropout=dropout, higher_derivatives=higher)

    def teacher(self, frozen: Frozen) -> Denoiser | None:
        """The frozen run called "teacher", where there is one."""
        if "teacher" not in self.frozen:
            return None
        teacher: Denoiser = self.frozen["teacher"].task.network_denoiser(frozen["teacher"])
        return teacher


def build(config: Any, runs: Mapping[str, Any], model: Any = None) -> Diffusion:
    """The task of a resolved configuration."""
    return Diffusion(config, runs, model)
