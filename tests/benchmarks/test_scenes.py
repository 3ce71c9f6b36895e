"""The judge of scenes: it knows real ones, sees a wrong colour, digit or order, and asks for every pair equally."""

from __future__ import annotations

import collections
import pathlib
import types

import numpy as np
import pytest
from sklearn.datasets import load_digits

from archirf_jax.data import composition
from archirf_jax.data.composition import PAIRS, Thing
from archirf_jax.evaluation import distances
from benchmarks import scenes


@pytest.fixture(scope="module")
def judge() -> scenes.Judge:
    return scenes.Judge()


def test_real_scenes_are_right_nearly_always_and_swapped_ones_never(judge: scenes.Judge) -> None:
    found = scenes.real(judge)
    assert found["single"] > 0.9 and found["two"] > 0.85 and found["colours"] > 0.99
    assert found["two_swapped"] < 0.01


def test_a_wrong_object_is_seen(judge: scenes.Judge) -> None:
    digits = load_digits()
    drawn = composition.compose("train", digits.target, count=60)  # digits that the judge knows
    images = np.stack([composition.render(scene, digits.images) for scene in drawn])
    arrangements = [scene.arrangement for scene in drawn]
    seen = judge.objects(images, arrangements)
    asked = [(scene.arrangement, scene.things) for scene in drawn]
    assert min(scenes.shares(asked, seen)[kind] for kind in ("two", "single")) > 0.9
    for change in (dict(colour="grey"), dict(digit=-1)):
        wrong = [(kind, (Thing(*things[0])._replace(**change), *things[1:])) for kind, things in asked]
        assert scenes.shares(wrong, seen)["two"] == scenes.shares(wrong, seen)["single"] == 0


def test_prompts_ask_for_every_pair_and_say_what_they_ask_for() -> None:
    found = scenes.prompts()
    assert len(found) == 500 and sum(kind == "single" for _, (kind, _) in found) == 100
    counts = collections.Counter(tuple(thing) for _, (_, things) in found for thing in things)
    assert counts.keys() == set(PAIRS) and max(counts.values()) - min(counts.values()) <= 1
    assert all(composition.parse(text) == asked for text, asked in found)


def test_real_scenes_of_prompts_are_what_they_say_and_nearer_to_others_than_paler_ones(judge: scenes.Judge) -> None:
    asked = [what for _, what in scenes.prompts()]
    first, other = (scenes.real_scenes(asked, seed) for seed in (0, 1))
    right = scenes.shares(asked, judge.objects(first, [arrangement for arrangement, _ in asked]))
    assert right["single"] > 0.8 and right["two"] > 0.8 and np.any(first != other)
    of_first = scenes.moments_of(first)
    near = distances.frechet(scenes.moments_of(other), of_first)
    assert 0 < near < 0.5 * distances.frechet(scenes.moments_of(other // 10 * 8), of_first)


def test_who_draws_real_scenes_is_as_good_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def sample(prompts: list[str], guidance_scale: float, **how: object) -> np.ndarray:
        images = scenes.real_scenes([composition.parse(text) for text in prompts], seed=2)
        return images if guidance_scale == 1 else images // 10 * 8

    monkeypatch.setattr(scenes, "open_run", lambda workdir: types.SimpleNamespace(step=3, sample=sample))
    found = scenes.measure(pathlib.Path("run"), [1.0, 2.0])
    real, drawn, paler = found["real"], found["scales"]["1.0"], found["scales"]["2.0"]
    assert all(abs(drawn[kind] - real[kind]) < 0.1 for kind in ("single", "two"))
    assert 0.5 * real["frechet"] < drawn["frechet"] < 2 * real["frechet"] < paler["frechet"]


def test_the_plot_shows_every_scale() -> None:
    figures = {"single": 0.9, "two": 0.8, "two_withheld": 0.7, "frechet": 2.0}
    panels = scenes.plot({"scales": {"1.0": figures, "4.0": figures}, "real": figures}).axes
    assert [list(panel.get_lines()[0].get_xdata()) for panel in panels] == [[1, 4], [1, 4]]
