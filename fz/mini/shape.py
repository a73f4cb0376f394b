"""The miniature's shape: what its parts' configs say, in diffusers' and transformers' words."""

from fz.model.vae import SCALE

# one head at the full-size level: its attention is half of a picture's time with four
UNET = {
    "_class_name": "UNet2DConditionModel", "block_out_channels": [40, 80, 120, 160], "layers_per_block": 2,
    "attention_head_dim": [1, 4, 4, 4], "cross_attention_dim": 128, "norm_num_groups": 8, "norm_eps": 1e-5,
    "in_channels": 4, "out_channels": 4, "sample_size": 32, "act_fn": "silu", "flip_sin_to_cos": True, "freq_shift": 0,
    "downsample_padding": 1, "mid_block_scale_factor": 1, "center_input_sample": False,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}  # fmt: skip
VAE_JSON = {
    "_class_name": "AutoencoderKL", "block_out_channels": [32, 64, 64], "layers_per_block": 1, "norm_num_groups": 8,
    "latent_channels": 4, "in_channels": 3, "out_channels": 3, "act_fn": "silu", "sample_size": 128,
    "scaling_factor": SCALE, "down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3,
}  # fmt: skip
TEXT = {
    "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4,
    "projection_dim": 64, "max_position_embeddings": 77, "hidden_act": "quick_gelu",
}  # fmt: skip
SCHEDULER = {
    "_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000, "prediction_type": "epsilon", "set_alpha_to_one": False, "steps_offset": 1,
    "clip_sample": False,
}  # fmt: skip
# beside the UNet, its encoder's widths; attention in the middle only: 7.5 MB rather than 9.6, and outlines are local
CONTROL = {
    **{name: UNET[name] for name in ("block_out_channels", "layers_per_block", "attention_head_dim", "norm_num_groups",
                                     "cross_attention_dim", "norm_eps", "in_channels", "act_fn", "flip_sin_to_cos",
                                     "freq_shift", "downsample_padding", "mid_block_scale_factor")},
    "_class_name": "ControlNetModel", "down_block_types": ["DownBlock2D"] * 4,
    "mid_block_type": "UNetMidBlock2DCrossAttn", "conditioning_channels": 3,
    "conditioning_embedding_out_channels": [16, 32, 64], "controlnet_conditioning_channel_order": "rgb",
    "global_pool_conditions": False,
}  # fmt: skip
