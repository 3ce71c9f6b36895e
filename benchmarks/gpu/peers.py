"""One of PyTorch's networks of the same sizes: compiled, in bfloat16, with the fastest attention that the device has.

A training step is as ours: weights are normalized where the network asks for it, gradient, its norm cut to 1, AdamW on
float32 weights, a moving average. The loss is a squared error, without what ours adds to it for ADM and EDM2.
"""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Callable
from typing import Any

from benchmarks.gpu.networks import NETWORKS
from benchmarks.gpu.results import FAILURES, Results, of_exception, started
from benchmarks.gpu.sampling import BATCH, EVALUATIONS, SCALE

SECONDS = 3.0  # that a network is stepped
BACKENDS = ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH")
SAMPLED = "DiT-XL/2"


def seconds_of(call: Callable[[], Any], at_least: float, warm: int = 2) -> float:
    """Of one call, after some that compile."""
    import torch

    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for _ in range(warm):
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


def made(name: str, batch: int, toy: bool) -> tuple[Any, Any, str]:
    """(module benchmarks.networks_torch, the network with its inputs, the device).

    Raises:
        ImportError: torch or diffusers is absent.
    """
    kind, sizes, small = NETWORKS[name].peer
    peers: Any = importlib.import_module("benchmarks.networks_torch")
    device = "cuda" if peers.torch.cuda.is_available() else "cpu"
    peers.torch.backends.cudnn.benchmark = True  # the fastest of its convolutions
    peer = peers.NETWORKS[kind](batch, *([8] if toy else []), **(sizes | (small if toy else {})))
    memory = {"memory_format": peers.torch.channels_last} if peer.channels_last else {}
    conditions = {key: value.to(device) for key, value in peer.conditions.items()}
    peer = peer._replace(model=peer.model.to(device, **memory), x=peer.x.to(device, **memory), conditions=conditions)
    return peers, peer, device


def prepared(name: str, toy: bool) -> tuple[Callable[[], Any], dict[str, Any]]:
    """(a compiled training step, what it is)."""
    batch = 2 if toy else NETWORKS[name].batch
    peers, peer, device = made(name, batch, toy)
    torch = peers.torch
    backend, attention = fastest_attention(device, (batch, *peer.attention))
    model, target = torch.compile(peer.model.train()), torch.randn_like(peer.x)
    parameters = list(peer.model.parameters())
    normalize = getattr(peer.model, "normalize_weights", None)
    normalize = torch.compile(normalize) if normalize else lambda: None
    averages = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=device == "cuda")

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        normalize()
        with torch.nn.attention.sdpa_kernel(backend):
            with torch.autocast(device, torch.bfloat16):
                answer = peers.answer(model, peer.x, peer.conditions)
            ((answer.float() - target) ** 2).mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, parameters, 1e-4)

    begun = time.perf_counter()
    seconds_of(step, 0.01)
    about: dict[str, Any] = {"batch": batch, "compile_seconds": time.perf_counter() - begun}
    about |= {"attention": backend.name, "attention_milliseconds": attention}
    return step, about | peers.about(peer)


def sampler(name: str, toy: bool, attention: str) -> tuple[Callable[[], Any], int]:
    """(compiled Euler steps with guidance, the batch doubled at each; images at once), with that attention."""
    batch, steps = (2, 2) if toy else (BATCH, EVALUATIONS)
    peers, peer, device = made(name, 2 * batch, toy)
    torch, model = peers.torch, peers.torch.compile(peer.model.eval())
    backend = getattr(torch.nn.attention.SDPBackend, attention)

    def sample() -> None:
        x = peer.x[:batch]
        with torch.nn.attention.sdpa_kernel(backend), torch.inference_mode(), torch.autocast(device, torch.bfloat16):
            for _ in range(steps):
                with_label, without = peers.answer(model, torch.cat([x, x]), peer.conditions).float().chunk(2)
                x = x - (without + SCALE * (with_label - without)) / steps

    sample()
    return sample, batch


def measure(results: Results, name: str, toy: bool) -> None:
    """Compile, wait for the turn, measure."""
    import torch

    sampled = f"sampling, {name}, guided"
    step, about = prepared(name, toy)
    guided, batch = sampler(name, toy, about["attention"]) if name == SAMPLED and results.wants(sampled) else (None, 0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # it belongs to those who measure before
    results.await_turn()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    seconds = seconds_of(step, 0.1 if toy else SECONDS)
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    figures = {"images_per_second": about["batch"] / seconds, "step_seconds": seconds, "peak_bytes": peak}
    results.add(f"step, {name}", about | figures)
    if guided is not None:
        rate = batch / seconds_of(guided, 0.1, warm=1)
        results.add(sampled, {"batch": batch, "images_per_second": rate})


def main() -> None:
    """Measure the network that is named."""
    results, toy, args = started("--network")
    try:
        measure(results, args.network, toy)
    except FAILURES as e:
        results.add(f"step, {args.network}", {"error": of_exception(e)})


if __name__ == "__main__":
    main()
