"""Training on a text cache: as with the encoder in the step, which is not asked; and texts can still be drawn."""

from __future__ import annotations

import json
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from archirf_jax.data.fields import finish
from archirf_jax.data.pipeline import load
from archirf_jax.data.text_cache import EMPTY, TextCache
from archirf_jax.errors import UserError
from archirf_jax.launch import caches, latents, run_directory, text_caches
from archirf_jax.launch.runs import named, open_run
from archirf_jax.tasks.building import make_task, resolve
from archirf_jax.tasks.footprint import MemoryPlan, held, measure
from configs import autoencoder, mmdit_rf
from tests import running
from tests.commands import saved
from tests.commands.test_text_weights import imported, published
from tests.tasks import settings

pytest.importorskip("tokenizers")
TEXTS = ("a red square", "a blue circle", "a red circle above a blue square", "a red square")
SEVERAL = {1: "\na circle"}  # a second caption
WIDTH = 36
SMALL: dict[str, Any] = {
    **{"batch_size": 8, "model.hidden_size": 16, "model.depth": 1, "model.depth_single": 0, "model.num_heads": 2},
    **{"model.registers": 0, "model.context": "text", "model.context_width": WIDTH, "model.pooled_width": WIDTH},
    **{"data.label_key": None, "objective.condition_dropout": 0.5, "sample.steps": 2, "sample.per_class": 1},
    **{"steps": 2, "schedule.warmup_steps": 0, "log.every_steps": 1, "checkpoint.every_steps": 1},
    **{"sample.every_steps": 2, "log.tensorboard": False, "mesh.data": 1},
}
CONDITIONER = {"name": "text", "pooled": "pooled"}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("encoder")
    imported(published("minilm", folder / "given"), folder / "run", "--source=minilm", "--num_heads=4")
    return folder / "run"


@pytest.fixture(scope="module")
def images(encoder: pathlib.Path) -> pathlib.Path:
    folder = encoder.parent / "images"
    folder.mkdir()
    for number in range(8):
        Image.new("L", (8, 8), 30 * number).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(TEXTS[number % 4] + SEVERAL.get(number % 4, ""))
    return folder


@pytest.fixture(scope="module")
def cache(encoder: pathlib.Path, images: pathlib.Path) -> pathlib.Path:
    running.call("prepare_data", *preparing(encoder, images, encoder.parent / "texts"))
    return encoder.parent / "texts"


def preparing(encoder: pathlib.Path, images: pathlib.Path, out: pathlib.Path) -> tuple[str, ...]:
    flags = (f"--text_encoder={encoder}", f"--out={out}", "--batch_size=4", "--text_pooled=pooled")
    return (f"--name=folder:{images}", *flags)


def config(encoder: pathlib.Path, images: pathlib.Path, cache: pathlib.Path | None, **conditioner: Any) -> Any:
    stated = {"text": {"name": "text_states", "cache": str(cache)}}
    field = stated if cache else {"caption": {"name": "caption", "tokenizer": str(encoder), "length": 9}}
    changes = {"data.name": f"folder:{images}", "data.fields": field, "frozen.text": str(encoder)}
    text = CONDITIONER | ({} if cache else {"length": 9}) | conditioner
    return settings.config(mmdit_rf, SMALL | changes | {"conditioners": {"text": text}}, small={})


def flags(encoder: pathlib.Path, images: pathlib.Path, cache: pathlib.Path) -> list[str]:
    given = SMALL | {"data.name": f"folder:{images}", "frozen.text": encoder}
    given |= {"data.fields.text.name": "text_states", "data.fields.text.cache": cache}
    given |= {f"conditioners.text.{name}": value for name, value in CONDITIONER.items()}
    place = running.REPOSITORY / "configs" / "mmdit_rf.py"
    return [f"--config={place}", *(f"--config.{name}={value}" for name, value in given.items())]


def parts(made: Any) -> tuple[Any, Any, Any]:
    """Task, frozen parameters and a batch of all examples."""
    dataset = load(made.data)
    resolve(made, 1)
    runs = named(made, pathlib.Path())
    text_caches.fit(made, runs)
    arrays = jax.tree.map(jax.numpy.asarray, dataset.arrays)
    batch = finish(dataset.fields, arrays, jax.random.key(2))
    return make_task(made, runs), caches.frozen_params(made, runs), batch


def test_losses_from_the_cache_are_those_with_the_encoder_which_is_not_asked(
    encoder: pathlib.Path, images: pathlib.Path, cache: pathlib.Path
) -> None:
    losses, conditions = [], []
    params: Any = None
    for place in (None, cache):
        task, frozen, batch = parts(config(encoder, images, place))
        assert ("model" in frozen["text"]) == (place is None) and ("tokens" in batch) == (place is not None)
        shapes = jax.eval_shape(task.init, jax.random.key(0), frozen)
        state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        params = params or {"model": settings.moved(shapes.networks["model"].params["model"], scale=0.3)}

        @jax.jit
        def loss(frozen: Any, batch: Any, task: Any = task, state: Any = state, params: Any = params) -> Any:
            drawn, losses = task.losses(state, frozen, batch, jax.random.key(1), "model")
            seen = task.encoded(frozen, batch, jax.random.key(1))[1], task.conditioner.null(frozen)
            return losses(params, drawn, 0)[0], seen

        found, seen = loss(frozen, batch)
        losses.append(found)
        conditions.append(seen)
    plain, stated = conditions
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(stated), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-3)
    assert np.any(stated[0]["tokens"] != plain[0]["tokens"])  # which are rounded
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)
    other = loss(frozen, batch | {"tokens": batch["tokens"][::-1]})[0]
    assert np.abs(other / losses[0] - 1).max() > 1e-2  # texts count


def test_a_plan_counts_frozen_weights_in_their_own_type_and_no_encoder_whose_texts_are_cached(
    encoder: pathlib.Path, images: pathlib.Path, cache: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    def parts(run: pathlib.Path, cache: pathlib.Path | None = None) -> tuple[Any, Any, Any]:
        made = config(run, images, cache)
        resolve(made, 1)
        runs = named(made, pathlib.Path())
        text_caches.fit(made, runs)
        return made, runs, caches.frozen_shapes(made, runs)

    single = open_run(encoder)
    halved = jax.tree.map(lambda leaf: leaf.astype(np.float16), single.params)
    attached = run_directory.attached(encoder)
    run_directory.write(tmp_path / "half", single.config.to_dict(), halved, step=0, attached=attached)
    for place, params in ((encoder, single.params), (tmp_path / "half", halved)):
        _, _, frozen = parts(place)
        assert held(frozen, 1) == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    made, runs, frozen = parts(encoder, cache)
    null = sum(array.nbytes for array in TextCache(cache, "cache").empty().values())
    assert measure(made, MemoryPlan(False, 1, 1), 1, runs=runs, frozen=frozen).frozen == held(frozen, 1) == null


@pytest.mark.slow
def test_a_run_from_a_cache_goes_on_where_the_cache_lies_elsewhere_and_draws_texts_without_it(
    encoder: pathlib.Path, images: pathlib.Path, cache: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    assert running.call("main", *flags(encoder, images, cache), f"--workdir={tmp_path / 'whole'}") == 0
    assert running.steps_logged(tmp_path / "whole") == [1, 2]
    moved, cut = shutil.copytree(cache, tmp_path / "texts"), shutil.copytree(tmp_path / "whole", tmp_path / "run")
    shutil.rmtree(cut / "checkpoints" / "2")
    resumed = ("main", *flags(encoder, images, moved), f"--workdir={cut}")
    with running.messages() as said:
        running.call(*resumed)
    assert any("checkpoint of step 1" in line for line in said)
    running.assert_same_run(tmp_path / "whole", cut, 2)
    assert open_run(cut).config.data.fields.text.cache == str(moved)

    header = json.loads((moved / "text_states.json").read_text())
    (moved / "text_states.json").write_text(json.dumps(header | {"encoder": "another"}))
    assert running.refused(*resumed).flag == "config.data.fields.text.cache"
    shutil.rmtree(moved)
    assert running.refused(*resumed).flag == "config.data.fields.text.cache"
    run = open_run(cut)
    drawn = run.sample(prompts=[TEXTS[0], TEXTS[1]], per_class=1, guidance_scale=2.0)
    assert drawn.shape == (2, 8, 8, 1) and "model" in run.frozen["text"]


def test_a_cache_of_another_encoder_or_made_in_another_way_is_refused(
    encoder: pathlib.Path, images: pathlib.Path, cache: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    def refused(run: pathlib.Path, **conditioner: Any) -> UserError:
        made = config(run, images, cache, **conditioner)
        with pytest.raises(UserError) as caught:
            text_caches.fit(made, named(made, tmp_path))
        assert "\n" not in str(caught.value)
        return caught.value

    table = {"embeddings.LayerNorm.bias": np.ones(WIDTH, np.float32)}
    imported(published("minilm", tmp_path / "given", **table), tmp_path / "run", "--source=minilm", "--num_heads=4")
    assert refused(tmp_path / "run").field == "data.fields.text.cache"
    for name, value in {"length": 12, "tokens": "other", "pooled": "sentence", "masked": False}.items():
        assert refused(encoder, **{name: value}).field == f"conditioners.text.{name}"
    assert refused(encoder, prefix="t5_").field == "data.fields.text.prefix"
    refusal = running.refused("prepare_data", *preparing(tmp_path / "run", images, cache))
    assert refusal.flag == "--out" and "encoder" in refusal.line


def test_the_command_says_what_it_does_not_take(
    encoder: pathlib.Path, images: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    given = (f"--name=folder:{images}", f"--out={tmp_path / 'texts'}")
    wrong = {"text_length": "2", "text_pooled": "tokens", "text_tokens": "x", "text_feature": "title"}
    for name, value in wrong.items():
        refusal = running.refused("prepare_data", *given, f"--text_encoder={encoder}", f"--{name}={value}")
        assert refusal.flag == f"--{name}", refusal.line
    assert running.refused("prepare_data", *given, "--text_length=4").flag == "--text_length"
    assert running.refused("prepare_data", *given[:1], "--text_encoder=nowhere").flag == "--text_encoder"


def test_a_cache_holds_the_longest_caption_and_the_empty_one(cache: pathlib.Path) -> None:
    found = TextCache(cache, "field")
    assert found.header.length == 9 and found.header.captions == len({*TEXTS, "a circle", EMPTY})
    assert found.empty()["mask"].sum() == 2  # what begins and ends every text


def test_latents_and_texts_are_made_at_once_and_read_together(
    encoder: pathlib.Path, images: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    tiny = {"model.block_out_channels": (8, 16), "model.norm_num_groups": 4, "model.latent_channels": 4}
    decoder = saved.save(autoencoder, tmp_path / "ae", tiny).workdir
    running.call("prepare_data", *preparing(encoder, images, tmp_path / "out"), f"--autoencoder={decoder}")
    fields = {
        "stated": {"name": "text_states", "cache": str(tmp_path / "out" / "texts"), "prefix": "t_"},
        "caption": {"name": "caption"},
    }
    given = {"data.name": f"latents:{tmp_path / 'out'}", "data.label_key": None, "data.fields": fields}
    data = settings.config(mmdit_rf, given, small={}).data
    found = load(data)
    assert found.arrays is not None and found.arrays.keys() >= {"moments", "ids", "t_tokens", "t_pooled"}
    assert sorted(map(len, found.captions(range(8)))) == [1] * 6 + [2] * 2
    of_images = load(latents.images_of(data))  # as evaluate reads them
    assert of_images.captions(range(8)) == found.captions(range(8)) and of_images.arrays is not None
    np.testing.assert_array_equal(of_images.arrays["t_tokens"], found.arrays["t_tokens"])
