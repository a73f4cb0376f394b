"""What does a step of inversion and of editing cost on this machine, with Stable Diffusion v1.4's shapes?

Seconds are medians of interleaved rounds in one run, FLOP are counted (the direct convolution's), the share is of this
machine's own GEMM peak measured in the same run. Compared: diffusers' UNet on the same frames, where installed, and the
maps way, as the released code does it (this project's reference kernels and direct convolutions). The cost model says
what 512 x 512 would take.
"""

import argparse
import contextlib
import copy
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench import whole
from bench.here import CPU, commit, gemm_peak, machine
from bench.steps import SMALL, WORDS, Steps, diffusers_unet, kernels, measure
from bench.tables import EDIT, append
from fz.attention import MAP_STRIDE, Keep, StopForward
from fz.chunks import Chunks
from fz.memory.budget import kept_bytes, live_maps
from fz.memory.machine import peak_memory
from fz.model import fast_cpu, fast_vae
from fz.model.layers import Operands, Site, TextContext
from fz.model.unet import UNet, UNetConfig
from fz.model.vae import VAE, VAEConfig, decode_clip, encode_clip

SMALL_VAE = VAEConfig(block_out_channels=(32, 32, 32, 32), layers_per_block=1)


def ratio(times: dict[str, list[float]], ours: str, theirs: str) -> float:
    """Median over rounds of ours / theirs."""
    return statistics.median(a / b for a, b in zip(times[ours], times[theirs], strict=True))


@torch.no_grad()
def run(given: argparse.Namespace, config: UNetConfig, vae_config: VAEConfig | None = None) -> list[dict[str, object]]:
    """Time all steps with `given.only` in their names, and encoding and decoding the clip if a VAE's shape is given;
    returns a row for each.
    """
    frames, size, chunk, only = given.frames, given.size, given.chunk, given.only
    maps, clip_norm = not given.no_maps, not given.per_frame_norm
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet(config, clip_norm).eval().to(memory_format=torch.channels_last)
        vae = None if vae_config is None else VAE(vae_config).eval().to(memory_format=torch.channels_last)
    steps = Steps(unet, frames, size)
    flop = {"forward": flop_of(steps.forward)}
    theirs = diffusers_unet(unet) if only in "diffusers forward" else None
    weights = peak_memory(CPU)
    # as released: maps and plain layers
    released = copy.copy(steps)
    steps.unet, line = fast_cpu.prepare(unet, (size // 8, size // 8), chunk or frames)
    print(line, flush=True)
    if chunk:
        steps.unet, released.unet = Chunks(steps.unet, chunk), Chunks(unet, chunk)
        print(f"{chunk} frames at a time, {'layer by layer' if clip_norm else 'whole chunks'}")
    everything = Keep(True, True)
    kept = steps.source(everything) if only in "edit step, memory" or only in "maps: edit step" else None
    nothing = steps.source(Keep()) if only in "edit step, recompute" else None
    ways: dict[str, Callable[[], object]] = {"forward": steps.forward}
    if theirs is not None:
        prompt = steps.source_prompt.expand(frames, -1, -1)
        ways["diffusers forward"] = lambda: theirs(steps.z, steps.t, prompt)
    ways |= {
        "inversion step, recompute": steps.invert,
        "inversion step, memory": lambda: steps.invert(everything),
        "edit step, memory": lambda: steps.edit(kept),
        "edit step, recompute": lambda: steps.edit(nothing),
    }
    if vae is not None:
        pictures = torch.rand(frames, vae_config.in_channels, size, size) * 2 - 1
        z0 = encode_clip(vae, pictures)
        latent = (size // 8, size // 8)
        ways |= {
            "encode": lambda: encode_clip(fast_vae.prepare(vae, "encoder", latent), pictures),
            "decode": lambda: decode_clip(fast_vae.prepare(vae, "decoder", latent), z0),
        }
        flop |= {
            name: frames * flop_of(way)
            for name, way in (
                ("encode", lambda: encode_clip(vae, pictures[:1])),
                ("decode", lambda: decode_clip(vae, z0[:1])),
            )
        }
    if maps:

        def with_maps(way: Callable[[], object]) -> Callable[[], None]:
            def slow() -> None:
                with kernels("reference"):
                    way()

            return slow

        ways |= {
            "maps: inversion step": with_maps(lambda: released.invert(everything)),
            "maps: edit step": with_maps(lambda: released.edit(kept)),
        }
    chosen = {name: way for name, way in ways.items() if only in name}
    if not chosen:
        raise SystemExit(f"--only {only}: no step has this in its name; there are {', '.join(ways)}.")
    times = measure(chosen, given.rounds)
    peak = gemm_peak(side=2048)
    source_pass = flop["forward"] * flop_of_source_pass(unet, size // 8) / flop_of_forward(unet, size // 8)
    flop |= {name: 2 * flop["forward"] for name in ("edit step, memory", "maps: edit step")}
    flop["edit step, recompute"] = 2 * flop["forward"] + source_pass
    rows = []
    for name, taken in times.items():
        median = statistics.median(taken)
        against = ratio(times, name, "diffusers forward") if theirs is not None else float("nan")
        counted = flop.get(name, flop["forward"])
        share = counted / median / peak
        rows.append(
            {
                "step": name,
                "seconds": round(median, 3),
                "of diffusers": round(against, 3),
                "TFLOP": round(counted / 1e12, 3),
                "share of GEMM peak": round(share, 2),
            }
        )
        print(
            f"{name:28} {median:8.3f} s   {against:6.3f} x diffusers   {100 * share:4.0f} % of "
            f"{peak / 1e9:.0f} GFLOP/s",
            flush=True,
        )
    for ours, maps_way in (
        ("inversion step, memory", "maps: inversion step"),
        ("edit step, memory", "maps: edit step"),
    ):
        if maps_way in times and ours in times:
            print(f"{ours}: {1 / ratio(times, ours, maps_way):.2f} x as fast as with maps")
    if "edit step, recompute" in times and "edit step, memory" in times:
        print(f"edit step, recompute: {ratio(times, 'edit step, recompute', 'edit step, memory'):.2f} x memory's")
    print(
        f"peak above weights: {(peak_memory(CPU) - weights) / 1e9:.2f} GB, prepared weights included; "
        f"{torch.get_num_threads()} threads"
    )
    return rows


def cost_model() -> None:
    """Bytes that inversion keeps, FLOP of a run and memory of a step at 512 x 512, 50 steps, by mode and length;
    counted, not measured.
    """
    with torch.device("meta"):
        unet = UNet(UNetConfig())
    side, steps = 64, 50
    print(
        "512 x 512, 50 steps, fp16, everything fused; GB kept by inversion (a step / the run), maps as the released "
        "code keeps them"
    )
    print(f"{'frames':>6} {'latents and averaged maps':>28} {'queries and keys':>24} {'maps':>22}")
    for frames in (8, 16, 32, 64):
        always = frames * 4 * side * side * 4 + frames * (side // MAP_STRIDE) ** 2 * WORDS * 4
        operands = kept_bytes(unet, (side, side), frames, Keep(True, True, torch.float16), torch.float16)
        maps = maps_bytes(unet, side, frames, anchors=2)
        shown = (f"{b / 1e9:.4f} / {b * steps / 1e9:.2f}" for b in (always, operands, maps))
        print(f"{frames:>6} {next(shown):>28} {next(shown):>24} {next(shown):>22}")
    forward, source_pass = flop_of_forward(unet, side), flop_of_source_pass(unet, side)
    print(
        "\nTFLOP of the UNet, a step / the run: frames attend to two; recompute ends its source pass at the last "
        "fused layer"
    )
    print(
        f"{'frames':>6} {'inversion':>22} {'edit: memory, disk, maps':>26} {'edit: recompute':>24} "
        f"{'edit: without guidance':>24}"
    )
    for frames in (8, 16, 32, 64):
        costs = (forward, 2 * forward, 2 * forward + source_pass, forward)
        shown = (f"{frames * c / 1e12:.1f} / {frames * c * steps / 1e12:.0f}" for c in costs)
        print(f"{frames:>6} {next(shown):>22} {next(shown):>26} {next(shown):>24} {next(shown):>24}")
    print("\nGB that an edit step works in above weights, fp16, two branches, by fz.memory.budget's prediction")
    print(f"{'frames':>6} {'all at once':>14} {'--chunk 8':>14} {'--chunk 8 --per-frame-norm':>28}")
    feature_map = 2 * side * side * unet.config.block_out_channels[0] * 2
    for frames in (8, 16, 32, 64):
        ways = ((None, True), (8, True), (8, False))
        shown = (f"{live_maps(frames, chunk, norm) * feature_map / 1e9:.2f}" for chunk, norm in ways)
        print(f"{frames:>6} {next(shown):>14} {next(shown):>14} {next(shown):>28}")


def flop_of(way: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        way()
    return counter.get_total_flops()


@dataclass
class Counted:
    """Attention to two frames of every site, as products that the counter sees on any device; ends at the site called
    `last`.
    """

    last: str | None = None

    def __call__(self, site: Site, x: Operands) -> Tensor:
        q, k, v = x.q()[0], x.k(), x.v()
        k, v = ((t[0].repeat(1, 2, 1, 1) if site.kind == "self" else t[:1].expand(len(q), -1, -1, -1)) for t in (k, v))
        if site.name == self.last:
            raise StopForward
        weights = torch.einsum("fqhd,fkhd->fhqk", q, k)
        return torch.einsum("fhqk,fkhd->fqhd", weights, v)[None]


def flop_of_forward(unet: UNet, side: int) -> int:
    """Of one frame and branch, latent (side, side), the prompt's keys and values included."""
    return flop_of(lambda: count(unet, side, Counted()))


def flop_of_source_pass(unet: UNet, side: int) -> int:
    """The same, as far as the last site that is ever fused."""
    everything = Keep(True, True)
    return flop_of(lambda: count(unet, side, Counted([s.name for s in unet.sites() if everything.wants(s)][-1])))


@torch.no_grad()
def count(unet: UNet, side: int, attend: Counted) -> None:
    config = unet.config
    with torch.device("meta"):
        model = UNet(config, unet.clip_norm)
        z, text = (
            torch.empty(1, 1, config.in_channels, side, side),
            TextContext(torch.empty(1, WORDS, config.cross_attention_dim)),
        )
    with contextlib.suppress(StopForward):
        model(z, 1, text, attend)


def maps_bytes(unet: UNet, side: int, frames: int, anchors: int) -> int:
    """fp16 bytes of all maps of fused levels: 8 heads, N x (anchors · N) and N x 77."""
    total = 0
    for site in unet.sites():
        if site.stride > 1:
            n = (side // site.stride) ** 2
            total += 2 * frames * 8 * n * (anchors * n if site.kind == "self" else WORDS)
    return total


def measure_all(given: argparse.Namespace) -> None:
    """What the flags ask for: printed, and its rows appended to a file."""
    if given.model:
        cost_model()
        return
    torch.set_num_threads(given.threads)
    config, vae = (SMALL, SMALL_VAE) if given.small else (UNetConfig(), VAEConfig())
    if given.fast:
        taken = whole.run(given.frames, given.size, given.rounds, config, vae)
        rows = [{"step": name, "seconds": round(seconds, 3)} for name, seconds in taken.items()]
    else:
        rows = run(given, config, vae if given.vae else None)
    if given.csv:
        common = {"commit": commit(), "machine": machine(CPU), "threads": torch.get_num_threads()}
        common |= {"size": given.size, "frames": given.frames}
        append(given.csv, EDIT, [common | row for row in rows])
