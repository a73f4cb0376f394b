"""Mutations of the method's code: each changes one place in a way that a person might, and names the tests that notice.

Those tests are among the default ones and need no reference data.
"""

from dataclasses import dataclass

EDIT = ("tests/test_values_edit.py",)
MODEL = ("tests/test_values_model.py",)
WORDS = ("tests/test_align.py", "tests/test_words.py")
KERNELS = ("tests/test_kernels.py",)
FUSION = ("tests/test_fusion.py",)
SOLVER = ("tests/test_solver.py",)
ALIGN = ("tests/test_align.py",)
WORDING = ("tests/test_words.py",)


@dataclass(frozen=True)
class Mutation:
    """In `file`, `old`, which stands there once, becomes `new`; tests: files of which one test fails then."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTATIONS = (
    # the noise schedule where a file says nothing of it
    Mutation("beta-linear-default", "fz/ddim.py", 'config.get("beta_schedule", "scaled_linear")',
             'config.get("beta_schedule", "linear")', ("tests/test_ddim.py",)),
    Mutation("alpha-to-one-default", "fz/ddim.py", 'config.get("set_alpha_to_one", False)',
             'config.get("set_alpha_to_one", True)', ("tests/test_ddim.py",)),
    # Algorithm 1
    Mutation("inversion-backwards", "fz/solver.py",
             "ddim_inverse_step(shown, eps, self.schedule.alpha_bar(t_prev), self.schedule.alpha_bar(t))",
             "ddim_inverse_step(shown, eps, self.schedule.alpha_bar(t_prev), self.schedule.alpha_bar(t_prev))", EDIT),
    Mutation("multistep-is-first-order", "fz/solver.py", "if t == CLEAN or r not in self.clean:",
             "if True:", SOLVER),
    Mutation("multistep-extrapolates-backwards", "fz/solver.py", "return (1 + w) * x - w * self.clean[r]",
             "return (1 - w) * x + w * self.clean[r]", SOLVER),
    Mutation("multistep-shows-what-was", "fz/solver.py", "return z if t_prev == CLEAN else self.step(z, t_prev, t)",
             "return z", SOLVER),
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
    # what a reader of the papers might get wrong
    Mutation("guidance-sign", "fz/guidance.py", "eps[-2] + scale * (eps[-1] - eps[-2])",
             "eps[-2] + scale * (eps[-2] - eps[-1])", EDIT),
    Mutation("guidance-branch-order", "fz/guidance.py", "[self.negative, target] if", "[target, self.negative] if",
             EDIT),
    Mutation("guidance-scale-minus-one", "fz/guidance.py", "eps[-2] + scale * (eps[-1] - eps[-2])",
             "eps[-1] + (scale - 1) * (eps[-2] - eps[-1])", EDIT),
    Mutation("guidance-never-alone", "fz/guidance.py", "if self.scale > 1 else", "if self.scale > 0 else", EDIT),
    Mutation("clip-norm-per-frame-unet", "fz/model/unet.py", "return frames if self.clip_norm else 1",
             "return 1", MODEL),
    Mutation("clip-norm-always", "fz/model/unet.py", "return frames if self.clip_norm else 1",
             "return frames", MODEL),
    Mutation("transformer-norm-epsilon", "fz/model/layers.py", "self.norm = ClipGroupNorm(groups, channels, eps=1e-6)",
             "self.norm = ClipGroupNorm(groups, channels, eps=1e-5)", MODEL),
    Mutation("vae-norm-epsilon", "fz/model/vae.py", "eps=1e-6", "eps=1e-3", MODEL),
    Mutation("upsampler-bilinear", "fz/model/layers.py", 'scale_factor=2.0, mode="nearest"',
             'scale_factor=2.0, mode="bilinear"', MODEL),
    Mutation("times-of-branches-mixed", "fz/model/unet.py", ".repeat_interleave(frames, 0)",
             ".repeat(frames, 1)", MODEL),
    Mutation("transformer-norm-over-clip", "fz/model/layers.py", "self.norm(x, 1).permute",
             "self.norm(x, frames).permute", MODEL),
    Mutation("blend-first-step-inclusive", "fz/masks.py", "steps < 5 * steps_done < 4 * steps",
             "steps <= 5 * steps_done < 4 * steps", EDIT),
    Mutation("blend-last-step-inclusive", "fz/masks.py", "steps < 5 * steps_done < 4 * steps",
             "steps < 5 * steps_done <= 4 * steps", EDIT),
    Mutation("blend-one-step-late", "fz/edit.py", "region.blends_latents_after(step.k + 1,",
             "region.blends_latents_after(step.k,", EDIT),
    Mutation("blend-target-by-source-words", "fz/masks.py", "blend_mask(target_map, blend.target_words",
             "blend_mask(target_map, blend.source_words", EDIT),
    Mutation("blend-intersection", "fz/masks.py", "edited |= blend_mask", "edited &= blend_mask", EDIT),
    Mutation("blend-threshold-of-region", "fz/masks.py", "blend.source_words, blend.threshold",
             "blend.source_words, region.threshold", EDIT),
    Mutation("cross-window-T", "fz/prompts/align.py", "step_window(default, steps + 1)", "step_window(default, steps)",
             EDIT),
    Mutation("words-window-T", "fz/prompts/align.py", "step_window(share, steps + 1)", "step_window(share, steps)",
             ALIGN),
    Mutation("words-window-start-ignored", "fz/prompts/align.py", "beta[start:end, positions] = 1",
             "beta[:end, positions] = 1", ALIGN),
    Mutation("self-window-T-plus-1", "fz/prompts/plan.py", "int(edit.self_replace[1] * steps))",
             "int(edit.self_replace[1] * (steps + 1)))", EDIT),
    Mutation("reweight-next-column", "fz/prompts/align.py",
             'r[word_positions(target, word, "reweight")] = float(factor)',
             'r[[p + 1 for p in word_positions(target, word, "reweight")]] = float(factor)', WORDING),
    Mutation("reweight-source-word", "fz/prompts/plan.py", "align.equalizer(target, factors)",
             "align.equalizer(source, factors)", WORDING),
    Mutation("mapper-transposed-align", "fz/prompts/align.py", "mapper[list(rows or old.core), column] =",
             "mapper[column, list(rows or old.core)] =", ALIGN),
    Mutation("mapper-not-averaged", "fz/prompts/align.py", "= 1 / len(rows or old.core)", "= 1.0", ALIGN),
    Mutation("padding-transposed", "fz/prompts/align.py", "mapper[min(j + shift, LENGTH - 1), j] = 1",
             "mapper[j, min(j + shift, LENGTH - 1)] = 1", WORDING),
    Mutation("refinement-by-place", "fz/prompts/align.py", "mapper[j] = i\n", "mapper[j] = j\n", ALIGN),
    Mutation("refine-mapper-transposed", "fz/prompts/plan.py",
             "mapper[index.clamp(min=0), torch.arange(len(target.ids))] = alpha",
             "mapper[torch.arange(len(target.ids)), index.clamp(min=0)] = alpha", WORDING),
    Mutation("alpha-all-ones", "fz/prompts/plan.py", "    return mapper, alpha\n",
             "    return mapper, torch.ones_like(alpha)\n", WORDING),
    Mutation("mask-words-of-target", "fz/prompts/plan.py", 'fields |= {"mask_words": align.weights(source_tokens)',
             'fields |= {"mask_words": align.weights(target_tokens)', WORDING),
    Mutation("blend-words-swapped", "fz/prompts/plan.py",
             "align.weights(source_tokens), align.weights(target_tokens), edit.blend_latents",
             "align.weights(target_tokens), align.weights(source_tokens), edit.blend_latents", WORDING),
    Mutation("anchors-swapped-ends", "fz/frames.py", 'absolute = {"first": 0,', 'absolute = {"first": frames - 1,',
             FUSION),
    Mutation("last-is-first", "fz/frames.py", '"last": frames - 1}', '"last": 0}', FUSION),
    Mutation("relative-backwards", "fz/frames.py", "(own + e).clamp", "(own - e).clamp", FUSION),
    Mutation("middle-differs", "fz/frames.py", '"middle": (frames - 1) // 2', '"middle": frames // 2', MODEL),
    Mutation("narrow-layers-wide", "fz/frames.py", "site.channels < self.least_channels",
             "site.channels > self.least_channels", MODEL),
    Mutation("recorder-first-branch", "fz/attention.py", "o[self.branch].to", "o[0].to", EDIT),
    Mutation("recorder-map-first-branch", "fz/attention.py", "map_branch=self.branch", "map_branch=0", EDIT),
    Mutation("maps-summed", "fz/attention.py", "torch.stack([m.float() for m in self.maps.values()]).mean(0)",
             "torch.stack([m.float() for m in self.maps.values()]).sum(0)", EDIT),
)  # fmt: skip
