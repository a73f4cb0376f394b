"""`import fz`: a loaded model, inversions and edits, on the miniature. The command line gives the same bits, nothing is
written unasked, and every bad argument is answered.
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import fz
from fz import mini
from fz.arguments import PATHS
from fz.clips.arrays import to_tensor
from fz.clips.media import write_mp4, write_pngs
from fz.run import main
from fz.settings.config import EditSettings
from fz.settings.spoken import in_python

SOURCE, TARGET = "a red car moving on the sand", "a blue car moving on the sand"
PATH = mini.example()["clip.path"]


@pytest.fixture(scope="module")
def editor():
    torch.set_num_threads(1)
    return fz.load(device="cpu")


@pytest.fixture(scope="module")
def clip():
    return fz.read(PATH, frames=2, size=128)


@pytest.fixture(scope="module")
def steps():
    return []


@pytest.fixture(scope="module")
def inversion(editor, clip, steps):
    return editor.invert(clip, SOURCE, steps=2, callback=lambda step, z: steps.append((step, tuple(z.shape))))


@pytest.fixture(scope="module")
def result(inversion):
    return inversion.edit(TARGET, kind="shape", reweight={"blue": 2})


def test_the_commands_edit_to_the_bit(inversion, result, tmp_path):
    argv = ["--video", PATH, "--frames", "2", "--steps", "2", "--device", "cpu", "--threads", "1", "--cache", "none"]
    argv += ["--source", SOURCE, "--target", "a green car moving on the sand", "--target", TARGET, "--edit.1", "shape"]
    assert main([*argv, "--reweight.1", "blue=2", "--save-latents", "--out", str(tmp_path)]) == 0
    latents = load_file(tmp_path / "latents.safetensors")
    assert torch.equal(latents["edited.1.002"], result.latents[-1])
    assert torch.equal(latents["inverted.002"], inversion.source.latents[inversion.schedule.timesteps[0]])
    sizes = result.masks[0]
    assert len(sizes) == 3
    assert all(torch.equal(latents[f"mask.1.{h}x{w}.000"].bool(), mask) for (h, w), mask in sizes.items())
    written = [np.asarray(Image.open(tmp_path / f"frames/edit-1/{i:05d}.png")) for i in range(2)]
    assert np.array_equal(result.uint8(), written)


def test_result(result, clip):
    assert result.frames.shape == clip.frames.shape and result.frames.dtype == torch.float32
    assert -1 <= result.frames.min() and result.frames.max() <= 1
    assert result.uint8().shape == (2, 128, 128, 3) and result.uint8().dtype == np.uint8
    assert result.settings.steps == 2 and result.settings.edits[0].reweight == (("blue", 2),)
    assert result.settings.edits[0].self_replace == (0.0, 0.5) and result.fps == clip.fps
    assert any("masks follow" in note for note in result.notes)


def test_an_edit_of_its_own_sentence_is_the_clip(inversion, clip):
    """Without guidance and with the source's attention throughout, as far as the VAE and two steps can."""
    same = inversion.edit(SOURCE, guidance=1.0, self_replace=1.0, cross_replace=1.0)
    other = inversion.edit(TARGET, guidance=7.5, self_replace=0.0, cross_replace=0.0)
    error, changed = ((r.frames - clip.frames).abs().mean() for r in (same, other))
    assert error < 0.1 and changed > 1.5 * error


def test_callbacks(inversion, steps):
    size = inversion.latent_size
    assert steps == [(1, (2, 4, *size)), (2, (2, 4, *size))]
    seen = []
    edited = inversion.edit(TARGET, method="ddim", callback=lambda step, z: seen.append((step, z)))
    assert [step for step, _ in seen] == [1, 2] and torch.equal(seen[-1][1], edited.latents[-1])


def test_attention_of_a_word(inversion):
    maps = inversion.attention("car")
    assert maps.shape == (2, *(side // 4 for side in inversion.latent_size)) and maps.dtype == torch.float32
    assert (inversion.attention("red car") - maps - inversion.attention("red")).abs().max() < 1e-6
    assert 0 < maps.min() and maps.max() < 1
    with pytest.raises(fz.FzError, match="'lorry' is not in the prompt"):
        inversion.attention("lorry")


def test_arrays_tensors_and_pictures_are_the_clip(editor, clip, inversion):
    array = fz.Video(clip.frames, 8.0, (0, 1))
    pictures = [Image.open(f"{PATH}/{i:05d}.png") for i in range(2)]
    frames = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
    first = inversion.schedule.timesteps[0]
    for same in (array, pictures, frames, clip.frames):
        again = editor.invert(same, SOURCE, steps=2)
        assert torch.equal(again.source.latents[first], inversion.source.latents[first])


def pictured(kind):
    """(a picture, the ending of a file that keeps it)"""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 4), dtype=np.uint8)
    pixels[:, 48:, 3] = 0
    image = Image.fromarray(pixels)
    turned = Image.Exif()
    turned[0x0112] = 6
    if kind == "palette":
        image = image.convert("RGB").quantize(16)
        image.info["transparency"] = 3
    if kind == "turned":
        image = image.convert("RGB")
        image.info["exif"], image.getexif()[0x0112] = turned.tobytes(), 6
    if kind == "16 bits":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), "png"
    kinds = {"RGBA": "RGBA", "LA": "LA", "grey": "L", "CMYK": "CMYK", "one bit": "1"}
    return image.convert(kinds[kind]) if kind in kinds else image, "tif" if kind == "CMYK" else "png"


@pytest.mark.parametrize("kind", ["RGBA", "LA", "palette", "turned", "16 bits", "grey", "CMYK", "one bit"])
def test_pictures_are_what_their_files_are(kind, tmp_path):
    """Transparency on white, 16 bits as 8, upright: opened, and made here."""
    image, ending = pictured(kind)
    image.save(tmp_path / f"a.{ending}", **({"exif": image.info["exif"]} if kind == "turned" else {}))
    size = (96, 64) if kind == "turned" else (64, 96)
    read = fz.read(tmp_path / f"a.{ending}", frames=1, size=size, multiple=1).frames
    for same in (image, Image.open(tmp_path / f"a.{ending}")):
        assert torch.equal(to_tensor([same]), read)
    if kind == "RGBA":
        assert (read[..., 48:] == 1).all()


def test_pictures_that_cannot_be_read_are_answered(tmp_path):
    with pytest.raises(fz.FzError, match="^clip: picture 1 has floating-point pixels"):
        to_tensor([Image.new("L", (8, 8)), Image.new("F", (8, 8))])
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:2000])
    with pytest.raises(fz.FzError, match="^clip: picture 0 cannot be read .*Is its file complete"):
        to_tensor([Image.open(tmp_path / "cut.png")])


def test_one_model_serves_many_clips(editor, inversion, result):
    """Another size in between, and the first inversion edits to the same bits."""
    small = editor.invert(fz.read(frames=1, size=64), SOURCE, steps=1)
    assert small.edit(TARGET).frames.shape == (1, 3, 64, 64)
    assert torch.equal(inversion.edit(TARGET, kind="shape", reweight={"blue": 2}).frames, result.frames)


def test_sides_are_rounded(editor):
    odd = editor.invert(np.zeros((1, 70, 100, 3), np.uint8), SOURCE, steps=1)
    assert odd.video.frames.shape == (1, 3, 64, 96) and "size 70x100 is rounded to 64x96" in odd.video.notes[0]


def test_nothing_is_written_unasked(editor, tmp_path, monkeypatch):
    """By a process of its own, whose files are seen by the system's audit."""
    code = f"""
import sys, torch, fz
written = []
def watch(event, args):
    if event == "open" and args[1] and set(args[1]) & set("wax+") or event in ("os.mkdir", "tempfile.mkdtemp"):
        written.append(args[0])
torch.set_num_threads(1)
editor = fz.load(device="cpu")
clip = fz.read(frames=1, size=64)
sys.addaudithook(watch)
result = editor.invert(clip, {SOURCE!r}, steps=1).edit({TARGET!r})
assert not written, written
result.save("edit.gif")
assert any("edit.gif" in str(name) for name in written)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["edit.gif"] and done.stdout == done.stderr == ""


def test_an_inversion_is_kept_where_one_says(editor, tmp_path):
    clip, seen = fz.read(frames=1, size=64), []
    for count in (2, 2):
        found = editor.invert(clip, SOURCE, steps=2, cache=tmp_path, callback=lambda step, z: seen.append(step))
        assert len(found.source.latents) == count + 1
    assert seen[:2] == [1, 2] and list(tmp_path.rglob("*.safetensors"))


def test_save(result, tmp_path):
    for name in ("red.mp4", "red.gif", "red"):
        assert result.save(tmp_path / name) == tmp_path / name
    assert np.array_equal(np.asarray(Image.open(tmp_path / "red/00001.png")), result.uint8()[1])
    assert fz.read(tmp_path / "red.mp4", frames=2, size=128).frames.shape == result.frames.shape
    with pytest.raises(fz.FzError, match="got 'red.avi', expected .mp4, .gif"):
        result.save(tmp_path / "red.avi")
    with pytest.raises(fz.FzError, match="save: got int, expected a path"):
        result.save(3)
    with pytest.raises(fz.FzError, match="save: got an empty path"):
        result.save("")
    assert result.save(tmp_path / "not/there/yet.gif").is_file()


LIKE = {
    "array": lambda frames: frames,
    "tensor": lambda frames: torch.from_numpy(frames).permute(0, 3, 1, 2) / 127.5 - 1,
    "pictures": lambda frames: [Image.fromarray(frame) for frame in frames],
    "Video": lambda frames: fz.Video(torch.from_numpy(frames).permute(0, 3, 1, 2) / 127.5 - 1, 8.0, (0, 1)),
}


@pytest.mark.parametrize("kind", LIKE)
def test_a_mask_beside_a_clip_of_no_file(editor, kind, tmp_path):
    """One for all or one a frame; cut and resized as the frames were, which here lose 3 rows on each side."""
    frames = np.random.default_rng(0).integers(0, 256, (2, 70, 64, 3), dtype=np.uint8)
    inversion = editor.invert(LIKE[kind](frames), SOURCE, steps=1)
    assert inversion.video.frames.shape[-2:] == (64, 64)
    masks = np.zeros((2, 70, 64), np.uint8)
    masks[0, 19:51, :32] = masks[1, 19:51, 32:] = 255
    write_pngs(tmp_path / "masks", masks)
    each = torch.from_numpy(masks[:, 3:67] > 0)
    for name, expected in (("masks", each), ("masks/00001.png", each[1:].expand(2, -1, -1))):
        edited = inversion.edit(TARGET, mask=tmp_path / name, keep_background=True)
        same = (edited.frames == inversion.video.frames).all(1)
        assert same[~expected].all() and not same[expected].any(), name
    write_pngs(tmp_path / "three", np.full((3, 70, 64), 255, np.uint8))
    write_pngs(tmp_path / "small", np.full((1, 32, 32), 255, np.uint8))
    write_pngs(tmp_path / "cut", np.full((1, 64, 64), 255, np.uint8))
    for name, line in (("three", "holds 3 pictures, expected 1 or 2"), ("small", "32x32, the clip's pictures 64x70")):
        with pytest.raises(fz.FzError, match=f"^mask: .*{line}"):
            inversion.edit(TARGET, mask=tmp_path / name)
    inversion.edit(TARGET, mask=tmp_path / "cut")


def test_a_mask_beside_a_clip_that_is_resized_once_more(editor, tmp_path):
    clip = fz.read(PATH, frames=2, size=72, multiple=8)
    write_pngs(tmp_path / "mask", np.full((1, 72, 72), 255, np.uint8))
    inversion = editor.invert(clip, SOURCE, steps=1)
    assert inversion.video.clip is None and inversion.edit(TARGET, mask=tmp_path / "mask").frames.shape[-1] == 64


def test_a_clip_is_not_saved_over(editor, tmp_path, monkeypatch):
    """Neither the clip nor the mask, by any of their names, nor a folder that holds them."""
    monkeypatch.chdir(tmp_path)
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    Path("mine").mkdir()
    for number, picture in enumerate(frames):
        Image.fromarray(picture).save(f"mine/{number:05d}.png")
    write_mp4("jeep.mp4", frames, 8)
    write_pngs("masks", np.full((1, 64, 64, 3), 255, np.uint8))
    Path("link.mp4").symlink_to("jeep.mp4")
    before = {str(path): path.read_bytes() for path in Path(".").rglob("*.*")}
    places = {
        "mine": "mine",
        "mine/*.png": "mine",
        "jeep.mp4": "link.mp4",
        "link.mp4": "jeep.mp4",
        "j*.mp4": "jeep.mp4",
    }
    for path, place in places.items():
        edited = editor.invert(fz.read(path, frames=2, size=64), SOURCE, steps=1).edit(TARGET, mask="masks")
        for name in (place, "masks"):
            with pytest.raises(fz.FzError, match=f"save: {name} is the (clip|mask) that was read, or holds it"):
                edited.save(name)
    assert {str(path): path.read_bytes() for path in Path(".").rglob("*.*")} == before
    edited.save("mine/red.mp4"), edited.save("red"), edited.save("red")


def test_shown_in_a_line(result, inversion, clip, editor):
    assert repr(result) == f"<Edited {TARGET!r}: 2 frames of 128x128>"
    assert repr(inversion) == f"<InvertedClip {SOURCE!r}: 2 frames of 128x128, 2 steps>"
    assert repr(clip) == str(clip) == "<Video: 2 frames of 128x128, 8.0 a second>"
    assert repr(fz.Video(np.zeros(3), 8, ())) == "<Video: frames of shape (3,), 8 a second>"
    assert repr(editor) == "<Editor of the miniature: float32 on cpu>"


def test_what_holds_tensors_is_equal_to_itself(result, inversion, clip):
    other = inversion.edit(TARGET)
    assert clip == clip and clip != dataclasses.replace(clip) and result == result and result != other
    assert result in (other, result) and len({clip, dataclasses.replace(clip)}) == 2


def test_shown_in_a_notebook(result, inversion, clip):
    shown = result._repr_html_()
    assert "data:image/gif;base64," in shown and TARGET in shown
    assert SOURCE in inversion._repr_html_() and "2 frames of 128x128" in clip._repr_html_()
    bold = dataclasses.replace(result.settings, edits=(EditSettings("<b>a car"),))
    assert "&lt;b&gt;a car" in fz.Edited(bold, result.frames, [], {})._repr_html_()


def chunked(editor):
    return editor.invert(fz.read(frames=2, size=64), SOURCE, steps=1, chunk=1)


ONE = torch.zeros(1, 3, 64, 64)


def video(frames, fps=8.0, indices=(0,), **more):
    return fz.Video(frames, fps, indices, **more)


BAD = {
    "more frames than there are": (lambda e, i: fz.read(PATH, frames=9, start=0), "Use frames=8"),
    "more frames, some left out": (lambda e, i: fz.read(PATH, frames=8, every=3), "Use frames=3 or every=1"),
    "a start too late": (lambda e, i: fz.read(PATH, frames=2, start=7), "Use frames=1 or start=6"),
    "a clip that is too large": (lambda e, i: fz.read(PATH, frames=10**6), "Take fewer frames or a smaller size."),
    "chunks of a method": (lambda e, i: chunked(e).edit(TARGET, method="pnp"), "Leave chunk out."),
    "chunks of a removal": (lambda e, i: chunked(e).edit(remove="car"), "Leave chunk or remove out."),
    "a mask of no word": (lambda e, i: i.edit(SOURCE, keep_background=True), "Pass blend_words or mask."),
    "control of none": (lambda e, i: e.invert(fz.read(frames=1, size=64), SOURCE, canny=(0.1, 0.3)), "Pass control."),
    "a folder of other files": (lambda e, i: i.save(PATH, i.edit(TARGET)), "Pass another out, or overwrite=True"),
    "a file in place of a folder": (lambda e, i: i.save(f"{PATH}/00000.png", i.edit(TARGET)), "Pass another out."),
    "overwriting by number": (lambda e, i: i.save("red", i.edit(TARGET), overwrite=1), "overwrite: got 1"),
    "a place below a file": (lambda e, i: i.edit(TARGET).save(f"{PATH}/00000.png/red.gif"), "pass another path."),
    "no file": (lambda e, i: fz.read("nowhere.mp4"), "nowhere.mp4"),
    "an array as a path": (lambda e, i: fz.read(np.zeros((1, 8, 8, 3))), "expected a path"),
    "no frames at all": (lambda e, i: fz.read(PATH, frames=0), "frames: got 0"),
    "size text": (lambda e, i: fz.read(PATH, size="large"), "size: got 'large'"),
    "size of one side": (lambda e, i: fz.read(PATH, size=(128,)), "size: got (128,)"),
    "size of three sides": (lambda e, i: fz.read(PATH, size=[64, 64, 3]), "size: got (64, 64, 3)"),
    "a truth as a size": (lambda e, i: fz.read(PATH, size=True), "size: got True"),
    "multiple text": (lambda e, i: fz.read(PATH, multiple="a"), "multiple: got 'a'"),
    "multiple of none": (lambda e, i: fz.read(PATH, multiple=0), "multiple: got 0"),
    "multiple below none": (lambda e, i: fz.read(PATH, multiple=-1), "multiple: got -1"),
    "a truth as a multiple": (lambda e, i: fz.read(PATH, multiple=True), "multiple: got True"),
    "some text": (lambda e, i: fz.read(PATH, frames=1, size=64).some("2"), "some: got '2'"),
    "crop of two": (lambda e, i: fz.read(PATH, crop=(1, 2)), "crop: got"),
    "no checkpoint": (lambda e, i: fz.load("nowhere.ckpt"), "does not exist"),
    "a number as a checkpoint": (lambda e, i: fz.load(3), "checkpoint: got int"),
    "device": (lambda e, i: fz.load(device="gpu"), "device: got 'gpu'"),
    "dtype": (lambda e, i: fz.load(dtype="float23"), "Did you mean 'float32'"),
    "a number as frames": (lambda e, i: fz.load(frame_index=0), "frame index: got 0, expected a list of frames"),
    "a word as frames": (lambda e, i: fz.load(frame_index="mid"), "frame index: got 'mid', expected a list of frames"),
    "a truth as gigabytes": (lambda e, i: fz.load(conv_memory=True), "conv_memory: got True"),
    "a setting of loading": (lambda e, i: fz.load(thread=1), "Did you mean 'threads'"),
    "a flag's name": (lambda e, i: fz.load(per_frame_norm=True), "Did you mean clip_norm=False?"),
    "another flag's name": (lambda e, i: i.edit(TARGET, refine=True), "Did you mean align='refine'?"),
    "a threshold in percent": (lambda e, i: i.edit(TARGET, threshold=30), "threshold: got 30, expected a number"),
    "a path as a clip": (lambda e, i: e.invert("jeep.mp4", SOURCE), "Read files by fz.read"),
    "floats": (lambda e, i: e.invert(np.zeros((1, 64, 64, 3)), SOURCE), "float64, expected"),
    "one picture": (lambda e, i: e.invert(np.zeros((64, 64, 3), np.uint8), SOURCE), "picture[None]"),
    "grey": (lambda e, i: e.invert(np.zeros((1, 64, 64), np.uint8), SOURCE), "(F, H, W, 3) uint8"),
    "integers": (lambda e, i: e.invert(torch.zeros(1, 3, 64, 64, dtype=torch.int), SOURCE), "in [-1, 1]"),
    "0 to 255": (lambda e, i: e.invert(torch.full((1, 3, 64, 64), 255.0), SOURCE), "values from 255 to 255"),
    "NaN": (lambda e, i: e.invert(torch.full((1, 3, 64, 64), torch.nan), SOURCE), "values from nan"),
    "a Video of bytes": (lambda e, i: e.invert(video(torch.zeros(1, 3, 64, 64).byte()), SOURCE), "in [-1, 1]"),
    "a Video of 0 to 255": (lambda e, i: e.invert(video(torch.full((1, 3, 64, 64), 255.0)), SOURCE), "from 255 to 255"),
    "a Video of an array": (lambda e, i: e.invert(video(np.zeros((1, 64, 64, 3))), SOURCE), "a Video of ndarray"),
    "a Video of another order": (lambda e, i: e.invert(video(torch.zeros(1, 64, 64, 3)), SOURCE), "(1, 64, 64, 3)"),
    "a Video's rate": (lambda e, i: e.invert(video(torch.zeros(1, 3, 64, 64), fps="8"), SOURCE), "fps: got '8'"),
    "a Video's numbers": (lambda e, i: e.invert(video(torch.zeros(2, 3, 64, 64)), SOURCE), "indices: got (0,)"),
    "a Video's notes": (lambda e, i: e.invert(video(ONE, notes="a"), SOURCE), "notes: got 'a'"),
    "a Video's clip": (lambda e, i: e.invert(video(ONE, clip=PATH), SOURCE), "expected None"),
    "an array as a name": (lambda e, i: i.edit(TARGET, method=np.zeros(3)), "method: got [0.0, 0.0, 0.0]"),
    "an array as sizes": (lambda e, i: fz.read(PATH, size=np.zeros(3)), "size: got (0.0, 0.0, 0.0)"),
    "an array as a kind": (lambda e, i: i.edit(TARGET, kind=np.zeros(3)), "kind: got"),
    "a tensor as a solver": (lambda e, i: e.invert(video(ONE), SOURCE, solver=torch.ones(2)), "solver: got"),
    "a picture as a threshold": (lambda e, i: i.edit(TARGET, threshold=np.zeros((64, 64))), "ndarray of shape (64"),
    "pictures of two sizes": (
        lambda e, i: e.invert([Image.new("RGB", (64, 64)), Image.new("RGB", (64, 96))], SOURCE), "expected one. Resize",
    ),
    "no clip": (lambda e, i: e.invert(None, SOURCE), "clip: got None"),
    "no frames": (lambda e, i: e.invert([], SOURCE), "clip: got []"),
    "no source": (lambda e, i: e.invert(fz.read(frames=1, size=64), " "), "source: got an empty sentence"),
    "a number as a source": (lambda e, i: e.invert(fz.read(frames=1, size=64), 5), "source: got 5"),
    "steps": (lambda e, i: e.invert(fz.read(frames=1, size=64), SOURCE, steps="9"), "steps: got '9'"),
    "a callback": (lambda e, i: e.invert(fz.read(frames=1, size=64), SOURCE, callback=3), "callback: got 3"),
    "progress": (lambda e, i: e.invert(fz.read(frames=1, size=64), SOURCE, progress=print), "expected True or False"),
    "progress of an edit": (lambda e, i: i.edit(TARGET, progress=1), "progress: got 1, expected True or False"),
    "steps to explain": (lambda e, i: e.explain(SOURCE, TARGET, steps=0), "steps: got 0"),
    "a truth as steps": (lambda e, i: e.explain(SOURCE, TARGET, steps=True), "steps: got True"),
    "numpy's truth as a seed": (lambda e, i: i.edit(TARGET, seed=np.bool_(True)), "seed: got True"),
    "a whole float as steps": (lambda e, i: e.explain(SOURCE, TARGET, steps=np.float32(2)), "steps: got 2.0"),
    "a setting of inverting": (lambda e, i: e.invert(fz.read(frames=1, size=64), SOURCE, guidance=3), "unknown"),
    "disk": (lambda e, i: e.invert(fz.read(frames=1, size=64), SOURCE, store="disk"), "store: got 'disk'"),
    "no target": (lambda e, i: i.edit(), "target: got none"),
    "a number as a target": (lambda e, i: i.edit(7), "target: got 7"),
    "a long target": (lambda e, i: i.edit("wheel " * 80), "expected at most 77"),
    "kind": (lambda e, i: i.edit(TARGET, kind="shpae"), "Did you mean 'shape'"),
    "a setting of editing": (lambda e, i: i.edit(TARGET, reweigh={"blue": 2}), "Did you mean 'reweight'"),
    "reweight of a word that is not there": (lambda e, i: i.edit(TARGET, reweight={"bleu": 2}), "Did you mean 'blue'"),
    "reweight by text": (lambda e, i: i.edit(TARGET, reweight={"blue": "much"}), "reweight: got 'much'"),
    "reweight without a value": (lambda e, i: i.edit(TARGET, reweight="blue"), "reweight: got 'blue'"),
    "share": (lambda e, i: i.edit(TARGET, self_replace=2), "self_replace: got 2"),
    "threshold": (lambda e, i: i.edit(TARGET, threshold="low"), "threshold: got 'low'"),
    "blend words": (lambda e, i: i.edit(TARGET, blend_words=3), "blend_words: got 3"),
    "blend words of no target": (
        lambda e, i: i.edit(TARGET, threshold=0.3, blend_words=("car", "zebra")), "blend_words: 'zebra' is not in",
    ),
    "the attention of nothing": (lambda e, i: i.attention(None), "attention: got None, expected a word"),
    "guidance": (lambda e, i: i.edit(TARGET, guidance="much"), "guidance: got 'much'"),
    "method": (lambda e, i: i.edit(TARGET, method="ddmi"), "Did you mean 'ddim'"),
    "seed": (lambda e, i: i.edit(TARGET, seed=-1), "seed: got -1"),
    "mask": (lambda e, i: i.edit(TARGET, mask="nowhere.png"), "mask: "),
    "an empty target": (lambda e, i: i.edit(""), "target: got an empty sentence"),
    "a target of spaces": (lambda e, i: i.edit(" \u3000\n"), "expected a sentence"),
    "an empty target to explain": (lambda e, i: e.explain(SOURCE, ""), "target: got an empty sentence"),
    "a number as a mask": (lambda e, i: i.edit(TARGET, mask=3), "mask: got int"),
    "a background by number": (lambda e, i: i.edit(TARGET, keep_background=3), "keep_background: got 3"),
    "a number to mask": (lambda e, i: i.mask(3), "mask: got 3"),
    "nothing to mask": (lambda e, i: i.mask(None), "mask: got None"),
    "a list of numbers to mask": (lambda e, i: i.mask([3]), "mask: got [3]"),
    "a number as a folder": (lambda e, i: i.save(3, i), "save: got 3"),
    "no name of a folder": (lambda e, i: i.save("", i), "save: got an empty path"),
    "a text to save": (lambda e, i: i.save("red", "x"), "save: got str"),
    "fewer than no frames": (lambda e, i: e.predicted(-1, (64, 64)), "frames: got -1"),
    "one side": (lambda e, i: e.predicted(2, 64), "size: got 64"),
    "no side": (lambda e, i: e.predicted(2, (64, 0)), "size: got 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_answered(editor, inversion, name):
    call, said = BAD[name]
    with pytest.raises(fz.FzError) as raised:
        call(editor, inversion)
    assert said in str(raised.value) and "\n" not in str(raised.value) and "--" not in str(raised.value)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("out: pass another --out, or --overwrite to", "out: pass another out, or overwrite=True to"),
        ("use --every 2.5 or less", "use every=2.5 or less"),
        ("it has 8. Use --frames 8.", "it has 8. Use frames=8."),
        ("the picture: --size 64x96, --frames all", "the picture: size=(64, 96), frames=None"),
        ("z: NaN. Try --dtype bfloat16, or float32.", "z: NaN. Try dtype='bfloat16', or float32."),
        ("source: as --source 'a jeep'.", "source: as source='a jeep'."),
        ("store: none fits. Pass --store recompute or disk.", "store: none fits. Pass store='recompute'."),
        ("Leave out --per-frame-norm or --chunk.", "Leave out clip_norm=False or chunk."),
        ("Use --refine, or reword", "Use align='refine', or reword"),
        ("Pass --model-config DIR with unet/config.json", "Pass model_config DIR with unet/config.json"),
        ("a well-known thing -- or none", "a well-known thing -- or none"),
    ],
)  # fmt: skip
def test_flags_are_arguments(line, expected):
    assert in_python(line) == expected


def test_words_that_the_miniature_does_not_know_are_noted(editor, inversion):
    notes = inversion.edit("a blue bus moving on the sand", guidance=1.0).notes
    (line,) = (note for note in notes if "does not know" in note)
    assert line.startswith("the miniature does not know 'bus'.") and "--" not in line


def test_notes_name_arguments(editor):
    edited = editor.invert(fz.read(PATH, frames=2, size=64), SOURCE, steps=1).edit(
        f"{SOURCE}, (wet:1.5)", threshold=0.3
    )
    assert any("reweight" in note for note in edited.notes) and not any("--" in note for note in edited.notes)
    notes = fz.read(PATH, frames=2, size=(64, 128), multiple=1).notes
    assert any("frames=None" in note for note in notes) and not any("--" in note for note in notes)


def test_a_run_is_overwritten_if_one_says_so(inversion, result, tmp_path):
    for edited in (result, inversion.edit(TARGET, guidance=5)):
        inversion.save(tmp_path / "run", edited, overwrite=True)
        assert json.loads((tmp_path / "run/run.json").read_text())["settings"]["guidance"] == edited.settings.guidance
    with pytest.raises(fz.FzError, match="Pass another out, or overwrite=True to replace it"):
        inversion.save(tmp_path / "run", result)


def test_numbers_of_numpy_are_numbers(editor, tmp_path):
    """And the record of a run is written with them."""
    whole, real = np.int64, np.float32
    like = {"frames": whole(2), "size": (whole(64), whole(96)), "start": np.uint8(1), "every": np.int8(2)}
    clip = fz.read(PATH, **like, crop=(whole(4), 0, 0, 0), multiple=whole(32))
    plain = fz.read(PATH, 2, (64, 96), start=1, every=2, crop=(4, 0, 0, 0), multiple=32)
    assert clip.clip == plain.clip and torch.equal(clip.frames, plain.frames)
    clip = fz.Video(clip.frames, real(8), tuple(np.arange(2))).some(whole(2))
    inversion = editor.invert(clip, SOURCE, steps=whole(1))
    given = {
        "guidance": real(7.5),
        "self_replace": real(0.5),
        "cross_replace": (whole(0), real(0.75)),
        "seed": whole(3),
    }
    given |= {"reweight": {"blue": real(2)}, "threshold": np.float16(0.5), "enhance_factor": whole(2)}
    edited = inversion.edit(TARGET, **given)
    inversion.save(tmp_path / "run", edited)
    edit = json.loads((tmp_path / "run/run.json").read_text())["settings"]["edits"][0]
    assert edit["self_replace"] == [0, 0.5] and edit["reweight"] == [["blue", 2]] and edit["threshold"] == 0.5
    assert torch.equal(inversion.mask("car", real(0.5)), inversion.mask("car", 0.5))
    assert fz.read(PATH, 2, np.array([64, 96]), multiple=32).frames.shape == (2, 3, 64, 96)
    edited = inversion.edit(TARGET, keep_background=np.True_, seed=torch.tensor(3), guidance=torch.tensor(5.0))
    assert edited.settings.edits[0].keep_background is True and edited.settings.guidance == 5
    assert editor.explain(SOURCE, TARGET, steps=whole(4)) == editor.explain(SOURCE, TARGET, steps=4)
    assert editor.predicted(whole(2), (whole(64), whole(64)), whole(2)) == editor.predicted(2, (64, 64), 2)


NOWHERE = {
    "": "got an empty path",
    " ": "got an empty path",
    "~nosuchuser/x": "is no user",
    "a\0b": "without null bytes",
    "\ud800": "a name that files can have",
}
TAKEN = {
    "checkpoint": lambda e, i, path: fz.load(path),
    **{name: lambda e, i, path, name=name: fz.load(**{name: path}) for name in (*PATHS[1:], "lora", "embedding")},
    "cache": lambda e, i, path: e.invert(fz.read(frames=1, size=64), SOURCE, steps=1, cache=path),
    "mask": lambda e, i, path: i.edit(TARGET, mask=path),
    "video": lambda e, i, path: fz.read(path),
    "save": lambda e, i, path: i.edit(TARGET).save(path),
    "save a clip": lambda e, i, path: i.edit(TARGET).save(f"{path}.mp4" if path.strip() else path),
    "save a run": lambda e, i, path: i.save(path, i.edit(TARGET)),
}  # fmt: skip


@pytest.mark.parametrize("path", NOWHERE)
@pytest.mark.parametrize("name", TAKEN)
def test_paths_that_lead_nowhere_are_answered(editor, name, path, tmp_path, monkeypatch):
    """An empty one is not the current folder."""
    monkeypatch.chdir(tmp_path)
    inversion = editor.invert(np.zeros((1, 64, 64, 3), np.uint8), SOURCE, steps=1)
    with pytest.raises(fz.FzError, match=f"^{name.split()[0]}: ") as raised:
        TAKEN[name](editor, inversion, path)
    assert NOWHERE[path] in str(raised.value) or (
        name in ("lora", "embedding") and "expected a file" in str(raised.value)
    )
    assert not list(tmp_path.iterdir())


def test_a_strangers_script(tmp_path):
    """Numpy frames in, numpy frames out."""
    code = """
import numpy as np
import fz

frames = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
editor = fz.load()
inversion = editor.invert(frames, "a red car on the sand", steps=2)
for colour in ("blue", "green"):
    result = inversion.edit(f"a {colour} car on the sand", kind="attribute", reweight={colour: 2})
    edited = result.uint8()
    assert edited.shape == frames.shape and edited.dtype == np.uint8
    result.save(f"{colour}.mp4")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["blue.mp4", "green.mp4"]
