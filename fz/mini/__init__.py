"""A miniature Stable Diffusion for a small drawn world: its pictures, its training, and the checkpoint that ships with the project."""
