"""What a process of a command is given before it computes: garbage collected seldom, memory kept on a CPU."""

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


def set_up() -> None:
    """Do both; to be called before JAX looks for its devices."""
    gc.set_threshold(*SELDOM)
    keep_memory()


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
