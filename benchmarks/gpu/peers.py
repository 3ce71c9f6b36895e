"""PyTorch's networks of the same sizes: compiled, in bfloat16, with the fastest attention that the device has.

A training step is as ours: gradient, its norm cut to 1, AdamW on float32 weights, a moving average.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import time
from collections.abc import Callable
from typing import Any

from benchmarks.gpu.networks import NETWORKS
from benchmarks.gpu.results import started
from benchmarks.gpu.sampling import BATCH, EVALUATIONS, SCALE

SECONDS = 3.0  # that a network is stepped
BACKENDS = ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH")
ORDER = ("DiT-XL/2", "MMDiT, depth 12", "ADM, ImageNet-64", "DiT-B/2", "DiT-L/2", "DiT-S/2", "EDM2-S, 64x64")


def seconds_of(call: Callable[[], Any], at_least: float) -> float:
    """Of one call, after two that compile."""
    import torch

    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for _ in range(2):
        call()
    wait()
    begun, count = time.perf_counter(), 0
    while time.perf_counter() - begun < at_least:
        for _ in range(3):
            call()
        wait()
        count += 3
    return (time.perf_counter() - begun) / count


def fastest_attention(device: str, shape: tuple[int, ...]) -> tuple[Any, dict[str, float]]:
    """(the backend, milliseconds of a product and its gradient by each) for heads (B, heads, N, width)."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q, k, v = (torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    found = {}

    def attend() -> None:
        torch.nn.functional.scaled_dot_product_attention(q, k, v).sum().backward()

    for name in BACKENDS:
        # A device that does not have it raises.
        with sdpa_kernel(getattr(SDPBackend, name)), contextlib.suppress(RuntimeError):
            found[name] = 1000 * seconds_of(attend, 0.05)
    return getattr(SDPBackend, min(found, key=lambda name: found[name])), found


def made(name: str, batch: int, toy: bool) -> tuple[Any, Any, str, str]:
    """(module benchmarks.networks_torch, the network with its inputs, its kind, the device).

    Raises:
        NotImplementedError: there is none.
        ImportError: torch or diffusers is absent.
    """
    if NETWORKS[name].peer is None:
        raise NotImplementedError("absent: no package has this network for PyTorch")
    kind, sizes = NETWORKS[name].peer or ("", {})
    peers = importlib.import_module("benchmarks.networks_torch")
    device = "cuda" if peers.torch.cuda.is_available() else "cpu"
    small = {} if "adm" in kind else {"num_layers": 1}
    peer = peers.NETWORKS[kind](batch, *([8] if toy else []), **(sizes | (small if toy else {})))
    memory = {"memory_format": peers.torch.channels_last} if "adm" in kind else {}
    conditions = {key: value.to(device) for key, value in peer.conditions.items()}
    peer = peer._replace(model=peer.model.to(device, **memory), x=peer.x.to(device, **memory), conditions=conditions)
    return peers, peer, kind, device


def row(name: str, toy: bool) -> dict[str, Any]:
    """A training step of a network."""
    batch = 2 if toy else NETWORKS[name].batch
    peers, peer, kind, device = made(name, batch, toy)
    torch = peers.torch
    sizes = (NETWORKS[name].peer or ("", {}))[1]
    tokens = 256 + (77 if kind == "mmdit" else 0)
    heads = batch, sizes.get("num_attention_heads", 8), tokens, sizes.get("attention_head_dim", 64)
    backend, attention = fastest_attention(device, heads)
    model, target = torch.compile(peer.model.train()), torch.randn_like(peer.x)
    parameters = list(peer.model.parameters())
    averages = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=device == "cuda")

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16):
            answer = model(peer.x, **peer.conditions).sample
        ((answer.float() - target) ** 2).mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, parameters, 1e-4)

    with torch.nn.attention.sdpa_kernel(backend):
        seconds = seconds_of(step, 0.1 if toy else SECONDS)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    figures = {"batch": batch, "images_per_second": batch / seconds, "step_seconds": seconds, "peak_bytes": peak}
    return figures | {"attention": backend.name, "attention_milliseconds": attention} | peers.about(peer)


def sampled(name: str, toy: bool) -> dict[str, Any]:
    """Euler steps with guidance, the batch doubled at each."""
    batch, steps = (2, 2) if toy else (BATCH, EVALUATIONS)
    peers, peer, _, device = made(name, 2 * batch, toy)
    torch, model = peers.torch, peers.torch.compile(peer.model.eval())

    def sample() -> None:
        x = peer.x[:batch]
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16):
            for _ in range(steps):
                with_label, without = model(torch.cat([x, x]), **peer.conditions).sample.float().chunk(2)
                x = x - (without + SCALE * (with_label - without)) / steps

    return {"batch": batch, "evaluations": steps, "images_per_second": batch / seconds_of(sample, 0.1)}


def main() -> None:
    """Measure all, the most interesting ones first."""
    results, toy = started()
    for name in ORDER:
        results.measure(name, functools.partial(row, name, toy), needs=1 if toy else 25)
        if name == "DiT-XL/2":
            results.measure(f"{name}, guided", functools.partial(sampled, name, toy), needs=1 if toy else 20)


if __name__ == "__main__":
    main()
