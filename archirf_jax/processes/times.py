"""SD3's shift of times (Esser et al. 2024, "Scaling Rectified Flow Transformers", Sec. 5.3.2)."""

from __future__ import annotations

from archirf_jax.processes.base import Times


def shift_time(t: Times, shift: float) -> Times:
    """Times moved towards noise for larger images: shift t / (1 + (shift - 1) t) (SD3, Eq. 23); 0 and 1 stay.

    The denominator is written so that rounding moves neither end.

    Args:
        t: times in [0, 1].
        shift: positive; 1 leaves t as it is, SD3 uses 3 at 1024x1024.
    """
    return shift * t / (shift * t + (1 - t))
