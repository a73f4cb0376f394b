"""Mutations of the method's code: each changes one place in a way that a person might, and names the tests that notice.

Those tests are among the default ones and need no reference data.
"""

from dataclasses import dataclass

EDIT = ("tests/test_values_edit.py",)
MODEL = ("tests/test_values_model.py",)
WORDS = ("tests/test_align.py", "tests/test_words.py")
KERNELS = ("tests/test_kernels.py",)


@dataclass(frozen=True)
class Mutation:
    """In `file`, `old`, which stands there once, becomes `new`; tests: files of which one test fails then."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTATIONS = (
    # Algorithm 1
    Mutation("inversion-backwards", "fz/edit.py",
             "ddim_inverse_step(z, eps, schedule.alpha_bar(t_prev), schedule.alpha_bar(t))",
             "ddim_inverse_step(z, eps, schedule.alpha_bar(t_prev), schedule.alpha_bar(t_prev))", EDIT),
    Mutation("reconstruction-records-unconditional", "fz/edit.py", "branch=-1)", "branch=0)", EDIT),
    Mutation("edit-starts-clean", "fz/edit.py", "else source.latents[schedule.timesteps[0]]",
             "else source.latents[schedule.timesteps[-1]]", EDIT),
    Mutation("masks-of-next-step", "fz/edit.py", "t = model.schedule.timesteps[k]",
             "t = model.schedule.timesteps[max(k - 1, 0)]", EDIT),
    Mutation("removal-unhidden-outside-window", "fz/edit.py", "or task.region.hides_object)", ")", EDIT),
    Mutation("blend-noisier-background", "fz/edit.py",
             "z = blend_latents(z, self.source.latents[step.t_prev], self.region",
             "z = blend_latents(z, self.source.latents[step.t], self.region", EDIT),
    Mutation("background-of-other-level", "fz/edit.py",
             "torch.where(self.steady[:, None], z, self.source.latents[step.t_prev])",
             "torch.where(self.steady[:, None], z, self.source.latents[step.t])", EDIT),
    Mutation("guidance-swapped", "fz/guidance.py", "eps[-2] + scale * (eps[-1] - eps[-2])",
             "eps[-1] + scale * (eps[-1] - eps[-2])", EDIT),
    Mutation("guidance-window-inclusive", "fz/guidance.py", "first <= k / schedule.steps < last",
             "first <= k / schedule.steps <= last", EDIT),
    Mutation("records-one-step-late", "fz/source.py", "self.keep(model.schedule.timesteps.index(t))",
             "self.keep(model.schedule.timesteps.index(t) + 1)", EDIT),
    # Algorithm 2
    Mutation("self-window-one-longer", "fz/fusion.py", "self.self_window[0] <= k < self.self_window[1]",
             "self.self_window[0] <= k <= self.self_window[1]", (*EDIT, "tests/test_fusion.py")),
    Mutation("equalizer-left-out", "fz/fusion.py", "self.mapper * (self.equalizer * beta)", "self.mapper * beta",
             (*EDIT, "tests/test_fusion.py")),
    Mutation("kept-words-edited-too", "fz/fusion.py", "(1 - self.alpha) * self.equalizer * beta + (1 - beta)",
             "self.equalizer * beta + (1 - beta)", (*EDIT, "tests/test_fusion.py")),
    Mutation("mapper-transposed", "fz/fusion.py", '"ij,jhd->ihd"', '"ji,jhd->ihd"', (*EDIT, "tests/test_fusion.py")),
    Mutation("target-map-without-source", "fz/fusion.py", "return source_map @ source_weights + edit * edit_weights",
             "return edit * edit_weights", (*EDIT, "tests/test_fusion.py")),
    # masks
    Mutation("mask-inverted", "fz/masks.py", "> threshold)[:, 0]", "< threshold)[:, 0]", EDIT),
    Mutation("mask-without-pooling", "fz/masks.py", "F.interpolate(F.max_pool2d(m, 3, stride=1, padding=1), size=size)",
             "F.interpolate(m, size=size)", (*EDIT, "tests/test_fusion.py")),
    Mutation("mask-of-the-clip-maximum", "fz/masks.py", "m.amax(dim=(-2, -1), keepdim=True)", "m.amax()",
             (*EDIT, "tests/test_fusion.py")),
    Mutation("latents-blended-too-long", "fz/masks.py", "steps < 5 * steps_done < 4 * steps",
             "steps <= 5 * steps_done <= 4 * steps", EDIT),
    Mutation("blend-inverted", "fz/masks.py", "return torch.where(edited[:, None], z, background)",
             "return torch.where(edited[:, None], background, z)", EDIT),
    Mutation("object-seen-not-surroundings", "fz/masks.py", "return ~mask | mask.all(1, keepdim=True)",
             "return mask | mask.all(1, keepdim=True)", (*EDIT, "tests/test_applications.py")),
    # DDIM and frames
    Mutation("offset-forgotten", "fz/ddim.py", "stride * i + offset", "stride * i", ("tests/test_ddim.py",)),
    Mutation("mid-frame-rounded-up", "fz/frames.py", '"mid": (frames - 1) // 2', '"mid": frames // 2',
             (*MODEL, "tests/test_fusion.py")),
    Mutation("frames-wrap-around", "fz/frames.py", "(own + e).clamp(0, frames - 1)", "(own + e) % frames",
             (*MODEL, "tests/test_fusion.py")),
    # layers
    Mutation("residual-lost", "fz/model/layers.py", "x = x + self.attn2(self.norm2(x), text, attend)",
             "x = self.attn2(self.norm2(x), text, attend)", (*MODEL, "tests/test_parity.py")),
    Mutation("clip-statistics-per-frame", "fz/model/layers.py", "return kernels.group_norm(x, frames, self.num_groups",
             "return kernels.group_norm(x, 1, self.num_groups", MODEL),
    # words
    Mutation("words-window-for-all", "fz/prompts/align.py", "beta[:, positions] = 0\n", "beta[:, :] = 0\n", WORDS),
    Mutation("window-rounded", "fz/prompts/align.py", "return int(share[0] * steps), int(share[1] * steps)",
             "return round(share[0] * steps), round(share[1] * steps)", (*EDIT, "tests/test_align.py")),
    Mutation("new-words-kept", "fz/prompts/align.py", "return mapper, (mapper >= 0).float()",
             "return mapper, (mapper >= -1).float()", WORDS),
    Mutation("padding-not-shifted", "fz/prompts/align.py", "shift = source.used - target.used", "shift = 0", WORDS),
    # kernels
    Mutation("unscaled-logits", "kernels/reference.py", 'torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5',
             'torch.einsum("qhd,khd->hqk", q, k)', KERNELS),
    Mutation("reference-mask-inverted", "kernels/reference.py", "s = m * s_edit + (1 - m) * s",
             "s = (1 - m) * s_edit + m * s", KERNELS),
    Mutation("variance-not-epsilon", "kernels/reference.py", "(variance + eps) ** -0.5", "variance ** -0.5",
             ("tests/test_norms.py",)),
)  # fmt: skip
