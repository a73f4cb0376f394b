"""The report of a run's folder: one file, sound HTML, nothing fetched, all of the run in it; and the command that gives
its settings.
"""

import html.parser
import json
import re
import shlex
import shutil
import subprocess

import numpy as np
import pytest
import torch

from fz import mini
from fz import report as door
from fz.clips.media import contact_sheet, overlay, write_png, write_pngs
from fz.results import report
from fz.results.folder import as_json
from fz.settings.command import command, fields
from fz.settings.config import ClipSettings, Settings, build
from fz.settings.parse import parse

VOID = {"meta", "link", "input", "br", "img"}


def make_run(folder, frames=8, height=256, width=256):
    clip = (
        np.random.default_rng(0)
        .integers(0, 256, (frames, height // 8, width // 8, 3), dtype=np.uint8)
        .repeat(8, 1)
        .repeat(8, 2)
    )
    settings = build(
        {
            "clip.path": "a clip.mp4",
            "source": "a red <car>",
            "edits.0.target": 'a blue </script> & "car"',
            "edits.1.target": "a red car",
        }
    )
    for name in ("source", "edit-0", "edit-1"):
        write_pngs(folder / "frames" / name, clip)
    for i, word in enumerate(("a", "red", "car")):
        write_png(
            folder / f"attention/{i:02d}-{word}.png", contact_sheet([overlay(clip, torch.rand(frames, 16, 16))], [word])
        )
    for k in range(30):
        write_png(
            folder / f"masks/edit-0-step-{k:03d}.png",
            contact_sheet([overlay(clip, torch.rand(frames, 8, 8) > 0.5)], [f"step {k}"]),
        )
    run = {
        "status": "done",
        "settings": as_json(settings),
        "frames": list(range(frames)),
        "fps": 8,
        "notes": ["a <note>"],
        "files": [],
    }
    run["stages"] = {"invert": {"seconds": 1.5, "peak_memory_bytes": 2_000_000_000}}
    (folder / "run.json").write_text(json.dumps(run))
    return clip


class Page(html.parser.HTMLParser):
    """Tags that do not match, ids, what is fetched, and the data."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.fetched, self.data, self.script = [], [], [], "", False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.fetched += [attrs[name] for name in ("src", "href", "srcset", "action") if name in attrs]
        if tag not in VOID:
            self.open.append(tag)
        self.script = attrs.get("id") == "data"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.script:
            self.data += data


def test_page(tmp_path):
    make_run(tmp_path)
    path = report.write_report(tmp_path)
    text = path.read_text()
    assert path == tmp_path / "report.html" and len(text) <= 5_000_000
    page = Page(text)
    assert page.open == [] and len(page.ids) == len(set(page.ids))
    assert page.fetched == ["data:,"] and not re.search(r"https?://|@import|url\(", text)
    # every element that the script asks for is there
    assert set(re.findall(r'\$\("([\w-]+)"\)', text)) <= set(page.ids)
    data = json.loads(page.data)
    assert [clip["label"] for clip in data["clips"]] == ["a red <car>", 'a blue </script> & "car"', "a red car"]
    assert all(len(clip["frames"]) == 8 for clip in data["clips"])
    # a word that the file name cannot hold is shown as the prompt has it
    assert [word["word"] for word in data["words"]] == ["a", "red", "<car>"] and data["first_word"] in (1, 2)
    steps = [mask["step"] for mask in data["masks"]]
    assert len(steps) == 25 and steps[0] == 0 and steps[-1] == 29
    assert "a &lt;note&gt;" in text and "python -m fz.run" in text and "recon PSNR" not in text and "warp err" in text


def test_a_sweeps_edits_are_told_apart(tmp_path):
    edits = [
        {"target": t, "self_replace": [0.0, s], "threshold": h}
        for t, s, h in (("a", 0.2, 0.3), ("a", 0.4, None), ("b", 0.2, 0.3))
    ]
    assert report.labels(edits) == ["a, self_replace 0.2, threshold 0.3", "a, self_replace 0.4, threshold none", "b"]
    # many edits have fewer masks each
    make_run(tmp_path, frames=1, height=64, width=64)
    run = json.loads((tmp_path / "run.json").read_text())
    run["settings"]["edits"] *= 10
    masks = report.gather(tmp_path, run)["masks"]
    assert [mask["step"] for mask in masks] == [0, 7, 14, 22, 29]


@pytest.mark.parametrize("height, width", [(64, 128), (256, 448), (512, 512)])
def test_tiles_are_the_sheets_own(tmp_path, height, width):
    make_run(tmp_path, frames=3, height=height, width=width)
    run = json.loads((tmp_path / "run.json").read_text())
    found = report.strips(tmp_path / "masks/edit-0-step-000.png", run)
    shrink = min(1, 192 / max(height, width))
    assert found["width"] == round(width * shrink)
    import base64
    import io

    from PIL import Image

    image = Image.open(io.BytesIO(base64.b64decode(found["strips"][0].partition(",")[2])))
    assert image.size == (3 * found["width"] + 8, round(height * shrink))


BROWSER = next(
    (found for name in ("chromium", "google-chrome", "chromium-browser") if (found := shutil.which(name))), None
)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_in_a_browser(tmp_path):
    """The script fills the page in, and says nothing in the console."""
    make_run(tmp_path)

    def shown(page):
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}",
        ]
        command = [BROWSER, *flags, "--virtual-time-budget=3000", "--dump-dom", page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    page = report.write_report(tmp_path)
    dom, console = shown(page)
    assert console == []
    assert re.search(r'id="frame-is">\d of 8<', dom) and 'id="step-is">step 0<' in dom and 'id="split-is">50 %<' in dom
    assert dom.count("<figure>") == 3 and 'width="192"' in dom  # a tile of attention is painted
    # and a script that fails would be seen
    broken = tmp_path / "broken.html"
    broken.write_text(page.read_text().replace("const count = data.clips", "const count = data.clop"))
    dom, console = shown(broken)
    assert "of 8<" not in dom and len(console) == 1


def test_command_gives_the_settings_again(tmp_path):
    settings = build(
        {
            "clip.path": "a clip.mp4",
            "clip.frames": None,
            "clip.size": (256, 448),
            "clip.every": 2,
            "source": "a man's red car",
            "checkpoint": "sd v1",
            "steps": 10,
            "frame_index": (-1, "first"),
            "clip_norm": False,
            "attention": "reconstruction",
            "edits.0.target": "a blue car",
            "edits.1.target": "watercolor of a car",
            "edits.0.reweight": (("blue", 2.5), ("car", -1.0)),
            "edits.0.threshold": 0.3,
            "edits.0.blend_words": (("red", "car"), ("blue",)),
            "edits.1.align": "refine",
            "edits.1.cross_replace": (0.1, 0.7),
            "edits.1.cross_replace_words": (("car", (0.0, 0.5)),),
            "edits.1.self_replace": 0.5,
            "edits.1.blend_latents": 0.4,
        }
    )
    words = shlex.split(command(as_json(settings), "out"))
    assert words[:3] == ["python", "-m", "fz.run"]
    again = parse(words[3:]).settings
    assert as_json(again) == as_json(settings) and again.out == "out"


@pytest.mark.parametrize("name", mini.DEFAULTS)
def test_command_of_the_miniature_gives_its_settings_again(name):
    """Also where one has the value that is usual with a checkpoint, and another without."""
    usual = {**fields(Settings), **{f"clip.{k}": v for k, v in fields(ClipSettings).items()}}[name]
    assert usual != mini.DEFAULTS[name]
    for value in (usual, mini.DEFAULTS[name]):
        given = {"clip.path": "clip", "source": "a car", "edits.0.target": "a boat", name: value}
        settings = build(mini.DEFAULTS, given)
        assert as_json(parse(shlex.split(command(as_json(settings)))[3:]).settings) == as_json(settings)


def test_mistakes_are_one_line(tmp_path, capsys):
    assert door.main([str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "has no run.json" in err and err.count("\n") == 1
    make_run(tmp_path, frames=1, height=64, width=64)
    assert door.main([str(tmp_path)]) == 0
    (tmp_path / "frames/edit-1/00000.png").write_bytes(b"no picture")
    assert door.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
