"""Which numbers does a results folder get? Its frames, its own blend masks and what is known from elsewhere, measured
by `fz.metrics.measure`; of the miniature's runs also what its judge sees.

Without masks or motion that are given, the run's own blend masks stand for the edited region and motion is estimated on
the source clip; the rows say which.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fz import mini
from fz.checkpoint import choose_clip, clip_path
from fz.clips.files import IMAGES
from fz.clips.images import Flatten, Images, images_in, on_white, read_picture
from fz.clips.user_mask import Opacity, as_grey
from fz.errors import FzError
from fz.metrics.measure import Truth, measure
from fz.results.claim import finished, read_run
from fz.settings.place import expanded, readable
from fz.weights.clip import clip_name


def measure_folder(folder: Path, clip: Any = None, truth: Truth | None = None) -> list[dict[str, Any]]:
    """A row for each edit of a results folder. Raises FzError if it is none, or unfinished."""
    settings, own = finished(folder)["settings"], of_miniature(folder)
    source = read_frames(folder / "frames" / "source")
    rows = []
    for i, edit in enumerate(settings["edits"]):
        edited = read_frames(folder / "frames" / f"edit-{i}")
        if edited.shape != source.shape:
            got = f"{edited.shape} in edit-{i} and {source.shape} in source"
            raise FzError(f"frames: {folder}/frames has {got}, expected the same. Run the edit again.")
        known = truth or Truth()
        masks, of = known.masks, "given"
        if masks is None:
            masks, of = blend_masks(folder, i, source.shape[:3]), "blend"
        row = measure(
            source, edited, (settings["source"], edit["target"]), clip, Truth(known.frames, masks, known.flow)
        )
        row |= seen(edited, edit["target"]) if own else {}
        about = {
            "result": str(folder),
            "edit": i,
            "method": settings.get("method"),
            "source": settings["source"],
            "target": edit["target"],
        }
        how = {"clip": clip.name if clip else None, "masks": of if masks is not None else None}
        rows.append(about | row | how | {"flow": "given" if known.flow is not None else "estimated"})
    return rows


def blend_masks(folder: Path, i: int, shape: tuple[int, ...]) -> np.ndarray | None:
    """The union over steps of edit i's largest blend masks, (F, H, W) bool, from latents.safetensors; None where a run
    left none.
    """
    from safetensors import SafetensorError, safe_open

    file, found = folder / "latents.safetensors", {}
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="np") as tensors:
            for name in tensors.keys():
                kind, _, rest = name.partition(".")
                number, _, rest = rest.partition(".")
                if kind == "mask" and number == str(i):
                    mask = tensors.get_tensor(name).astype(bool)
                    size = mask.shape[1:]
                    found[size] = found.get(size, False) | mask
    except (SafetensorError, OSError, ValueError) as error:
        raise FzError(
            f"{file}: damaged ({str(error).splitlines()[0][:120]}). Run the edit again with --save-latents."
        ) from None
    return in_pixels(found, shape)


def in_pixels(masks: Mapping[tuple[int, ...], np.ndarray], shape: tuple[int, ...]) -> np.ndarray | None:
    """The largest of masks by size, as large as frames of `shape` (F, H, W); None of none."""
    if not masks:
        return None
    union = masks[max(masks)]
    (_, h, w), (height, width) = union.shape, shape[1:]
    rows, columns = np.arange(height) * h // height, np.arange(width) * w // width
    return union[:, rows][:, :, columns]


def read_frames(folder: Path) -> np.ndarray:
    """00000.png … of a results folder, (F, H, W, 3) uint8."""
    files = sorted(folder.glob("*.png")) if folder.is_dir() else []
    if not files:
        raise FzError(f"frames: {folder} has no png files. Expected frames named 00000.png, 00001.png, …")
    pictures = [picture(file) for file in files]
    if len({p.shape for p in pictures}) > 1:
        raise FzError(f"frames: {folder} has pictures of several sizes. Expected one.")
    return np.stack(pictures)


def picture(file: Path) -> np.ndarray:
    """(H, W, 3) uint8."""
    try:
        return read_picture(file)[0]
    except FzError as error:
        raise FzError(f"{file}: cannot be read as a picture ({str(error).removeprefix('video: ')[:160]}).") from None


def read_given(path: str, what: str, flatten: Flatten = on_white) -> np.ndarray:
    """A user's folder of pictures, one for each frame, (F, H, W, 3) uint8, read as clips are. what: the option that
    named it.
    """
    folder = readable(path, what)
    if not any(file.name.lower().endswith(IMAGES) for file in folder.iterdir()):
        raise FzError(f"{what}: {folder} has no pictures. Expected one for each frame, as 00000.png, 00001.png, …")
    try:
        pictures = Images(images_in(folder), folder.name, flatten)
        return np.stack([pixels for _, pixels in pictures.read(range(pictures.count))])
    except FzError as error:
        raise FzError(f"{what}: {str(error).removeprefix('video: ')}.") from None


def read_given_masks(path: str) -> np.ndarray:
    """A user's folder of masks, (F, H, W) bool, white or, of transparent pictures, opaque: as `--mask` has it."""
    opacity = Opacity()
    pictures = read_given(path, "masks", opacity)
    try:
        by_opacity = opacity.means(Path(path).name)
    except FzError as error:
        raise FzError(f"masks: {str(error).removeprefix('video: ')}.") from None
    return (read_given(path, "masks", as_grey) if by_opacity else pictures).mean(-1) > 127.5


def read_truth(frames: str | None, masks: str | None, flow: str | None) -> Truth:
    """Folders of pictures, masks white where the edit should be, and a .npy of (F - 1, H, W, 2) pixels to the next
    frame.
    """
    field = None
    if flow is not None:
        try:
            file = expanded(flow, "flow")
            if file.exists() and not file.is_file():
                raise OSError("it is no file")
            field = np.load(file, allow_pickle=False)
        except FzError:
            raise
        # numpy reads a header with Python's own tokenizer and parser, whose errors are of many kinds
        except Exception as error:
            raise FzError(
                f"flow: {flow} cannot be read ({str(error)[:120]}). Expected a .npy of (F - 1, H, W, 2) pixels."
            ) from None
        if not isinstance(field, np.ndarray) or field.dtype.kind not in "fiu":
            raise FzError(f"flow: {flow} holds no plain array of numbers. Expected a .npy of (F - 1, H, W, 2) pixels.")
    truth = None if frames is None else read_given(frames, "truth")
    return Truth(truth, None if masks is None else read_given_masks(masks), field)


def seen(frames: np.ndarray, target: str) -> dict[str, float | None]:
    """What the miniature's judge sees of the target's sentence in frames (F, H, W, 3) uint8; empty without a judge."""
    if not mini.EYE.is_file():
        return {}
    from fz.mini.judged import judged

    return judged(eye(), frames, target)


@functools.cache
def eye() -> Any:
    from fz.mini.eye import load_eye

    return load_eye()


# of many folders, most share one
chosen_clip = functools.lru_cache(maxsize=2)(choose_clip)


def clip_for(folder: Path, path: str | None, tokenizer: str | None = None) -> Any:
    """The CLIP for a results folder: the one at path ('none': None), else the miniature's if the run was the
    miniature's.
    """
    return chosen_clip(path, tokenizer, of_miniature(folder))


def clip_name_for(folder: Path, path: str | None) -> str | None:
    """What its rows call that CLIP, which is not loaded for it."""
    chosen = clip_path(path, of_miniature(folder))
    return None if chosen is None else clip_name(chosen)


def of_miniature(folder: Path) -> bool:
    settings = (read_run(folder) or {}).get("settings")
    return isinstance(settings, Mapping) and settings.get("checkpoint", "") is None
