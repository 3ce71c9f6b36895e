"""What a process is given before it computes: garbage collected seldom, memory kept on a CPU, flags for a GPU."""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import os

# Of garbage collection: tracing makes many objects and hardly any garbage, and looking for it took a fifth of its time.
SELDOM = (100_000, 20, 100)
# Numbers of mallopt(3) and their values: every block from the one heap, and none of it (-1) back to the system.
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8
KEPT = {TRIM_THRESHOLD: -1, MMAP_MAX: 0, ARENA_MAX: 1}
CHOSEN = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")  # the user's own choices, and how they begin
ACCELERATORS = ("jax_plugins", "libtpu")  # packages that bring JAX another device than the CPU
# Kernels that multiply the same embedding, such as those of all blocks' modulations, stay apart. XLA lays them together
# at every step of a sampler, and for one image that is a quarter of what a step reads and writes.
GPU_FLAGS = "--xla_gpu_dot_merger_threshold_mb=0"


def set_up() -> None:
    """Do all of it; to be called before JAX looks for its devices."""
    gc.set_threshold(*SELDOM)
    keep_memory()
    set_gpu_flags()


def set_gpu_flags() -> None:
    """Put GPU_FLAGS before those of the user, which count, where JAX may compute on a GPU."""
    given = os.environ.get("XLA_FLAGS", "")
    if not _on_cpu() and importlib.util.find_spec("jax_plugins") and not given.startswith(GPU_FLAGS):
        os.environ["XLA_FLAGS"] = f"{GPU_FLAGS} {given}".strip()


def keep_memory() -> None:
    """Keep what a step on a CPU gives back for the next one.

    XLA asks for the whole working memory of a step anew. glibc gives blocks of that size back to the system, which
    clears and maps every page again at the next step: up to a fifth of a training's time. Only threads that begin
    afterwards keep theirs, so call it before JAX looks for its devices. It does nothing where JAX may compute on an
    accelerator, without glibc, and where the environment has one of CHOSEN.
    """
    if not _on_cpu() or not _has_glibc() or any(name.startswith(CHOSEN) for name in os.environ):
        return
    library = ctypes.CDLL(None)
    for number, value in KEPT.items():
        library.mallopt(number, value)


def _on_cpu() -> bool:
    asked = os.environ.get("JAX_PLATFORMS")
    return asked == "cpu" if asked else not any(map(importlib.util.find_spec, ACCELERATORS))


def _has_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, OSError, ValueError):  # Windows, other systems, other C libraries
        return False
