"""The command and the Python beside a result give it again, anywhere: each file that they name can be had from the
page, and what cannot be is said.
"""

import asyncio
import io
import re
import shlex
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the page's tests need pip install -e '.[web]'")

from web_desk import SECRET, desk_in

from fz import mini
from fz.clips.media import write_mp4
from fz.run import main
from fz.settings.config import ClipSettings, EditSettings, Settings
from fz.web import form as forms
from fz.web import show
from fz.web.again import again
from fz.web.folder import VisitorClip, new_id
from fz.web.jobs import Job
from fz.web.routes import Routes
from fz.web.studio import MINIATURE, Models


@pytest.fixture
def desk(tmp_path):
    with desk_in(tmp_path) as found:
        yield found


def example(desk, visitor, name):
    return desk.choose(visitor, next(clip.id for clip in desk.examples.clips if clip.name == name))


def uploaded(desk, visitor, kind):
    """A clip that a visitor brings: the example's frames as pictures, or as a film."""
    pictures = [np.asarray(Image.open(p).convert("RGB")) for p in sorted((mini.FOLDER / "example").glob("*.png"))[:3]]
    batch = new_id()
    place = desk.folder.batch(visitor, batch)
    place.mkdir(parents=True)
    if kind == "film":
        write_mp4(place / "my-car.mp4", np.stack(pictures), 12)
    for i, picture in enumerate(pictures if kind == "pictures" else []):
        Image.fromarray(picture).save(place / f"take-{9 + i}.png")
    return desk.uploaded(visitor, batch)


def download(desk, clip, into):
    """What 'Clip' gives, unpacked where it is an archive."""
    request = SimpleNamespace(scope={"fz_secret": SECRET}, path_params={"clip": clip.id}, method="GET", headers={})
    answer = asyncio.run(Routes(desk).answering(Routes(desk).clip)(request))
    name = re.search(r'filename="(.+)"', answer.headers["content-disposition"])[1]

    async def body():
        return b"".join([block async for block in answer.body_iterator])

    if hasattr(answer, "path"):
        (into / name).write_bytes(Path(answer.path).read_bytes())
    else:
        zipfile.ZipFile(io.BytesIO(asyncio.run(body()))).extractall(into)
    return name


CLIPS = {
    "bundled": (lambda desk, visitor: example(desk, visitor, "a red car"), ""),
    "drawn": (lambda desk, visitor: example(desk, visitor, "a yellow boat"), "a-yellow-boat"),
    "pictures": (lambda desk, visitor: uploaded(desk, visitor, "pictures"), "3-pictures"),
    "film": (lambda desk, visitor: uploaded(desk, visitor, "film"), "my-car.mp4"),
}


@pytest.mark.parametrize(("bring", "name"), CLIPS.values(), ids=CLIPS)
def test_it_is_given_again_where_nothing_but_the_download_is(bring, name, desk, tmp_path, monkeypatch):
    visitor = desk.folder.visitor(SECRET)
    clip = bring(desk, visitor)
    form = {**forms.USUAL, "model": MINIATURE, "source": clip.source or "a red car moving on the sand"}
    # a side that is no multiple of 64
    form |= {"target": "a blue car moving on the sand", "frames": 2, "start": 1, "size": 96, "steps": 3}
    result = desk.studio.do(Job(visitor.name, clip.id, "run", form))
    about = desk.results(visitor, clip, result)[0]
    made = (visitor.result(clip.id, result) / "run" / "edit-0.mp4").read_bytes()
    texts = {key: show.html.unescape(re.search(rf'<pre id="fz-{key}".*?>(.*?)</pre>', about, re.S)[1])
             for key in ("command", "python")}  # fmt: skip
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    if name:
        assert f'href="fz/clip/{clip.id}"' in about and f"{name}: " in about
        assert download(desk, clip, elsewhere).removesuffix(".zip") == name
        assert f"--video {name} " in texts["command"]
    else:
        assert "--video" not in texts["command"] and "fz.read(frames" in texts["python"]
    exec(compile(texts["python"], "program", "exec"), {})
    assert (elsewhere / "edit.mp4").read_bytes() == made
    assert main([*shlex.split(texts["command"])[3:], "--device", "cpu", "--cache", "none"]) == 0
    assert (elsewhere / "my-edit" / "edit-0.mp4").read_bytes() == made


def test_a_clip_that_is_gone_is_not_offered(desk):
    visitor = desk.folder.visitor(SECRET)
    clip = VisitorClip(new_id(), "my-car.mp4", str(desk.folder.root / "gone.mp4"), (64, 64), 8, 8.0)
    visitor.keep(clip)
    about = {"form": {}, "target": "a blue car", "frames": 1, "fps": 8.0}
    assert "fz/clip/" not in show.result(clip, "1" * 16, about)
    request = SimpleNamespace(scope={"fz_secret": SECRET}, path_params={"clip": clip.id}, method="GET", headers={})
    assert asyncio.run(Routes(desk).answering(Routes(desk).clip)(request)).status_code == 404
    # nor is another visitor's
    request.scope["fz_secret"] = "b" * 32
    desk.choose(visitor, desk.examples.clips[1].id)
    request.path_params["clip"] = desk.examples.clips[1].id
    assert asyncio.run(Routes(desk).answering(Routes(desk).clip)(request)).status_code == 404


# ---- models ----------------------------------------------------------------------------------------------------

HUB = "CompVis/stable-diffusion-v1-4"


def test_models_have_their_whole_names(tmp_path):
    paths = [tmp_path / place / name for place, name in (("a", "sd-v1.5"), ("b", "sd-v1.5"), ("a", "sd.v2.ckpt"))]
    for path in paths:
        path.mkdir(parents=True)
    names = Models([None, HUB, f"{HUB}@fp16", *map(str, paths)], {}).names
    assert names == [MINIATURE, HUB, f"{HUB}@fp16", "sd-v1.5", "sd-v1.5 (2)", "sd.v2.ckpt"]


@pytest.mark.parametrize("local", [True, False], ids=["on the server", "of the Hub"])
def test_a_model_is_named_so_that_it_is_found(local, tmp_path):
    """One of the Hub by all of its name; of one that lies on the server there is a line, and no folder."""
    (tmp_path / "models" / "sd-v1.5").mkdir(parents=True)
    checkpoint = str(tmp_path / "models" / "sd-v1.5") if local else HUB
    clip = VisitorClip(new_id(), "my-car.mp4", str(tmp_path / "my-car.mp4"), (64, 64), 8, 8.0)
    edit = EditSettings("a blue car", mask="/server/masks/0.png")
    texts = again(Settings(ClipSettings(clip.path), "a red car", (edit,), checkpoint=checkpoint), clip)
    name = "sd-v1.5" if local else HUB
    assert f"--checkpoint {name} " in texts["command"] and f"fz.load('{name}'" in texts["python"]
    assert ("sd-v1.5: the model, which lies on the server" in texts["needs"]) == local
    assert "mask.png: the area that you drew" in texts["needs"] and "--mask mask.png" in texts["command"]
    assert str(tmp_path) not in "".join(texts.values())
