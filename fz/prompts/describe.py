"""What will an edit do to each word? Its plan in lines: tokens, which words correspond, and how long each word of the
target has the source's attention.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fz.fusion import Fusion
from fz.prompts.align import differing_words
from fz.prompts.explain import mask_words
from fz.prompts.plan import Plan
from fz.prompts.text import Tokens
from fz.settings.config import EditSettings
from fz.words import bare


@dataclass(frozen=True)
class Column:
    """What happens to one word of the target in cross-attention.

    what: 'kept' (the source's attention of the same word), 'replaced' (of other words), 'new' (its own), or 'own'
    (never fused). sources: those words of the source. steps: the first and the last edit step, counted from 1, at which
    the source's attention or the weight counts; None where neither does. weight: r of re-weighting.
    """

    word: str
    positions: tuple[int, ...]
    what: str
    sources: tuple[str, ...]
    steps: tuple[int, int] | None
    weight: float


def columns(fusion: Fusion, source: Tokens, target: Tokens, steps: int) -> list[Column]:
    """A row for each word of the target over T = steps edit steps."""
    out = []
    for word in target.words:
        at = list(word.positions)
        rows = (fusion.mapper[:, at] > 0).any(1) & (fusion.alpha[at] > 0).any()
        sources = tuple(dict.fromkeys(filter(None, (source.word_at(int(i)) for i in rows.nonzero()))))
        on = fusion.cross_window[:steps, at].any(1).nonzero().flatten().tolist()
        same = [bare(s) for s in sources] == [bare(word.text)]
        what = "own" if not on else "new" if not sources else "kept" if same else "replaced"
        weight = float(fusion.equalizer[word.core[0]]) if on else 1.0
        span = None if what == "own" or (what == "new" and weight == 1) else (on[0] + 1, on[-1] + 1)
        out.append(Column(word.text, word.positions, what, sources if on else (), span, weight))
    return out


@dataclass(frozen=True)
class Explained:
    """What an edit will do to each word. target: its sentence. source_words: as they stand in the source. columns: a
    word of the target each, none where nothing is fused. gone: numbers of the source's words that the target has not.
    mask_words: the source's words whose place the edit follows, numbers of them; none where there is no such mask.
    notes: what was decided for the user.
    """

    target: str
    source_words: tuple[str, ...]
    columns: tuple[Column, ...]
    gone: tuple[int, ...]
    mask_words: tuple[int, ...]
    notes: tuple[str, ...]


def explained(edit: EditSettings, plan: Plan, source: Tokens, target: Tokens, steps: int) -> Explained:
    """Of one edit over T = steps edit steps."""
    region = plan.region
    weights = region.background if region.mask_words is None else region.mask_words
    masked = [word.index for word in source.words if weights is not None and weights[list(word.core)].any()]
    return Explained(
        edit.target,
        tuple(word.text for word in source.words),
        tuple(columns(plan.fusion, source, target, steps)) if plan.fusion else (),
        tuple(word.index for word in differing_words(source, target)[0]),
        tuple(masked),
        plan.notes,
    )


def describe(edit: EditSettings, plan: Plan, source: Tokens, target: Tokens, steps: int) -> list[str]:
    """The lines of one edit."""
    lines = [repr(edit.target), *(f"  note: {note}" for note in plan.notes)]
    fusion = plan.fusion
    if fusion is None:
        return [
            *lines,
            *(f"  {word.text}  (tokens {numbers(word.positions)})" for word in target.words),
            "  nothing is fused",
        ]
    rows = [("word", "tokens", "attention", "of the source's", "at steps", "weight")]
    for c in columns(fusion, source, target, steps):
        span = f"{c.steps[0]}-{c.steps[1]} of {steps}" if c.steps else "-"
        rows.append(
            (
                c.word,
                numbers(c.positions),
                c.what,
                " ".join(c.sources) or "-",
                span,
                f"x{c.weight:g}" if c.weight != 1 else "",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines += [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    lost = [word.text for word in source.words if not fusion.mapper[list(word.positions)].any()]
    if lost:
        lines.append(f"  of the source, nothing takes: {' '.join(lost)}")
    hidden = [f"  hidden from every pixel: what is under the mask of {edit.remove}"] if plan.region.hides_object else []
    return [*lines, f"  self-attention: {self_attention(edit, plan, source, steps)}", *hidden]


def self_attention(edit: EditSettings, plan: Plan, source: Tokens, steps: int) -> str:
    region, (first, last) = plan.region, plan.fusion.self_window
    if first >= last:
        return "the edit's own throughout"
    where = "everywhere" if edit.mask is None else f"outside the mask of {edit.mask}"
    if edit.mask is None and region.mask_words is not None:
        words = mask_words(region.mask_words, source)
        where = f"outside the mask of {words}, > {region.threshold:g} of its maximum"
    return f"the source's at steps {first + 1}-{last} of {steps}, {where}"


def numbers(positions: Sequence[int]) -> str:
    return ",".join(map(str, positions))
