"""What a clip leaves out of its source, in one line: frames, borders, sound, and the flags that would keep them."""

from collections.abc import Sequence

from fz.clips.decode import Frames

# frames further apart than this move too far for attention to follow
WIDEST_STEP = 5


def frames_line(positions: range, count: int, fps: float | None) -> str:
    """'frames 0–7 of 90 (0.27 of 3.00 s)'; fps is the source's, None where it has none."""
    first, last, step = positions[0], positions[-1], positions.step
    if len(positions) == 1:
        which = f"frame {first}"
    elif step == 1:
        which = f"frames {first}–{last}"
    else:
        which = f"frames {first}, {first + step}{', …' if len(positions) > 3 else ''}"
        which += f", {last}" if len(positions) > 2 else ""
    if not fps:
        return f"{which} of {count}"
    return f"{which} of {count} ({min(len(positions) * step, count) / fps:.2f} of {count / fps:.2f} s)"


def seen(part: Sequence[int], size: Sequence[int]) -> tuple[int, int]:
    """(h, w): the middle of a part (h, w) of the source that `fz.clips.fit.fit` shows at a size (H, W)."""
    (h, w), (height, width) = part, size
    scale = max(height / h, width / w)
    return min(h, round(height / scale)), min(w, round(width / scale))


def whole_size(part: Sequence[int], size: Sequence[int], multiple: int) -> tuple[int, int]:
    """The size (H, W) in multiples, with the short side of `size`, at which most of a part (h, w) is seen."""
    short = min(size)
    sides = (short * side / min(part) for side in part)
    return tuple(max(multiple, round(side / multiple) * multiple) for side in sides)


def left_out(
    positions: range,
    source: Frames,
    part: Sequence[int],
    size: Sequence[int],
    multiple: int,
    silent: str | None = None,
) -> str | None:
    """The line; None where nothing is left out. silent: why the source's sound is not kept, None where it is.

    source: an open source of frames; part (h, w): its picture within the user's crop; size (H, W): what the model sees.
    """
    told, hints = [], []
    middle = seen(part, size)
    fewer, trimmed = len(positions) < source.count, middle != tuple(part)
    if not (fewer or trimmed or silent):
        return None
    if not source.still:
        told.append(frames_line(positions, source.count, source.fps if source.rated else None))
    if fewer:
        hints.append("--frames all")
        fits = (source.count - positions[0] - 1) // (len(positions) - 1) if len(positions) > 1 else 1
        step = min(WIDEST_STEP, fits)
        if step > positions.step:
            hints.append(f"--every {step}")
    if trimmed:
        told.append(f"centre {middle[1]}×{middle[0]} → {size[1]}×{size[0]}")
        keeps = whole_size(part, size, multiple)
        if keeps != tuple(size):
            hints.append(f"--size {keeps[0]}x{keeps[1]}")
    if silent:
        told.append(f"no audio ({silent})")
    return ", ".join(told) + ("; " + ", ".join(hints) if hints else "")
