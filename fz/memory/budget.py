"""How much memory a run takes, said before it starts, and what inversion therefore keeps.

Predictions count tensors: queries and keys exactly, activations by a factor measured on SD v1.4's UNet (bench/LOG.md).
'memory' costs RAM for every fused step; 'recompute' nothing, but 1.4 times the time of an edit step; 'disk' files
instead of RAM.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fz.attention import Keep, least_stride
from fz.baselines import METHODS
from fz.errors import FzError
from fz.fusion import Fusion
from fz.memory.free import cached_memory, free_disk, free_memory, gb, lacks
from fz.memory.kept import KeptInMemory, KeptOnDisk, Say
from fz.memory.offload import CPU, Copier, KeptInRam
from fz.model.control import ControlNet
from fz.model.deep import Reuse
from fz.model.fast_vae import takes, transformed_bytes
from fz.model.unet import UNet
from fz.model.vae import VAE
from fz.settings.config import Settings
from fz.source import Store
from fz.weights.load import Checkpoint

# share of the free memory that keeping may fill
FILL = 0.6
# largest sum of live activations over one branch's full-size feature map (F, C0, h, w), without maps
ACTIVATIONS = 24
# the part of them that stays whole when layers take some frames at a time: residuals, skips, queries, keys and values
WHOLE = 12
# what a ControlNet adds to them: the encoder's features that wait for its own. Its pictures' features are one more
CONTROL_ACTIVATIONS = 5
# what a differentiated pass over the UNet holds at its end, in such maps of one branch: 270 that autograd saves, of SD
# v1.4's UNet and of the miniature's, and what goes back through them
DIFFERENTIATED = 380
# the same of the VAE, over a float32 picture of its second level's width: float32 copies of its norms count
VAE_ACTIVATIONS = 8
# on a CPU, where norms need no copies: decoding's 3.8 alive at once, 5.8 with the freed memory between them
VAE_ON_CPU = 6


def wanted(fusions: list[Fusion], store_dtype: str = "same") -> Callable[[int], Keep]:
    """What all these edits together need of edit step k."""
    dtype = None if store_dtype == "same" else getattr(torch, store_dtype)

    def keep(k: int) -> Keep:
        union = Keep(dtype=dtype)
        for fusion in fusions:
            union |= fusion.keeps(k)
        return union

    return keep


def kept_bytes(unet: UNet, latent_size: tuple[int, int], frames: int, keep: Keep, dtype: torch.dtype) -> int:
    """Bytes of the queries and keys that one step keeps; F · N · C of each, cross-attention's keys being the
    prompt's.
    """
    element = (keep.dtype or dtype).itemsize
    sites = [site for site in unet.sites() if keep.wants(site)]
    tokens = {site.name: latent_size[0] * latent_size[1] // site.stride**2 for site in sites}
    return sum(
        (2 if site.kind == "self" else 1) * frames * tokens[site.name] * site.channels * element for site in sites
    )


@dataclass(frozen=True)
class Footprint:
    """What memory a run takes depends on. chunk: frames that the UNet takes at a time, None for all. branches: of the
    largest batch. offload: models on the device only while they are used, what is kept in RAM. reuse: of the deep
    features, which stay from step to step. differentiated: frames that a differentiated pass is over.
    """

    unet: UNet
    latent_size: tuple[int, int]
    frames: int
    chunk: int | None = None
    branches: int = 1
    offload: bool = False
    vae: VAE | None = None
    reuse: Reuse = Reuse()
    control: ControlNet | None = None
    differentiated: int = 0

    @classmethod
    def of(
        cls,
        settings: Settings,
        checkpoint: Checkpoint,
        control: ControlNet | None,
        latent_size: tuple[int, int],
        frames: int,
    ) -> "Footprint":
        """Of a run of these settings over so many frames."""
        method, unet = METHODS[settings.method], checkpoint.unet
        guided = settings.guidance > 1
        together = min(frames, method.together(unet, math.prod(latent_size))) if method.together else frames
        return cls(
            unet,
            latent_size,
            together,
            settings.chunk,
            method.beside + (2 if guided else 1),
            settings.offload,
            checkpoint.vae,
            Reuse.of(settings.reuse),
            control,
            together if method.differentiates and guided else 0,
        )

    def working(self, kept: int, device: torch.device) -> int:
        """Bytes of activations: of the UNet, with the queries and keys of one step that are computed again, `kept` in
        all; or of the VAE, which runs alone, where those are more.
        """
        dtype = self.unet.conv_in.weight.dtype
        h, w = self.latent_size
        feature_map = self.branches * h * w * self.unet.config.block_out_channels[0] * dtype.itemsize
        # frames whose operands are recomputed at once: those of a chunk where chunks run alone
        alone = self.frames if self.unet.clip_norm else min(self.chunk or self.frames, self.frames)
        live = live_maps(self.frames, self.chunk, self.unet.clip_norm)
        unet = live * feature_map + kept * alone // self.frames + self.reused(dtype)
        if self.control is not None:
            unet += (alone * CONTROL_ACTIVATIONS + self.frames / self.branches) * feature_map
        unet = max(unet, self.differentiated * DIFFERENTIATED * feature_map // self.branches)
        if self.vae is None:
            return unet
        return max(unet, vae_bytes(self.vae, h * self.vae.config.stride, w * self.vae.config.stride, device))

    def reused(self, dtype: torch.dtype) -> int:
        """Bytes of the deep features that shallow steps take: as wide as the level from which they come."""
        if self.reuse.every == 1:
            return 0
        own, below = self.unet.config.block_out_channels[:2]
        width = own if self.reuse.outer else below
        return self.branches * self.frames * math.prod(self.latent_size) * width * dtype.itemsize

    def kept(self, keep: Keep) -> int:
        """Bytes of the queries and keys that one step keeps."""
        return kept_bytes(self.unet, self.latent_size, self.frames, keep, self.unet.conv_in.weight.dtype)


def choose_store(
    asked: str, footprint: Footprint, keep: Sequence[Keep], folder: Path, device: torch.device, say: Say
) -> str:
    """'recompute', 'memory' or 'disk': what was asked for, or, for 'auto', 'memory' where it fits in memory that is
    free, else 'recompute'.

    keep: of every edit step. Says the prediction. Raises FzError if the run cannot fit whatever it keeps, or if what
    was asked for cannot.
    """
    per_step = [footprint.kept(step) for step in keep]
    # models that are not on the device yet will be
    models = [model for model in (footprint.unet, footprint.control) if model is not None]
    there = sum(p.nbytes for model in models for p in model.parameters() if p.device.type != device.type)
    free = free_memory(device)
    if free is not None:
        free -= there
    working = footprint.working(max(per_step), device)
    in_ram = footprint.offload and device.type == "cuda"
    need = {"memory": working + (0 if in_ram else sum(per_step)), "recompute": working, "disk": working}
    fits = free is not None and need["memory"] <= FILL * free
    mode = asked if asked != "auto" else "memory" if fits else "recompute"
    if in_ram and mode == "memory" and lacks(sum(per_step) / FILL, ram := free_memory(CPU)):
        if asked == "memory":
            got = f"store: 'memory' needs {gb(sum(per_step))} of RAM, and {gb(ram)} are free"
            raise FzError(f"{got}. Pass --store recompute or disk.")
        mode = "recompute"
    if lacks(need["recompute"], free):
        raise too_large(need["recompute"], free)
    if lacks(need[mode], free):
        raise FzError(
            f"store: '{mode}' needs about {gb(need[mode])}, and {gb(free)} are free. Pass --store recompute or disk."
        )
    if mode == "disk":
        room = free_disk(folder)
        if sum(per_step) > room:
            raise FzError(
                f"store: 'disk' needs {gb(sum(per_step))} in {folder}, where {gb(room)} are free. Pass --store "
                "recompute."
            )
    on_disk = f" and {gb(sum(per_step))} of disk" if mode == "disk" else ""
    of_free, unknown = (f" of {gb(free)}", "") if free is not None else ("", " (what is free is unknown here)")
    say(f"this edit needs about {gb(need[mode])}{of_free} of memory{unknown}{on_disk}; store: {mode}")
    return mode


def check_unforeseen(edit: Footprint, counted: Footprint, device: torch.device) -> None:
    """Raise FzError where an edit cannot fit that needs more than was counted before the inversion, as one by another
    method. What was counted is this process's, whether in use or not.
    """
    need, has = (footprint.working(0, device) for footprint in (edit, counted))
    free = free_memory(device)
    # what PyTorch has cached was counted
    if need > has and lacks(need - has + cached_memory(device), free):
        raise too_large(need, free - cached_memory(device) + has)


def too_large(need: int, free: int) -> FzError:
    got = f"memory: this edit needs about {gb(need)}, and {gb(free)} are free"
    return FzError(f"{got}. Take fewer --frames or a smaller --size.")


@dataclass(frozen=True)
class Prediction:
    """Bytes. kept: with the source's queries and keys in memory; least: where they are computed again; free: what is
    free now on the device, None where the system does not tell.
    """

    kept: int
    least: int
    free: int | None

    @property
    def fits(self) -> bool:
        """As far as is known."""
        return not lacks(self.least, self.free)


def prediction(footprint: Footprint, steps: int, device: torch.device, full: bool = False) -> Prediction:
    """Of an edit that needs whatever any edit could. full: the full-size level is fused, too."""
    per_step = footprint.kept(Keep(True, True, least_stride=least_stride(full)))
    working = footprint.working(per_step, device)
    return Prediction(working + steps * per_step, working, free_memory(device))


def live_maps(frames: int, chunk: int | None, clip_norm: bool) -> int:
    """Activations of a forward pass that are alive at once, counted in one branch's full-size feature maps of one
    frame.
    """
    at_once = min(chunk or frames, frames)
    if clip_norm:
        return WHOLE * frames + (ACTIVATIONS - WHOLE) * at_once
    # three absolute frames may run together, and keys and values of other frames stay
    return ACTIVATIONS * min(max(at_once, 3) + 3, frames)


def store_for(
    mode: str, folder: Path, timesteps: tuple[int, ...], device: torch.device, say: Say, offload: bool = False
) -> Store:
    """Where that mode keeps queries and keys."""
    if mode == "disk":
        return KeptOnDisk(folder, timesteps, device, say)
    if mode == "memory" and offload:
        return KeptInRam(timesteps, Copier(device))
    return KeptInMemory() if mode == "memory" else Store()


def keep_for(mode: str, keep: Callable[[int], Keep]) -> Callable[[int], Keep]:
    """What is kept of edit step k: nothing in 'recompute', but the dtype counts there too."""
    return (lambda k: Keep(dtype=keep(k).dtype)) if mode == "recompute" else keep


def pictures_at_once(vae: VAE, height: int, width: int, device: torch.device) -> int:
    """How many frames the VAE takes at a time: on a GPU as many as fit, one on a CPU, which gains nothing from more."""
    if device.type != "cuda":
        return 1
    return max(int(FILL * free_memory(device) / vae_bytes(vae, height, width, device)), 1)


def vae_bytes(vae: VAE, height: int, width: int, device: torch.device) -> int:
    """Bytes of the VAE's activations over one picture, and of what makes it fast."""
    channels = vae.config.block_out_channels[min(1, len(vae.config.block_out_channels) - 1)]
    if device.type != "cpu":
        return VAE_ACTIVATIONS * channels * height * width * 4
    fast = takes(vae, (height // vae.config.stride, width // vae.config.stride))
    return VAE_ON_CPU * channels * height * width * 4 + (transformed_bytes(vae) if fast else 0)


def check_vae(vae: VAE, height: int, width: int, device: torch.device) -> None:
    """Raises FzError where the VAE cannot take one picture of that size in the memory that is free."""
    need, free = vae_bytes(vae, height, width, device), free_memory(device)
    if lacks(need, free):
        raise FzError(
            f"memory: the VAE needs about {gb(need)} for a picture of {width}x{height}, and {gb(free)} are free. Take "
            "a smaller --size."
        )
