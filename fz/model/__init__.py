"""The networks: the inflated UNet, its VAE, CLIP's image tower, and what makes them fast."""
