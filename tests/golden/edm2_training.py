"""Cases of EDM2's training: averages with power-function profiles, their reconstruction, and the learning rate."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from archirf_jax.training import optimizers, power_ema
from tests.golden.case import Case, settings

DEFAULTS = dict(out_ofs=0, out_std=0.05, batch_size=2048, ref_lr=0.01, ref_batches=70_000, rampup_Mimg=10)


def run(case: Case) -> dict[str, np.ndarray]:
    """What the case holds of `OUTPUTS`."""
    return {name: OUTPUTS[name](case) for name in case.outputs}


def coefficients(case: Case) -> np.ndarray:
    """Weights of stored averages."""
    h = settings("hyperparameter", case.hyperparameters, DEFAULTS)
    times, stds = case.inputs["posthoc_in_ofs"], case.inputs["posthoc_in_std"]
    return power_ema.coefficients(times, stds, h["out_ofs"], h["out_std"])


def learning_rate(case: Case) -> np.ndarray:
    """Of images seen."""
    h = settings("hyperparameter", case.hyperparameters, DEFAULTS)
    rates = (h["ref_lr"], h["batch_size"], h["ref_batches"], h["rampup_Mimg"] * 1e6)
    return optimizers.edm2_learning_rate(case.inputs["images_seen"], *rates)


def exponents(case: Case) -> np.ndarray:
    """Of relative widths."""
    return np.asarray([power_ema.exponent(std) for std in case.inputs["std"]])


def betas(case: Case) -> np.ndarray:
    """Of rows of relative width, time and time since."""
    return np.asarray([power_ema.beta(*row) for row in case.inputs["beta_args"]])


OUTPUTS: dict[str, Callable[[Case], np.ndarray]] = {
    "posthoc_coefficients": coefficients,
    "learning_rate": learning_rate,
    "std_to_exp": exponents,
    "beta": betas,
}
