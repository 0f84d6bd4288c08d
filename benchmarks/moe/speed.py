"""Measure expert banks: speed of the backends against dense layers, speed of whole models, memory of the backward pass.

Run: python -m benchmarks.moe.speed [--sizes 44m 244m] [--device cpu|cuda] [--output results/moeut/speed-cpu.json]

A feed-forward bank of each size is compared with a dense layer of equal parameters and one of equal MACs; the backends
of attention banks are compared with each other. All run alternately, and the result contains medians in tokens per
second. The whole model and the paper's dense baseline are trained on random tokens. "of predicted" is the model's speed
divided by the speed that the MACs predict from the baseline. Memory is everything that autograd keeps besides
parameters, in bytes per token, for one layer application.
"""

from __future__ import annotations

import argparse
import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fairseq import models
from fairseq.data import Dictionary
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import fairseq_sharing
from benchmarks.record import environment, write
from fairseq_sharing.moeut.experts import BACKENDS, ExpertOptions, choose_backend
from fairseq_sharing.moeut.kernels import has_kernels
from fairseq_sharing.moeut.peri_layer import LayerSizes, PeriLayer, Step
from fairseq_sharing.moeut.rotary import rotation
from fairseq_sharing.moeut.sigma_moe import SigmaMoE
from fairseq_sharing.moeut.switch_head import SwitchHead

VOCABULARY = 8000
LENGTH = 128  # tokens per sentence when layers are measured
TOLERANCE = 0.95  # the chosen backend counts as fastest above this share of the best speed


def size_of(name: str) -> tuple[LayerSizes, int]:
    """Return the layer sizes and the depth of a registered architecture."""
    args = Namespace(arch="transformer_moeut_tiny" if name == "tiny" else f"transformer_lm_moeut_{name}")
    models.ARCH_CONFIG_REGISTRY[args.arch](args)
    from fairseq_sharing.moeut.options import layer_sizes

    return layer_sizes(args, "decoder"), args.decoder_layers


class Setting:
    """Device and precision of all measurements."""

    def __init__(self, device: str, bf16: bool):
        self.device, self.bf16 = torch.device(device), bf16

    @contextmanager
    def precision(self) -> Iterator[None]:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            yield

    def seconds(self, run: Callable[[], object]) -> float:
        self.wait()
        start = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - start

    @property
    def backends(self) -> list[str]:
        """The backends that are available on the device."""
        return [name for name in BACKENDS if name != "triton" or has_kernels(self.device.type)]

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def in_turn(runs: Mapping[str, Callable[[], object]], count: int, setting: Setting) -> dict[str, float]:
    """Time runs alternately after one warm-up of each; return median seconds."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(count):
        for name, run in runs.items():
            times[name].append(setting.seconds(run))
    return {name: statistics.median(values) for name, values in times.items()}


def step(setting: Setting, length: int, batch: int, rotary_dim: int) -> Step:
    """Make the inputs that a stack passes to its layers."""
    keep = torch.ones(length, batch, dtype=torch.bool, device=setting.device)
    return Step(rotation(0, length, rotary_dim, setting.device), keep, causal=True)


def speeds(layers: dict[str, Callable[[], Tensor]], tokens: int, count: int, setting: Setting) -> dict[str, dict]:
    """Return tokens per second of forward passes, and of forward and backward passes."""

    def forward(layer: Callable[[], Tensor]) -> None:
        with torch.no_grad(), setting.precision():
            layer()

    def both(layer: Callable[[], Tensor]) -> None:
        with setting.precision():
            y = layer()
        y.float().square().sum().backward()

    told: dict[str, Any] = {}
    for title, run in (("forward", forward), ("forward_backward", both)):
        seconds = in_turn({name: partial(run, layer) for name, layer in layers.items()}, count, setting)
        for name, value in seconds.items():
            told.setdefault(name, {})[title] = round(tokens / value, 1)
    return told


def with_choice(measured: dict[str, dict], bank: Tensor, tokens: int, pairs: int, setting: Setting) -> dict:
    """Add the chosen backend, and whether it is the fastest within the tolerance."""
    dtype = torch.bfloat16 if setting.bf16 else torch.float32
    chosen = choose_backend(setting.device, bank.shape, tokens, pairs, dtype)
    best = max(measured[backend]["forward_backward"] for backend in setting.backends)
    fastest = measured[chosen]["forward_backward"] >= TOLERANCE * best
    return {"tokens_per_second": measured, "chosen": chosen, "chosen_is_fastest": fastest}


def feed_forward(sizes: LayerSizes, tokens: int, count: int, setting: Setting) -> dict:
    """Measure the feed-forward bank and dense layers."""
    x = torch.randn(tokens, sizes.embed_dim, device=setting.device, requires_grad=True)
    layers: dict[str, Callable[[], Tensor]] = {}
    for backend in setting.backends:
        bank = SigmaMoE(
            sizes.embed_dim, sizes.ffn_experts, sizes.ffn_top_k, sizes.expert_dim, 0.5, ExpertOptions(backend)
        ).to(setting.device)
        layers[backend] = partial(lambda bank: bank(x, x)[0], bank)
    for title, experts in (("equal parameters", sizes.ffn_experts), ("equal operations", sizes.ffn_top_k)):
        width = experts * sizes.expert_dim
        dense = nn.Sequential(nn.Linear(sizes.embed_dim, width), nn.ReLU(), nn.Linear(width, sizes.embed_dim))
        layers[title] = partial(dense.to(setting.device), x)
    return with_choice(speeds(layers, tokens, count, setting), bank.up, tokens, sizes.ffn_top_k, setting)


def attention(sizes: LayerSizes, tokens: int, count: int, setting: Setting) -> dict:
    """Measure attention with its two banks."""
    batch = tokens // LENGTH
    x = torch.randn(LENGTH, batch, sizes.embed_dim, device=setting.device, requires_grad=True)
    layers: dict[str, Callable[[], Tensor]] = {}
    for backend in setting.backends:
        module = SwitchHead(
            sizes.embed_dim,
            sizes.heads,
            sizes.head_dim,
            sizes.attention_experts,
            sizes.attention_top_k,
            0.5,
            0.0,
            ExpertOptions(backend),
        ).to(setting.device)
        layers[backend] = partial(lambda module: module(x, module.attended(x, x)[0], causal=True)[0], module)
    pairs = sizes.heads * sizes.attention_top_k
    return with_choice(speeds(layers, tokens, count, setting), module.value_experts, tokens, pairs, setting)


def kept_bytes(sizes: LayerSizes, setting: Setting, keep_gathered: bool) -> dict[str, float]:
    """Measure what one layer application keeps for its backward pass, in bytes per token, by backend."""
    told = {}
    for backend in setting.backends:
        options = ExpertOptions(backend, keep_gathered)
        layer = PeriLayer(sizes, 4, options=options).to(setting.device)
        x = torch.randn(LENGTH, 2, sizes.embed_dim, device=setting.device, requires_grad=True)
        own = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}
        storages: dict[int, int] = {}

        def pack(tensor: Tensor, own: set[int] = own, storages: dict[int, int] = storages) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), setting.precision():
            # y keeps these tensors alive, so no address is reused.
            y = layer(x, step(setting, LENGTH, 2, sizes.rotary_dim))[0]
        told[backend] = round(sum(storages.values()) / (2 * LENGTH), 1)
        del y
    return told


def whole_models(
    name: str, layers: int | None, batch: int, length: int, count: int, setting: Setting, profiled: bool
) -> dict:
    """Train MoEUT and its dense baseline alternately on random tokens."""
    dictionary = Dictionary()
    for number in range(VOCABULARY - len(dictionary)):
        dictionary.add_symbol(str(number))
    task = Namespace(source_dictionary=dictionary, target_dictionary=dictionary)
    tokens = torch.randint(4, VOCABULARY, (batch, length), device=setting.device)
    runs, macs = {}, {}
    for title, arch in (("moeut", f"transformer_lm_moeut_{name}"), ("dense", f"transformer_lm_moeut_dense_{name}")):
        args = Namespace(arch=arch, tokens_per_sample=length)
        if layers is not None:
            args.decoder_layers = layers
        models.ARCH_CONFIG_REGISTRY[arch](args)
        model = models.build_model(args, task).to(setting.device).train()
        macs[title] = model.count_macs(length) // length

        def run(model: nn.Module) -> None:
            model.zero_grad(set_to_none=True)
            with setting.precision():
                scores = model(tokens)[0]
            nn.functional.cross_entropy(scores.float().flatten(0, 1), tokens.flatten()).backward()

        runs[title] = partial(run, model)
    seconds = in_turn(runs, count, setting)
    speed = {title: round(tokens.numel() / value, 1) for title, value in seconds.items()}
    predicted = speed["dense"] * macs["dense"] / macs["moeut"]
    return {
        "layers": layers or "all",
        "tokens": tokens.numel(),
        "tokens_per_second": speed,
        "macs_per_token": macs,
        "of_predicted": round(speed["moeut"] / predicted, 3),
        **({"slowest": {title: slowest(run, setting) for title, run in runs.items()}} if profiled else {}),
    }


def slowest(run: Callable[[], object], setting: Setting, count: int = 30) -> list[dict[str, object]]:
    """Return the operations (on a GPU: kernels) that take most of the time of one run."""
    kind = setting.device.type
    with profile(activities={ProfilerActivity.CPU, getattr(ProfilerActivity, kind.upper())}) as profiler:
        run()
        setting.wait()
    times = [
        (event.self_device_time_total if kind == "cuda" else event.self_cpu_time_total, event.count, event.key)
        for event in profiler.key_averages()
        if event.device_type.name == kind.upper()
    ]
    times.sort(reverse=True)
    return [{"name": name[:120], "calls": calls, "ms": round(us / 1000, 3)} for us, calls, name in times[:count]]


def show(name: str, result: dict) -> None:
    """Print the tables of one size."""
    for part in ("feed_forward", "attention"):
        told = result[part]
        print(f"\n{name} {part}: tokens/s, chosen: {told['chosen']}, fastest: {told['chosen_is_fastest']}")
        print(f"  {'':18}{'forward':>12}{'and backward':>14}")
        for title, speed in told["tokens_per_second"].items():
            print(f"  {title:18}{speed['forward']:12,.0f}{speed['forward_backward']:14,.0f}")
    print(f"\n{name}: bytes per token kept for the backward pass of one layer application")
    for title, told in result["kept_bytes_per_token"].items():
        print(f"  gathered inputs {title:18}" + "".join(f"{backend} {value:,.0f}  " for backend, value in told.items()))
    if "training" in result:
        told = result["training"]
        print(f"\n{name} training, {told['layers']} layers: {told['tokens_per_second']} tokens/s")
        print(f"  of the speed that the MACs predict from the dense model: {told['of_predicted']:.0%}")


def main() -> None:
    """Measure, print and optionally write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes",
        nargs="+",
        default=["44m", "244m"],
        help="sizes of the language models; tiny is the decoder of transformer_moeut_tiny, without training",
    )
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu or cuda (default: cuda if available)",
    )
    parser.add_argument(
        "--fp32", action="store_true", help="fp32 instead of bf16 autocast on a GPU; a CPU always uses fp32"
    )
    parser.add_argument("--tokens", type=int, default=1024, help=f"tokens per batch of a layer, a multiple of {LENGTH}")
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each (default: 5)")
    parser.add_argument("--batch", type=int, default=4, help="sentences per training batch")
    parser.add_argument("--length", type=int, default=256, help="tokens per sentence of a training batch")
    parser.add_argument("--layers", type=int, help="number of layers to train (default: all of the size)")
    parser.add_argument("--profile", action="store_true", help="also record the slowest operations of a training step")
    parser.add_argument("--threads", type=int, help="number of CPU threads")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    if args.tokens % LENGTH or args.tokens < LENGTH:
        parser.error(f"--tokens must be a multiple of {LENGTH}, got {args.tokens}")
    if args.threads:
        torch.set_num_threads(args.threads)
    fairseq_sharing.register()
    setting = Setting(args.device, bf16=args.device != "cpu" and not args.fp32)
    result: dict = {
        **environment(),
        "threads": torch.get_num_threads(),
        "precision": "bf16 autocast" if setting.bf16 else "fp32",
        "arguments": {name: value for name, value in vars(args).items() if name != "output"},
        "sizes": {},
    }
    for name in args.sizes:
        torch.manual_seed(1)
        sizes, depth = size_of(name)
        told = {
            "feed_forward": feed_forward(sizes, args.tokens, args.runs, setting),
            "attention": attention(sizes, args.tokens, args.runs, setting),
            "kept_bytes_per_token": {
                "gathered again": kept_bytes(sizes, setting, keep_gathered=False),
                "kept": kept_bytes(sizes, setting, keep_gathered=True),
            },
            "applications": depth,
        }
        if name != "tiny":
            told["training"] = whole_models(
                name, args.layers, args.batch, args.length, args.runs, setting, args.profile
            )
        result["sizes"][name] = told
        show(name, told)
    write(result, args.output)


if __name__ == "__main__":
    main()
