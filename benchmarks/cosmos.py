"""How fast is the Cosmos architecture at its published size, streamed, and what does each part of that gain?

    python benchmarks/cosmos.py [--device cuda] [--out benchmarks/cosmos.json]     # needs an H200 or the like
    python benchmarks/cosmos.py --tiny --device cpu --out /tmp/cosmos.json         # the same code on a small network

Random weights: speed does not depend on them. No ray, mani_skill or lerobot. Measured in rounds that take every row in
turn; a ratio is the median over rounds of the ratio within each, with its lowest and highest.

- ``video``: 25 frames at 256x256 and 480x832 as the published codec has them, that is six latents of 32x32 and 60x104
  after a given one, each made in sight of all before it (a context of seven), by the 2B architecture in bf16, with and
  without `AutoencoderKLWan` decoding them. Rows: 1, 2 and 4 sampler steps; the memory carried along (cached) or
  computed anew at every sampler step; eager or `torch.compile`; diffusers' own transformer and Euler scheduler doing
  the same without a memory (stock, a latent at a time); and those denoising all six latents at once, as the published
  pipeline does, after which no action could be chosen between them (stock, all at once).
- ``environment``: 25 frames as our environments have them, a latent and a decoding for each (`WanCodec`).
- ``batch``: frames per second of a 100 M network on 64 px pixels, one sampler step, many rows.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldloop.core.context_frames import shift_frames
from worldloop.world_model.cosmos import CLEAN_TIME, CosmosConfig, CosmosDenoiser, CosmosMemory
from worldloop.world_model.denoiser import Conditioning, DenoiserOutput
from worldloop.world_model.sampler import sample

PUBLISHED = CosmosConfig(
    patch=2, num_layers=28, num_heads=16, head_dim=128, adaln_lora_dim=256, rope_scale=(1.0, 3.0, 3.0),
    concat_padding_mask=True, num_context_frames=7, prediction="velocity", num_poses=0,
)  # fmt: skip
CAMERA = "camera"
HUNDRED_MILLION = CosmosConfig(patch=8, num_layers=12, num_heads=12, head_dim=64, adaln_lora_dim=128, num_poses=0)
TINY: dict[str, Any] = {"num_layers": 2, "num_heads": 2, "head_dim": 16, "adaln_lora_dim": 8}
SIZES = {"256x256": (32, 32), "480x832": (60, 104)}
TINY_SIZE = (8, 8)
NUM_LATENTS, NUM_FRAMES = 6, 25  # after the given one: 1 + 4 * 6 frames
TEXT_TOKENS, TEXT_DIM = 512, 1024
PROPRIO_DIM, ACTION_DIM, ACTIONS_PER_FRAME = 25, 7, 4
BARS = {"256x256": 0.4, "480x832": 0.7, "batch": 1000.0}  # seconds, seconds, frames per second on an H200


@dataclass
class Machine:
    device: torch.device
    dtype: torch.dtype

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def peak_mib(self) -> float | None:
        return round(torch.cuda.max_memory_allocated() / 2**20) if self.device.type == "cuda" else None


class Stream:
    """Imagines latents one after the other with a fixed action; every way to do so is a method."""

    def __init__(
        self, config: CosmosConfig, channels: int, size: tuple[int, int], text_tokens: int, batch: int, on: Machine
    ) -> None:
        torch.manual_seed(0)
        with torch.device(on.device):
            text_dim = TEXT_DIM if text_tokens else 32
            denoiser = CosmosDenoiser(
                config, channels, {CAMERA: size}, PROPRIO_DIM, ACTION_DIM, ACTIONS_PER_FRAME, text_dim
            )
        self.denoiser = denoiser.to(on.device, on.dtype).eval()
        like: dict[str, Any] = {"device": on.device, "dtype": on.dtype}
        self.frames = torch.randn(batch, config.num_context_frames, channels, *size, **like)
        self.noise = torch.randn(batch, 1, channels, *size, **like)
        width = max(text_tokens, 1) * self.denoiser.text_dim
        self.conditioning = Conditioning(
            torch.zeros(batch, 1, ACTIONS_PER_FRAME, ACTION_DIM, **like),
            torch.zeros(batch, PROPRIO_DIM, **like),
            torch.zeros(batch, 1, PROPRIO_DIM, **like),
            torch.randn(batch, width, **like),
        )
        self.call: Callable[..., DenoiserOutput] = self.denoiser

    def compile(self) -> None:
        torch._dynamo.reset()  # kernels of every size for themselves, as a loop with one size would have them
        self.call = torch.compile(self.denoiser, mode="max-autotune-no-cudagraphs", dynamic=False)

    def cached(self, num_latents: int, num_steps: int) -> Tensor:
        """Latents [num_latents, B, C, h, w]."""
        text = self.conditioning.instruction
        memory, latents = self.denoiser.remember({CAMERA: self.frames}, text), []
        for _ in range(num_latents):
            recall = partial(_give, memory)
            latents.append(self._sample(recall, num_steps))
            memory = self.denoiser.shift(memory, {CAMERA: latents[-1]}, text)
        return torch.stack(latents)

    def uncached(self, num_latents: int, num_steps: int) -> Tensor:
        text, window, latents = self.conditioning.instruction, self.frames, []
        for _ in range(num_latents):
            recall = partial(self.denoiser.remember, {CAMERA: window}, text)
            latents.append(self._sample(recall, num_steps))
            window = shift_frames(window, latents[-1])
        return torch.stack(latents)

    def _sample(self, recall: Callable[[], CosmosMemory], num_steps: int) -> Tensor:
        """One latent; ``recall`` is asked for the memory at every sampler step."""

        def denoise(noisy: Mapping[str, Tensor], t: Tensor) -> DenoiserOutput:
            latents = {CAMERA: noisy[CAMERA].to(self.noise)}
            return self.call(latents, t.to(self.noise), recall(), self.conditioning)

        return sample(denoise, {CAMERA: self.noise}, num_steps).data[CAMERA][:, 0].to(self.noise)

    def stock(self, num_latents: int, num_steps: int) -> Tensor:
        """diffusers' transformer over the window and the latent in the making, and its Euler scheduler."""
        window, latents = self.frames, []
        for _ in range(num_latents):
            latents.append(self._denoise(window, 1, num_steps)[:, :, 0])
            window = shift_frames(window, latents[-1])
        return torch.stack(latents)

    def stock_at_once(self, num_latents: int, num_steps: int) -> Tensor:
        """The same, with all latents in the making at once after a single given one."""
        return self._denoise(self.frames[:, -1:], num_latents, num_steps).movedim(2, 0)

    def _denoise(self, given: Tensor, num_latents: int, num_steps: int) -> Tensor:
        """Latents [B, C, num_latents, h, w] after ``given`` [B, K, C, h, w]."""
        from diffusers import FlowMatchEulerDiscreteScheduler

        scheduler: Any = FlowMatchEulerDiscreteScheduler()
        B, K, _, h, w = given.shape
        text = self.denoiser._read_text(self.conditioning.instruction)
        mask = torch.ones(B, 1, K + num_latents, h, w).to(given)
        mask[:, :, K:] = 0
        padding = torch.zeros(1, 1, h, w).to(given)
        scheduler.set_timesteps(num_steps, device=given.device)
        noisy = self.noise.movedim(1, 2).expand(-1, -1, num_latents, -1, -1)
        for t in scheduler.timesteps:
            times = torch.full((B, 1, K + num_latents, 1, 1), CLEAN_TIME).to(given)
            times[:, :, K:] = t / scheduler.config.num_train_timesteps
            output = self.denoiser.transformer(
                torch.cat([given.movedim(1, 2), noisy], dim=2), timestep=times, encoder_hidden_states=text,
                condition_mask=mask, padding_mask=padding,
            ).sample  # fmt: skip
            noisy = scheduler.step(output[:, :, K:], t, noisy).prev_sample
        return noisy


def _give(memory: CosmosMemory) -> CosmosMemory:
    return memory


def make_decoder(on: Machine, tiny: bool) -> Callable[[Tensor], Tensor]:
    """Latents [n, 1, 16, h, w] -> 4 n - 3 frames, by the published codec's architecture."""
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    vae: Any = AutoencoderKLWan(base_dim=8, num_res_blocks=1) if tiny else AutoencoderKLWan()
    vae = vae.to(on.device, on.dtype).eval()
    return lambda latents: vae.decode(latents.permute(1, 2, 0, 3, 4)).sample


def measure(rows: dict[str, Callable[[], Any]], rounds: int, on: Machine) -> dict[str, list[float]]:
    """Seconds of every row in every round; a round before them warms up."""
    took: dict[str, list[float]] = {name: [] for name in rows}
    for number in range(rounds + 1):
        for name, work in rows.items():
            on.synchronise()
            began = time.perf_counter()
            work()
            on.synchronise()
            if number:
                took[name].append(time.perf_counter() - began)
        print(f"round {number} of {rounds}", flush=True)
    return took


def measure_video(name: str, size: tuple[int, int], options: argparse.Namespace, on: Machine) -> dict[str, Any]:
    config = replace(PUBLISHED, **TINY) if options.tiny else PUBLISHED
    if on.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    stream = Stream(config, 16, size, TEXT_TOKENS, 1, on)
    decode = make_decoder(on, options.tiny)
    eager = stream.call
    variants: list[tuple[str, Callable[..., DenoiserOutput]]] = [("eager", eager)]
    if options.compile:
        stream.compile()
        variants.append(("compiled", stream.call))
    rows: dict[str, Callable[[], Any]] = {}
    for variant, call in variants:
        for steps in (1, 2, 4):

            def imagine(call: Any = call, steps: int = steps) -> Tensor:
                stream.call = call
                return stream.cached(NUM_LATENTS, steps)

            rows[f"cached, {variant}, {steps} steps"] = imagine
    fastest = rows[f"cached, {variants[-1][0]}, 4 steps"]

    def with_decode() -> Tensor:
        return decode(torch.cat([stream.frames[:, -1][None], fastest()]))

    rows["cached, 4 steps, with decode"] = with_decode

    def uncached() -> Tensor:
        stream.call = eager
        return stream.uncached(NUM_LATENTS, 4)

    rows["uncached, eager, 4 steps"] = uncached
    rows["stock, a latent at a time, eager, 4 steps"] = lambda: stream.stock(NUM_LATENTS, 4)
    rows["stock, all at once, eager, 4 steps"] = lambda: stream.stock_at_once(NUM_LATENTS, 4)

    def as_environment() -> list[Tensor]:
        stream.call = variants[-1][1]
        return [decode(latent[None]) for latent in stream.cached(NUM_FRAMES - 1, 4)]

    rows["environment, 4 steps, each decoded"] = as_environment
    took = measure(rows, options.rounds, on)

    def ratio(slow: str, fast: str) -> dict[str, float]:
        return summarise([a / b for a, b in zip(took[slow], took[fast], strict=True)])

    best = f"cached, {variants[-1][0]}, 4 steps"
    return {
        "seconds": {row: summarise(values) for row, values in took.items()},
        "ratios": {
            "uncached / cached (eager)": ratio("uncached, eager, 4 steps", "cached, eager, 4 steps"),
            "stock, a latent at a time / cached (eager)": ratio(
                "stock, a latent at a time, eager, 4 steps", "cached, eager, 4 steps"
            ),
            "stock, all at once / cached (eager)": ratio(
                "stock, all at once, eager, 4 steps", "cached, eager, 4 steps"
            ),
            "eager / compiled": ratio("cached, eager, 4 steps", best) if options.compile else None,
            "four / one step": ratio(best, best.replace("4 steps", "1 steps")),
        },
        "parameters": sum(p.numel() for p in stream.denoiser.parameters()),
        "peak_memory_mib": on.peak_mib(),
        "bar_seconds": BARS[name],
    }


def measure_batches(options: argparse.Namespace, on: Machine) -> dict[str, Any]:
    result: dict[str, Any] = {"bar_frames_per_second": BARS["batch"]}
    config = replace(HUNDRED_MILLION, **TINY) if options.tiny else HUNDRED_MILLION
    for batch in (4,) if options.tiny else (64, 256, 1024):
        stream = Stream(config, 3, (64, 64), 0, batch, on)
        if options.compile:
            stream.compile()
        took = measure({"frames": lambda stream=stream: stream.cached(4, 1)}, options.rounds, on)["frames"]  # type: ignore[misc]
        result[f"batch {batch}"] = summarise([4 * batch / seconds for seconds in took])
        result["parameters"] = sum(p.numel() for p in stream.denoiser.parameters())
    return result


def summarise(values: list[float]) -> dict[str, float]:
    return {"median": float(np.median(values)), "low": min(values), "high": max(values), "n": len(values)}


@torch.no_grad()
def run(options: argparse.Namespace) -> dict[str, Any]:
    device = torch.device(options.device)
    on = Machine(device, torch.bfloat16)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    result: dict[str, Any] = {
        "schema_version": 1,
        "tiny": options.tiny,
        "machine": {"gpu": gpu, "processor": platform.machine(), "torch": torch.__version__},
    }
    for name, size in SIZES.items():
        print(name, flush=True)
        result[name] = measure_video(name, TINY_SIZE if options.tiny else size, options, on)
    print("batches", flush=True)
    result["batch"] = measure_batches(options, on)
    return result


def show(result: dict[str, Any]) -> None:
    for name in SIZES:
        print(f"\n{name}, {result[name]['parameters'] / 1e6:,.0f} M parameters, 25 frames")
        for row, values in result[name]["seconds"].items():
            print(f"  {row:<44}{values['median']:8.3f} s  ({values['low']:.3f} to {values['high']:.3f})")
        for row, values in result[name]["ratios"].items():
            shown = (
                f"{values['median']:8.2f} x  ({values['low']:.2f} to {values['high']:.2f})" if values else "       -"
            )
            print(f"  {row:<44}{shown}")
    print(f"\n64 px, {result['batch']['parameters'] / 1e6:,.0f} M parameters, one step")
    for row, values in result["batch"].items():
        if row.startswith("batch"):
            print(f"  {row:<44}{values['median']:8,.0f} frames/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="a small network: to try the script, not to measure")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    if options.device == "cpu" and not options.tiny:
        parser.error("the published size wants a GPU; --tiny tries the script without one")
    result = run(options)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    show(result)


if __name__ == "__main__":
    main()
