"""How does a clip show itself in a notebook? As an animation within the page's own text."""

import base64
import html
import io

import numpy as np
from PIL import Image

SIDE = 320  # pixels of the longest side at most: notebooks are kept and sent


def animation(frames: np.ndarray, fps: float, caption: str) -> str:
    """An HTML figure of frames (F, H, W, 3) uint8."""
    pictures = [Image.fromarray(frame) for frame in frames]
    for picture in pictures:
        picture.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    pictures[0].save(
        out, format="GIF", save_all=True, append_images=pictures[1:], duration=max(round(1000 / fps), 20), loop=0
    )
    data = base64.b64encode(out.getvalue()).decode()
    text = html.escape(caption)
    return (
        f'<figure style="display:inline-block;margin:4px"><img alt="{text}" src="data:image/gif;base64,{data}">'
        f"<figcaption>{text}</figcaption></figure>"
    )
