"""Laws of the kinds of published weights: every published model is known by its shapes; no kind takes another's."""

from __future__ import annotations

import logging
import pathlib
from typing import Any

import jax.numpy as jnp
import ml_collections
import pytest

from archirf_jax.errors import UserError
from archirf_jax.interop import adm, edm2, sources
from archirf_jax.interop import dit as dit_names
from archirf_jax.models import adm_classifier, dit, edm2_unet, mmdit
from archirf_jax.models.adm_classifier import ADMClassifier
from archirf_jax.models.dit import DiT
from archirf_jax.models.edm2_unet import EDM2UNet
from archirf_jax.models.mmdit import MMDiT
from archirf_jax.objectives.uncertainty import Uncertainty
from archirf_jax.processes.edm import EDM
from archirf_jax.tasks.building import make_model, make_objective, make_process, make_task
from tests.golden.cases import load
from tests.interop import test_adm, test_dit, test_edm2, test_sd3

Shapes = dict[str, tuple[int, ...]]
DITS = [name for name in dit.PRESETS if not name.startswith("tiny")]
SD3S = ["sd3-medium", "sd3.5-medium", "sd3.5-large"]
UNETS = [name for name in adm.PUBLISHED if "low_res_size" not in adm.PUBLISHED[name]]
UPSAMPLERS = [name for name in adm.PUBLISHED if name not in UNETS]

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
CASES = {
    **{"dit_learn_sigma": "dit", "dit_patch4": "dit", "mmdit_sd3": "sd3", "mmdit_sd35_rms": "sd3"},
    **{"adm_class_cond": "adm", "adm_uncond_simple": "adm", "adm_classifier": "adm-classifier"},
    **{"edm2_class_cond": "edm2", "edm2_uncond": "edm2"},
}
ALIKE = {"sit": "dit", "repa": "dit"}  # the same tensors with another meaning
EVERY_HINT = dict(num_heads=2, channels_per_head=16, num_res_blocks=1, image_size=16, num_classes=3)
SHAPES = {name: {key: value.shape for key, value in load(GOLDEN / f"{name}.npz").params.items()} for name in CASES}


def model_of(config: Any) -> Any:
    """The network of a configuration, which names its dtype by a word."""
    return make_model(config).clone(dtype=jnp.float32)


def described(source: str, shapes: Shapes, **hints: Any) -> Any:
    """The configuration as a run holds it, without the groups of training."""
    return ml_collections.ConfigDict(sources.configuration(source, shapes, hints)).lock()


def complaint(source: str, shapes: Shapes, **hints: Any) -> str:
    """The field that the refusal names."""
    with pytest.raises(UserError) as caught:
        sources.configuration(source, shapes, hints)
    assert "\n" not in str(caught.value) and caught.value.field is not None
    return caught.value.field


@pytest.mark.parametrize("name", DITS)
def test_every_published_dit_is_known_by_shapes_alone(name: str) -> None:
    model = DiT(num_classes=1000, learn_sigma=True, **dit.PRESETS[name])
    positions = {"pos_embed": (1, (32 // model.patch_size) ** 2, model.hidden_size)}
    for shapes in (test_dit.published(model), test_dit.published(model) | positions):
        config = described("dit", shapes)
        assert model_of(config) == model and config.task == "diffusion"
        assert (config.data.image_size, config.data.channels, config.data.num_classes) == (32, 4, 1000)
    process: Any = make_process(config)
    assert (process.variance, process.prediction) == ("learned_range", "eps")
    assert make_objective(config, process, {}).condition_dropout == 0.1


@pytest.mark.parametrize("name", SD3S)
def test_every_published_sd3_is_known_by_shapes_alone(name: str) -> None:
    model = MMDiT(num_classes=1, **mmdit.PRESETS[name])
    config = described("sd3", test_sd3.published(model, channels=16))
    assert model_of(config) == model
    assert (config.data.image_size, config.data.channels) == (128, 16)
    objective: Any = make_objective(config, make_process(config), {})
    assert objective.shift == config.sample.grid.shift == 3 and config.sample.grid.name == "shifted"
    assert config.conditioners.text.shapes.to_dict() == {"tokens": (1, 4096), "pooled": (2048,)}


@pytest.mark.parametrize("name", test_adm.quick(*UNETS))
def test_every_published_unet_of_adm_is_known_by_shapes_alone(name: str) -> None:
    config = described("adm", test_adm.published_unet(name))
    # LSUN's networks differ from the unconditional one of ImageNet by dropout alone, which no tensor shows.
    known = name if name != "lsun256" else "imagenet256-unconditional"
    assert model_of(config) == test_adm.unet(known)
    around = adm.PUBLISHED[known]
    assert config.data.image_size == around["image_size"] and config.data.channels == 3
    assert config.sample.classifier_scale == around["classifier_scale"]
    assert (config.sample.grid.spacing, config.sample.threshold) == (around["respacing"], "static")
    process: Any = make_process(config)
    assert process.schedule == around["process"]["schedule"]


@pytest.mark.parametrize("name", test_adm.quick(*UPSAMPLERS))
def test_every_published_upsampler_of_adm_is_known_by_shapes_alone(name: str) -> None:
    shapes = test_adm.published_unet(name)
    config = described("adm-superres", shapes)
    assert model_of(config) == test_adm.unet(name)
    assert config.data.image_size == adm.PUBLISHED[name]["image_size"] and config.data.channels == 3
    low_res = adm.PUBLISHED[name]["low_res_size"]
    assert config.conditioners.low_res.shapes.to_dict() == {"low_res": (low_res, low_res, 3)}
    assert complaint("adm", shapes) == "checkpoint"


@pytest.mark.parametrize("name", test_adm.quick(*adm.PUBLISHED_CLASSIFIERS))
def test_every_published_classifier_of_adm_is_known_by_shapes_alone(name: str) -> None:
    model = ADMClassifier(num_classes=1000, **adm_classifier.PRESETS[name])
    config = described("adm-classifier", test_adm.published(model))
    assert model_of(config) == model and config.task == "classifier"
    assert config.data.image_size == model.image_size == adm.PUBLISHED[name]["image_size"]
    process: Any = make_process(config)
    assert process.schedule == adm.PUBLISHED[name]["process"]["schedule"]


@pytest.mark.parametrize("name", test_edm2.quick(*edm2.PUBLISHED))
def test_every_published_edm2_is_known_by_shapes_alone(name: str) -> None:
    known = edm2.PUBLISHED[name]
    config = described("edm2", test_edm2.published_tensors(name))
    preset = edm2_unet.PRESETS[known["preset"]]
    assert model_of(config) == EDM2UNet(num_classes=1000, dropout=known["dropout"], **preset)
    assert (config.data.image_size, config.data.channels) == (64, known["channels"])
    process: Any = make_process(config)
    objective = make_objective(config, process, {})
    assert isinstance(process, EDM) and isinstance(objective, Uncertainty) and objective.channels == 128
    assert dict(P_mean=objective.P_mean, P_std=objective.P_std) == known["objective"]


@pytest.mark.parametrize("name", CASES)
def test_a_kind_takes_its_own_tensors_and_refuses_those_of_another(name: str) -> None:
    for source, kind in sources.SOURCES.items():
        if ALIKE.get(source, source) == CASES[name]:
            assert described(source, SHAPES[name], **EVERY_HINT).task == kind.task, source
        else:
            assert complaint(source, SHAPES[name], **EVERY_HINT) == "checkpoint", source


@pytest.mark.parametrize("shapes", [{}, {"weight": (3, 4)}, {"x_embedder.proj.weight": (8, 3, 2, 2)}])
def test_tensors_of_no_network_are_refused(shapes: Shapes) -> None:
    for source in sources.SOURCES:
        assert complaint(source, shapes, **EVERY_HINT) == "checkpoint", source


@pytest.mark.parametrize("name", CASES)
def test_tensors_with_fewer_axes_are_refused_or_left_to_the_list_of_wrong_shapes(name: str) -> None:
    for flat in [*SHAPES[name]][:12]:
        shapes = SHAPES[name] | {flat: (7,)}
        try:
            described(CASES[name], shapes, **EVERY_HINT)
        except UserError as e:
            assert "\n" not in str(e)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("dit_patch4", "model.num_heads"),
        ("adm_class_cond", "model.num_heads"),
        ("adm_classifier", "model.num_heads"),
        ("edm2_uncond", "model.channels_per_head"),
    ],
)
def test_what_shapes_do_not_show_is_asked_for(name: str, field: str) -> None:
    assert complaint(CASES[name], SHAPES[name]) == field


@pytest.mark.parametrize(("rows", "classes", "null"), [(1, 1, False), (2, 1, True), (10, 9, True), (1001, 1000, True)])
@pytest.mark.parametrize("hinted", [False, True])
def test_what_is_assumed_of_a_table_of_labels_is_logged(
    rows: int, classes: int, null: bool, hinted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A single row cannot be a null label; published networks have a null label after their classes."""
    shapes = SHAPES["dit_patch4"] | {dit_names.LABELS: (rows, 64)}
    with caplog.at_level(logging.INFO, "absl"):
        config = described("dit", shapes, num_heads=4, **({"num_classes": rows} if hinted else {}))
    assert config.data.num_classes == (rows if hinted else classes)
    assert config.model.null_label == (null and not hinted)
    assert config.objective.condition_dropout == (0.1 if null and not hinted else 0)
    said = [record.getMessage() for record in caplog.records]
    assert any("SiT" in line for line in said)
    assert any("num_classes" in line for line in said) == (null and classes != 1000 and not hinted)


@pytest.mark.parametrize("name", CASES)
def test_an_imported_configuration_builds_its_task(name: str) -> None:
    config = described(CASES[name], SHAPES[name], **EVERY_HINT)
    task: Any = make_task(config)
    assert task.fields["image"].shapes()["image"].shape[-1] == config.data.channels
    if config.task == "diffusion":
        given = {key for each in config.conditioners.values() for key in each.get("shapes", {"label": ()})}
        assert task.needs == given and not config.data.flip
        task.check_guidance(task.sampling)


def test_hints_fill_in_the_size_of_images_and_the_noise_of_adm() -> None:
    hints = dict(num_heads=2, image_size=32, schedule="cosine")
    config = described("adm", SHAPES["adm_uncond_simple"], **hints)
    assert config.data.image_size == 32 and config.process.schedule == "cosine"
    config = described("adm", SHAPES["adm_uncond_simple"], num_heads=2, image_size=None, schedule=None)
    assert config.data.image_size == 64 and config.process.schedule == "linear"
    assert described("dit", SHAPES["dit_patch4"], num_heads=4, image_size=16).data.image_size == 16
    # A table of positions is as large as it is.
    assert described("sd3", SHAPES["mmdit_sd3"]).data.image_size == 12
    assert described("sd3", SHAPES["mmdit_sd3"], image_size=8).data.image_size == 8


@pytest.mark.parametrize(
    ("names", "prefix"),
    [
        (["x_embedder.proj.weight", "pos_embed"], ""),
        (["model.diffusion_model.x_embedder.proj.weight", "model.diffusion_model.pos_embed"], "model.diffusion_model."),
        (["model.diffusion_model.x_embedder.proj.weight", "pos_embed"], ""),
        ([], ""),
    ],
)
def test_what_all_names_begin_with_is_kept_apart(names: list[str], prefix: str) -> None:
    others = ["first_stage_model.decoder.conv_in.weight", "text_encoders.clip_l.logit_scale"] if prefix else []
    found, kept = sources.split_prefix([*names, *others], "sd3")
    assert found == prefix
    assert kept == {name: name.removeprefix("model.diffusion_model.") for name in names}


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "ema.", "module._orig_mod."])
@pytest.mark.parametrize(
    ("source", "inner"), [("dit", ""), ("adm", ""), ("sd3", ""), ("sd3", "model.diffusion_model."), ("edm2", "")]
)
def test_what_all_names_share_is_taken_off_and_kept(source: str, inner: str, prefix: str) -> None:
    names = ["x_embedder.proj.weight", "x_embedder.proj.bias", "final_layer.linear.bias"]
    found, kept = sources.split_prefix([f"{prefix}{inner}{name}" for name in names], source)
    assert found == prefix + inner and list(kept.values()) == names


def test_one_network_twice_in_a_file_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        sources.split_prefix(["pos_embed", "model.diffusion_model.pos_embed"], "sd3")
    assert caught.value.field == "checkpoint"


def test_a_head_for_the_expected_loss_must_be_where_it_was_published_and_nowhere_else() -> None:
    plain = DiT(num_classes=3, **dit.PRESETS["S/2"])
    edm2_network = EDM2UNet(num_classes=3, **edm2_unet.PRESETS["XS"])
    for source, model in (("edm2", edm2_network), ("dit", test_edm2.Uncertain(plain))):
        with pytest.raises(UserError) as caught:
            sources.rename(source, model, 64)
        assert caught.value.field == "objective.name"
    assert sources.rename("dit", plain, 32)(("label_embedding", "embedding"))[0] == "y_embedder.embedding_table.weight"
