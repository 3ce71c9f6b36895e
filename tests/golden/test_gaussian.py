"""Training numbers of a DDPM with learned variance: the same in plain numpy, and changed cases fail.

The numpy version has the published implementation's approximations in the likelihood of the first step: a tanh for the
normal distribution, and a smallest probability.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from typing import Any

import numpy as np
import pytest

from tests.golden import gaussian
from tests.golden.case import Case, UnsupportedSource
from tests.golden.cases import compare, load, relative_error

SOURCE = "openai/guided-diffusion gaussian_diffusion.py + respace.py; by tests/golden/test_gaussian.py"
CASES = sorted(pathlib.Path(__file__).parent.glob("gaussian_*.npz"))
Arrays = dict[str, np.ndarray]


def f(x: np.ndarray, t: int) -> np.ndarray:
    a = t / 1000
    return 0.6 * np.tanh(x) * math.cos(a) + 0.3 * np.sin(2 * x + a) + 0.1 * a


def cdf(z: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))


def nats(x0: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Minus the log-probability of the grey level."""
    high, low = cdf((x0 - mean + 1 / 255) / std), cdf((x0 - mean - 1 / 255) / std)
    high, low = np.where(x0 > 0.999, 1, high), np.where(x0 < -0.999, 0, low)
    return -np.log(np.maximum(high - low, 1e-12))


class Example:
    """One image at the i-th visited step."""

    def __init__(self, abar: list[float], visited: list[int], i: int, x0: np.ndarray, eps: np.ndarray) -> None:
        now, before = abar[i], abar[i - 1] if i else 1.0
        beta = 1 - now / before
        self.x_t = math.sqrt(now) * x0 + math.sqrt(1 - now) * eps
        answer, weight = f(self.x_t, visited[i]), (np.tanh(f(self.x_t[::-1], visited[i])) + 1) / 2
        self.pred_xstart = (self.x_t - math.sqrt(1 - now) * answer) / math.sqrt(now)
        from_x0 = beta * math.sqrt(before) / (1 - now)
        from_x = (1 - before) * math.sqrt(1 - beta) / (1 - now)
        self.p_mean = from_x0 * self.pred_xstart + from_x * self.x_t
        self.q_mean = from_x0 * x0 + from_x * self.x_t
        # The first step's posterior has no variance and takes the second's.
        small = beta * (1 - before) / (1 - now) if i else (1 - abar[1] / now) * (1 - now) / (1 - abar[1])
        self.p_log_variance = weight * math.log(beta) + (1 - weight) * math.log(small)
        self.q_log_variance = np.full(x0.shape, math.log(small))
        self.ddim_sample = math.sqrt(before) * self.pred_xstart + math.sqrt(1 - before) * answer
        large, gap = np.exp(self.p_log_variance), np.square(self.q_mean - self.p_mean)
        divergence = 0.5 * (np.log(large / small) + (small + gap) / large - 1)
        terms = divergence if i else nats(x0, self.p_mean, np.sqrt(large))
        self.mse, self.vb = np.mean(np.square(answer - eps)), np.mean(terms) / math.log(2)
        self.loss = self.mse + self.vb


def case(schedule: str, steps: int, respacing: str, visited: list[int], index: list[int], spread: float) -> Case:
    """A case of the numpy version; noise is `spread` wide."""
    random = np.random.default_rng(1)
    x = np.clip(random.normal(size=(len(index), 2, 4, 3)), -1, 1)
    noise = spread * random.normal(size=x.shape)
    abar = [1.0]
    for k in range(steps):
        low, high = (math.cos(((k + i) / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in (0, 1))
        linear = (1e-4 + (0.02 - 1e-4) * k / (steps - 1)) * 1000 / steps
        abar.append(abar[-1] * (1 - (linear if schedule == "linear" else min(1 - high / low, 0.999))))
    kept = [abar[k + 1] for k in visited]
    examples = [Example(kept, visited, i, x[row], noise[row]) for row, i in enumerate(index)]
    names = vars(examples[0])
    outputs = {name: np.stack([getattr(example, name) for example in examples]) for name in names}
    outputs |= dict(alphas_cumprod=np.asarray(kept), use_timesteps=np.asarray(visited))
    hyperparameters = dict(schedule=schedule, steps=steps, respacing=respacing)
    return Case(SOURCE, hyperparameters, dict(x=x, noise=noise, t=np.asarray(index)), outputs, {})


VARIANTS: list[tuple[str, int, str, list[int], list[int], float]] = [
    ("linear", 1000, "ddim50", list(range(0, 1000, 20)), [0, 1, 25, 49], 1.0),
    ("cosine", 1000, "ddim50", list(range(0, 1000, 20)), [0, 1, 25, 49], 1.0),
    ("linear", 400, "", list(range(400)), [0, 1, 200, 399], 1.0),
    ("cosine", 90, "2,3,1", [0, 29, 30, 44, 59, 60], [0, 2, 5], 1.0),  # 44.5 is rounded to even
    ("linear", 1000, "1000", list(range(1000)), [0, 0], 6.0),  # far enough for the smallest probability
]


@pytest.mark.parametrize("variant", VARIANTS)
def test_cases_of_other_settings_agree_with_the_numpy_version(variant: Any) -> None:
    error, tolerance = compare(case(*variant))
    assert error <= tolerance


def test_each_image_agrees_on_its_own_and_no_perturbed_one_does() -> None:
    """A large bound of one image would hide the others' in an error relative to the largest value."""
    whole = load(CASES[0])
    ours = gaussian.run(whole)
    for name, theirs in whole.outputs.items():
        for mine, row in zip(ours[name], theirs, strict=True):
            assert relative_error(np.asarray(mine), row) <= 1e-4, name
            assert relative_error(np.asarray(mine), row * 1.0002) > 1e-4 or not row.any(), name


@pytest.mark.parametrize("name", ["x", "noise", "t"])
def test_a_perturbed_input_fails(name: str) -> None:
    whole = load(CASES[1])
    moved = whole.inputs[name].copy()
    moved.flat[0] += 1 if name == "t" else 0.01
    error, tolerance = compare(dataclasses.replace(whole, inputs=whole.inputs | {name: moved}))
    assert error > tolerance


@pytest.mark.parametrize("fields", [{"schedule": "linear"}, {"steps": 999}, {"respacing": "ddim250"}])
def test_every_setting_matters(fields: dict[str, Any]) -> None:
    whole = load(CASES[0])
    error, tolerance = compare(dataclasses.replace(whole, hyperparameters=whole.hyperparameters | fields))
    assert error > tolerance


@pytest.mark.parametrize(
    "fields", [{"schedule": "sigmoid"}, {"steps": "1000"}, {"respacing": 250}, {"clip_denoised": True}]
)
def test_settings_that_the_package_has_not_are_named(fields: dict[str, Any]) -> None:
    whole = load(CASES[0])
    with pytest.raises(UnsupportedSource, match=next(iter(fields))):
        compare(dataclasses.replace(whole, hyperparameters=whole.hyperparameters | fields))
