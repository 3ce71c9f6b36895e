"""Texts that a run draws: each has its images, other words make others, and a run without text refuses them."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

import archirf_jax as arf
from archirf_jax.data.tokenizer import FILE
from archirf_jax.data.vocabulary import of_words
from archirf_jax.errors import UserError
from archirf_jax.launch.prompts import check_tokenizer
from configs import dit_rf, scenes_rf
from tests import running
from tests.commands import saved

TEXTS = ("a red seven above a blue two", "a blue two above a red seven", "a red seven")
SMALL = {
    **{"model.network.hidden_size": 8, "model.network.depth": 1, "model.network.depth_single": 0},
    **{"model.network.num_heads": 2, "model.network.context_width": 8, "model.network.pooled_width": 8},
    **{"model.text.hidden_size": 8, "model.text.depth": 1, "model.text.num_heads": 2, "data.num_classes": 3},
    **{"sample.steps": 2, "data.image_size": 4},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = saved.save(scenes_rf, tmp_path_factory.mktemp("scenes") / "run", SMALL, spread=0.3).workdir
    (workdir / FILE).write_text(of_words(TEXTS, length=scenes_rf.WORDS).content)
    return workdir


def test_each_text_has_its_images_whatever_stands_beside_it(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n\n")
    several = ("sample", f"--workdir={run}", "--per_class=2", f"--prompts={tmp_path / 'texts.txt'}")
    running.call(*several, f"--out={tmp_path / 'all.npz'}")
    found = np.load(tmp_path / "all.npz")
    assert found["prompts"].tolist() == [text for text in TEXTS for _ in range(2)]
    assert found["labels"].tolist() == [0, 0, 1, 1, 2, 2]
    images = found["images"].reshape(3, 2, 4, 4, 3)
    one = arf.open(run).sample(prompts=[TEXTS[0]], per_class=2)
    np.testing.assert_array_equal(one, images[0])
    same_noise = arf.open(run).sample(prompts=[TEXTS[1]], per_class=2)  # of the first text
    assert np.any(same_noise != images[0])


def test_prompts_of_a_file_may_have_a_scale_and_a_seed_of_their_own(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    lines = [TEXTS[0], json.dumps({"prompt": TEXTS[0], "guidance_scale": 6, "seed": 5}), TEXTS[1]]
    lines.append(json.dumps({"prompt": TEXTS[0], "seed": 5}))
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    flags = (f"--workdir={run}", "--per_prompt=1", f"--out={tmp_path / 'x.npz'}")
    running.call("sample", *flags, f"--prompts={tmp_path / 'texts.jsonl'}")
    found = np.load(tmp_path / "x.npz")
    usual = arf.open(run).sample(prompts=[TEXTS[0], "", TEXTS[1]], per_class=1)
    np.testing.assert_array_equal(found["images"][[0, 2]], usual[[0, 2]])
    scaled, seeded = (
        arf.open(run).sample(prompts=[TEXTS[0]], per_class=1, seed=5, **how) for how in ({"guidance_scale": 6.0}, {})
    )
    np.testing.assert_array_equal(found["images"][[1, 3]], np.concatenate([scaled, seeded]))
    assert np.any(scaled != seeded) and found["prompts"].tolist() == [TEXTS[0], TEXTS[0], TEXTS[1], TEXTS[0]]
    running.call("sample", *flags, *(f"--prompt={text}" for text in (TEXTS[0], "x, y", TEXTS[0])))
    again = np.load(tmp_path / "x.npz")
    assert again["prompts"].tolist() == [TEXTS[0], "x, y", TEXTS[0]] and np.any(
        again["images"][0] != again["images"][2]
    )


def test_guidance_leads_away_from_a_negative_prompt(run: pathlib.Path) -> None:
    opened = arf.open(run)
    usual, away = (
        opened.sample(prompts=[TEXTS[0]], per_class=1, negative_prompt=text) for text in (None, "a blue two")
    )
    assert np.any(usual != away)
    # Away from the text itself there is no difference that guidance could enlarge.
    same = opened.sample(prompts=[TEXTS[0]], per_class=1, negative_prompt=TEXTS[0], guidance_scale=4.0)
    plain = opened.sample(prompts=[TEXTS[0]], per_class=1, guidance_scale=1.0)
    np.testing.assert_allclose(same.astype(int), plain.astype(int), atol=1)


def test_what_a_run_does_not_take_is_refused(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    digits = saved.save(dit_rf, tmp_path / "digits", saved.TINY_DIT).workdir
    (tmp_path / "none.txt").write_text("\n")
    assert running.refused("sample", f"--workdir={digits}", "--prompt=a seven").flag == "--prompt"
    assert running.refused("sample", f"--workdir={run}", "--prompt=a", "--labels=0").flag == "--labels"
    assert running.refused("sample", f"--workdir={run}", f"--prompts={tmp_path / 'none.txt'}").flag == "--prompts"
    for line in ('{"prompt": 3}', '{"prompt": "a", "seed": -1}', '{"prompt": "a", "scale": 2}', "{", '{"seed": 1}'):
        (tmp_path / "wrong.jsonl").write_text(line)
        assert (
            running.refused("sample", f"--workdir={run}", f"--prompts={tmp_path / 'wrong.jsonl'}").flag == "--prompts"
        )
    refused = running.refused("sample", f"--workdir={run}", "--negative_prompt=a", "--labels=0")
    assert refused.flag == "--negative_prompt"
    for prompts in ("a red seven", []):
        with pytest.raises(UserError) as caught:
            arf.open(run).sample(prompts=prompts)
        assert caught.value.field == "prompts"


def test_a_vocabulary_that_is_too_small_for_the_captions_is_refused() -> None:
    config, known = scenes_rf.get_config(), of_words(TEXTS)
    check_tokenizer(config, known, {})
    config.model.text.vocab_size = known.largest
    with pytest.raises(UserError) as caught:
        check_tokenizer(config, known, {})
    assert caught.value.field == "model.text.vocab_size"
