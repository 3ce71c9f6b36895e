"""What the files of settings of published systems say: of the parts, of the process and of how it is sampled."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from archirf_jax.errors import UserError
from archirf_jax.interop import part_settings, published_folder, scheduler_settings
from archirf_jax.interop.scheduler_settings import process_fields, sample_fields
from archirf_jax.processes.ddpm import DDPM
from archirf_jax.processes.rectified_flow import RectifiedFlow
from archirf_jax.samplers.config import SamplerConfig

PNDM = dict(_class_name="PNDMScheduler", beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (PNDM, dict(schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction="eps")),
        ({}, dict(schedule="linear", beta_start=0.0001, beta_end=0.02, prediction="eps", steps=1000)),
        (
            dict(prediction_type="v_prediction", rescale_betas_zero_snr=True),
            dict(prediction="v", zero_terminal_snr=True),
        ),
        (dict(prediction_type="sample", num_train_timesteps=50), dict(prediction="x0", steps=50)),
        (dict(beta_schedule="squaredcos_cap_v2", beta_start=0.1), dict(schedule="cosine")),
    ],
)
def test_a_scheduler_decides_the_process(settings: dict[str, Any], expected: dict[str, Any]) -> None:
    found = process_fields(settings)
    assert {name: found[name] for name in expected} == expected and found.pop("name") == "ddpm"
    DDPM(**found)


@pytest.mark.parametrize(
    ("settings", "solver", "grid"),
    [
        (PNDM | dict(steps_offset=1), dict(name="ddim"), dict(name="leading", offset=1, ends_at_data=False)),
        (
            dict(_class_name="DDIMScheduler", timestep_spacing="trailing", steps_offset=1),
            dict(name="ddim"),
            dict(name="trailing", ends_at_data=True),
        ),
        (
            dict(_class_name="DDIMScheduler", set_alpha_to_one=False),
            dict(name="ddim"),
            dict(name="leading", offset=0, ends_at_data=False),
        ),
        (
            dict(_class_name="EulerDiscreteScheduler", timestep_spacing="leading", steps_offset=1),
            dict(name="euler"),
            dict(name="leading", offset=1, ends_at_data=True),
        ),
        (dict(_class_name="EulerAncestralDiscreteScheduler"), dict(name="ddim", eta=1.0), dict(name="linspace")),
        (dict(_class_name="DPMSolverMultistepScheduler"), dict(name="dpmpp_2m"), dict(name="linspace", skipped=1)),
        (
            dict(_class_name="DPMSolverMultistepScheduler", timestep_spacing="leading", steps_offset=1),
            dict(name="dpmpp_2m"),
            dict(name="leading", offset=1, ends_at_data=True, skipped=1),
        ),
        (dict(_class_name="EulerDiscreteScheduler", use_karras_sigmas=True), dict(name="euler"), dict(name="karras")),
        (
            dict(_class_name="UniPCMultistepScheduler"),
            dict(name="ddim"),
            dict(name="leading", offset=0, ends_at_data=True),
        ),
    ],
)
def test_a_scheduler_decides_how_is_sampled(
    settings: dict[str, Any], solver: dict[str, Any], grid: dict[str, Any]
) -> None:
    found = sample_fields(settings)
    assert found == dict(solver=solver, grid=grid)
    SamplerConfig.from_config(found | {"steps": 5}).make_grid(DDPM())


def test_the_first_step_may_be_the_pipelines() -> None:
    assert sample_fields(PNDM | dict(steps_offset=0), offset=1)["grid"]["offset"] == 1


@pytest.mark.parametrize(
    "settings",
    [dict(beta_schedule="sigmoid"), dict(prediction_type="flow_prediction"), dict(trained_betas=[0.1, 0.2])],
)
def test_a_process_that_is_not_here_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        scheduler_settings.process_fields(settings)
    assert caught.value.field == "checkpoint" and next(iter(settings)) in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "grid"),
    [
        (dict(shift=3), dict(name="shifted", shift=3.0, last=3 / 1002)),
        ({}, dict(name="shifted", shift=1.0, last=1 / 1000)),
        (dict(num_train_timesteps=10, shift_terminal=None), dict(name="shifted", shift=1.0, last=1 / 10)),
        (dict(use_dynamic_shifting=True, shift=3.0), dict(name="dynamic_shift", image_seq_len=64, last=1 / 1000)),
        (
            dict(use_dynamic_shifting=True, base_shift=0.4, max_image_seq_len=8192),
            dict(name="dynamic_shift", image_seq_len=64, last=1 / 1000, base_shift=0.4, max_image_seq_len=8192),
        ),
    ],
)
def test_a_flows_scheduler_decides_times_and_process(settings: dict[str, Any], grid: dict[str, Any]) -> None:
    settings = dict(_class_name=scheduler_settings.FLOW) | settings
    found = scheduler_settings.flow_sample_fields(settings, tokens=64)
    assert found["solver"] == dict(name="euler") and found["grid"].pop("last") == pytest.approx(grid.pop("last"))
    assert found["grid"] == grid
    process = scheduler_settings.flow_process_fields(settings)
    assert process.pop("name") == "rectified_flow"
    flow = RectifiedFlow(**process)
    assert flow.time_scale == settings.get("num_train_timesteps", 1000)
    SamplerConfig.from_config(found | {"steps": 5}).make_grid(flow)


@pytest.mark.parametrize("settings", [dict(shift_terminal=0.1), dict(use_beta_sigmas=True), dict(invert_sigmas=True)])
def test_a_flow_over_times_that_are_not_here_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        scheduler_settings.flow_sample_fields(settings, tokens=64)
    assert caught.value.field == "checkpoint" and next(iter(settings)) in str(caught.value)


@pytest.mark.parametrize(
    ("index", "found"),
    [
        ({}, True),
        (dict(text_encoder_3=["transformers", "T5EncoderModel"]), True),
        (dict(text_encoder_3=[None, None]), False),
        (dict(text_encoder_3=None), False),
    ],
)
def test_an_encoder_that_may_be_left_out_is_taken_where_it_is(
    index: dict[str, Any], found: bool, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert "text_3" not in published_folder.parts(tmp_path, "sd3")
    (tmp_path / "text_encoder_3").mkdir()
    assert ("text_3" in published_folder.parts(tmp_path, "sd3")) == found
    assert list(published_folder.parts(tmp_path, "sdxl")) == ["autoencoder", "text", "text_2"]


def test_settings_say_what_shapes_do_not_show() -> None:
    transformer = part_settings.hints("sd3", dict(num_attention_heads=24, sample_size=128, qk_norm=None))
    assert transformer == dict(num_heads=24, image_size=128)
    unet = part_settings.hints("sdxl", dict(attention_head_dim=[5, 10], addition_time_embed_dim=256, sample_size=128))
    assert unet == dict(num_heads=(5, 10), size_width=256, image_size=128)
    text = part_settings.hints("clip-text", dict(hidden_act="gelu", num_attention_heads=16, eos_token_id=2))
    assert text == dict(num_heads=16, activation="gelu")  # the end is the largest id
    assert part_settings.hints("clip-text", dict(eos_token_id=49_407)) == dict(end_id=49_407)
    vae = part_settings.hints("vae", dict(scaling_factor=0.13025, shift_factor=None, latents_mean=[1, 2]))
    assert vae == dict(scaling_factor=0.13025, latents_mean=(1, 2))


@pytest.mark.parametrize(
    ("source", "settings", "fields"),
    [
        ("sd15", dict(cross_attention_dim=1024), dict(context_width=768)),
        ("sd15", dict(layers_per_block=2), dict(layers_per_block=(2, 1))),
        (
            "sdxl",
            dict(down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"], transformer_layers_per_block=[1, 2]),
            dict(transformer_depth=(0, 10)),
        ),
        ("clip-text", dict(num_hidden_layers=24), dict(depth=23)),
        ("vae", dict(latent_channels=16), dict(latent_channels=4)),
        ("t5", dict(d_model=4096), dict(hidden_size=2048)),
        ("sd3", dict(dual_attention_layers=[0, 1]), dict(dual_layers=())),
    ],
)
def test_settings_that_the_weights_contradict_are_refused(
    source: str, settings: dict[str, Any], fields: dict[str, Any]
) -> None:
    with pytest.raises(UserError) as caught:
        part_settings.check_said(source, settings, fields)
    assert caught.value.field == "checkpoint"


def test_settings_lie_in_the_folder_of_the_weights(tmp_path: pathlib.Path) -> None:
    assert part_settings.beside("clip-text", tmp_path) == {} == part_settings.hints("clip-text", {})
    whole = dict(model_type="clip", text_config=dict(num_attention_heads=12, hidden_act="gelu"))
    (tmp_path / "config.json").write_text(json.dumps(whole))
    found = part_settings.hints("clip-text", part_settings.beside("clip-text", tmp_path))
    assert found == dict(num_heads=12, activation="gelu")
    assert part_settings.beside("dit", tmp_path) == {}  # whose settings are not read
    (tmp_path / "weights.safetensors").touch()
    assert part_settings.beside("vae", tmp_path / "weights.safetensors") == {}


def test_settings_that_say_the_same_in_other_words_are_taken() -> None:
    said = dict(layers_per_block=[2, 2], down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"])
    part_settings.check_said("sd15", said, dict(layers_per_block=2, transformer_depth=(1, 0)))
    part_settings.check_said("clip-text", dict(projection_dim=512), dict(projection_size=None))


def test_the_file_of_full_precision_is_taken_where_there_are_several(tmp_path: pathlib.Path) -> None:
    names = ["model.fp16.safetensors", "model.safetensors.index.json", "diffusion_pytorch_model.safetensors"]
    for name in names:
        (tmp_path / name).touch()
        assert published_folder.weights(tmp_path).name == name  # each is better than those before it
    assert published_folder.single("model.safetensors.index.fp16.json") == "model.fp16.safetensors"
    assert published_folder.single("model.safetensors.index.json") == "model.safetensors"
    assert published_folder.single(names[0]) == names[0]


def test_the_token_that_fills_texts_is_that_of_the_older_file_unless_the_newer_lists_tokens(
    tmp_path: pathlib.Path,
) -> None:
    assert published_folder.padding(tmp_path) is None
    newer, older = tmp_path / "tokenizer_config.json", tmp_path / "special_tokens_map.json"
    newer.write_text(json.dumps(dict(pad_token="<|endoftext|>")))
    assert published_folder.padding(tmp_path) == "<|endoftext|>"
    older.write_text(json.dumps(dict(pad_token={"content": "!"})))
    assert published_folder.padding(tmp_path) == "!"
    newer.write_text(json.dumps(dict(pad_token="<|endoftext|>", added_tokens_decoder={})))
    assert published_folder.padding(tmp_path) == "<|endoftext|>"
    older.write_text("[")
    newer.write_text("{}")
    with pytest.raises(UserError):
        published_folder.padding(tmp_path)
