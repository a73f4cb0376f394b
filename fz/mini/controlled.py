"""What does a ControlNet on outlines change in the edits of one held-out clip?

Three outlines are shown: none, the clip's own edges, and those of the counterfactual, as a user's drawing of what is
wished would have them. The paper's presets, and less self-attention of the source, as structure is held otherwise.
"""

from collections.abc import Iterator

import torch

from fz.mini.data import as_given
from fz.mini.edited import Bench
from fz.mini.figures import Figure, HeldOutClip, held_out_story, judge, targets
from fz.mini.world import caption
from fz.settings.config import PRESETS

SHORTER = {"self_replace": 0.2}
# edit -> (what is shown, whether its inversion was shown it too, what is not the preset's)
VARIANTS = {
    "shape": {
        "no control": (None, True, {}),
        "own edges": ("own", True, {}),
        "own edges, inverted without": ("own", False, {}),
        "wished outlines": ("wished", False, {}),
        "no control, self 0.2": (None, True, SHORTER),
        "wished outlines, self 0.2": ("wished", False, SHORTER),
    },
    "attribute": {
        "no control": (None, True, {}),
        "no control, self 0.2": (None, True, SHORTER),
        "own edges, self 0.2": ("own", True, SHORTER),
    },
}


@torch.no_grad()
def measure_control(bench: Bench, i: int) -> Iterator[Figure]:
    """The i-th held-out clip, edited in each of these ways. The bench has a ControlNet."""
    plain = HeldOutClip.of(bench, held_out_story(i))
    controlled = bench.shown(plain.drawn.frames)
    clips = {False: plain, True: HeldOutClip.of(controlled, plain.story)}
    wished_stories = targets(plain.story, i)
    for name, variants in VARIANTS.items():
        wished = wished_stories[name]
        truth = as_given(wished, bench.setup.frames, bench.setup.size)
        benches = {None: bench, "own": controlled, "wished": bench.shown(truth.frames)}
        for variant, (shown, inverted_with, settings) in variants.items():
            clip = clips[shown == "own" and inverted_with]
            out = benches[shown].edit(clip.source, clip.prompt, caption(wished), {**PRESETS[name], **settings})
            yield from judge(bench, f"{name}, {variant}", out, wished, plain.drawn)
