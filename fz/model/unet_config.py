"""Which shape has an SD-v1-like UNet, and which configs are of no such one? From a diffusers `unet/config.json`."""

from collections.abc import Mapping
from dataclasses import dataclass

from fz.errors import FzError


@dataclass(frozen=True)
class Temporal:
    """What a tuned checkpoint adds: temporal attention, and convolutions over time that are 'full', 'low_rank' or None.

    ranks: (channels, rank) of each width that has a low-rank convolution, as the weights say.
    """

    attention: bool = True
    conv: str | None = None
    ranks: tuple[tuple[int, int], ...] = ()

    def rank_of(self, channels: int) -> int | None:
        """The rank of the temporal convolution of a layer of this width: None for no such layer, 0 for full rank."""
        return {None: None, "full": 0}[self.conv] if self.conv != "low_rank" else dict(self.ranks)[channels]


@dataclass(frozen=True)
class UNetConfig:
    """Shape of an SD-v1-like UNet. heads: attention heads, at every level or one number a level."""

    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    heads: tuple[int, ...] = (8, 8, 8, 8)
    cross_attention_dim: int = 768
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    in_channels: int = 4
    out_channels: int = 4
    down_attention: tuple[bool, ...] = (True, True, True, False)
    up_attention: tuple[bool, ...] = (False, True, True, True)
    flip_sin_to_cos: bool = True
    freq_shift: float = 0
    temporal: Temporal | None = None

    @classmethod
    def from_json(cls, config: Mapping, temporal: Temporal | None = None) -> "UNetConfig":
        """From a diffusers `unet/config.json`, of UNet2DConditionModel or of its inflated kin. Raises FzError for what
        is not SD v1.
        """
        refuse_unsupported(config)
        channels = tuple(config["block_out_channels"])
        # SD v1's config calls the number of heads `attention_head_dim`
        heads = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
        return cls(
            block_out_channels=channels,
            layers_per_block=config.get("layers_per_block", 2),
            heads=tuple(heads) if isinstance(heads, (list, tuple)) else (heads,) * len(channels),
            cross_attention_dim=config.get("cross_attention_dim", 768),
            norm_num_groups=config.get("norm_num_groups", 32),
            norm_eps=config.get("norm_eps", 1e-5),
            in_channels=config.get("in_channels", 4),
            out_channels=config.get("out_channels", 4),
            down_attention=tuple("CrossAttn" in kind for kind in config["down_block_types"]),
            up_attention=tuple("CrossAttn" in kind for kind in config["up_block_types"]),
            flip_sin_to_cos=config.get("flip_sin_to_cos", True),
            freq_shift=config.get("freq_shift", 0),
            temporal=temporal,
        )

    @property
    def stride(self) -> int:
        """By how much the deepest level is smaller than the latent; its sides must be multiples of it."""
        return 2 ** (len(self.block_out_channels) - 1)


# what other models' configs set and SD v1's does not: value that means 'as SD v1'
SD1_ONLY = {
    "use_linear_projection": (False, "SD 2's linear projections"),
    "class_embed_type": (None, "class embeddings"),
    "num_class_embeds": (None, "class embeddings"),
    "only_cross_attention": (False, "cross-attention without self-attention"),
    "dual_cross_attention": (False, "dual cross-attention"),
    "resnet_time_scale_shift": ("default", "scale-shift time conditioning"),
    "act_fn": ("silu", "another activation"),
    "addition_embed_type": (None, "SDXL's added conditioning"),
    "transformer_layers_per_block": (1, "several transformer layers a block"),
    "center_input_sample": (False, "a centred input"),
    "time_cond_proj_dim": (None, "guidance-distilled conditioning"),
    "encoder_hid_dim": (None, "a projected text encoder"),
    "downsample_padding": (1, "another padding"),
    "mid_block_scale_factor": (1, "a scaled middle block"),
    "upcast_attention": (False, "SD 2.1's upcast attention"),
}


def refuse_unsupported(config: Mapping) -> None:
    """Raise FzError if a UNet's config asks for what Stable Diffusion v1 does not have; null asks for nothing."""
    levels = len(config.get("block_out_channels", ()))
    for key, (expected, what) in SD1_ONLY.items():
        if config.get(key) not in (None, expected, [expected] * levels):
            got = f"unet/config.json: {key} is {config[key]!r} ({what})"
            raise FzError(f"{got}; expected {expected!r}. Use a Stable Diffusion v1.x checkpoint.")
    for key in ("block_out_channels", "down_block_types", "up_block_types"):
        if key not in config:
            raise FzError(f"unet/config.json: {key} is missing. Is this a diffusers UNet config?")
