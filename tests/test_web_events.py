"""What the page answers to what a visitor does, without a browser: uploads, words half typed, areas that are drawn,
sheets.
"""

import asyncio
import base64
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the page's tests need pip install -e '.[web]'")

from web_desk import MODELS, SECRET, desk_in

import fz
from fz.errors import FzError
from fz.prompts.plan import plan_edit
from fz.web import form as forms
from fz.web import show
from fz.web.events import Asked, Events
from fz.web.folder import new_id
from fz.web.jobs import Job
from fz.web.routes import Routes
from fz.web.studio import MINIATURE
from fz.web.wording import LABELS


@pytest.fixture
def desk(tmp_path):
    with desk_in(tmp_path) as found:
        yield found


@pytest.fixture
def asked(desk):
    """A question about the bundled clip: an edit of a second."""
    visitor = desk.folder.visitor(SECRET)
    clip = desk.choose(visitor, desk.examples.clips[0].id)
    usual = {**forms.USUAL, "model": MINIATURE, "source": clip.source, "target": clip.target}
    return Asked(visitor, clip, {**usual, "frames": 2, "size": 64, "steps": 4}, None)


class Named(dict):
    """Blocks of a page by their names, which are told by `mark`."""

    def __init__(self, mark=""):
        self.mark = mark

    def __missing__(self, name):
        return self.mark + name


def page(desk):
    """Its events; what they answer is a dict of names, controls' with a '*'."""
    return Events(desk, "cookie", Named("*"), Named())


# ---- uploads ---------------------------------------------------------------------------------------------------


def put(desk, batch, name, body):
    """The answer to a file that a page sends."""

    async def stream():
        yield body

    scope, params = {"fz_secret": SECRET}, {"batch": batch, "name": name}
    request = SimpleNamespace(scope=scope, path_params=params, stream=stream, method="PUT")
    return asyncio.run(Routes(desk).answering(Routes(desk).upload)(request))


def grey(value):
    out = io.BytesIO()
    Image.fromarray(np.full((64, 64, 3), value, np.uint8)).save(out, "PNG")
    return out.getvalue()


LONG = "a silver jeep driving down a curvy road in the countryside"


@pytest.mark.parametrize(
    "names",
    [
        [f"{LONG} {i:05d}.png" for i in range(3)],
        [f"{LONG}{i}.png" for i in (8, 9, 10, 11)],
        [f"{LONG[:52]}{i}.png" for i in (99999999, 100000000)],
        [f"{LONG} take {i} of many.png" for i in range(12)],
        ["A.png", "a.png"],
        ["A", "a", "b.png"],
        ["img (1).png", "img-1.png", "img-2.png", "img-10.png"],
        ["银色的吉普车沿着乡间蜿蜒的道路行驶在阳光明媚的早晨之中" + end + ".png" for end in ("一", "三", "二")],
        ["银色的吉普车沿着乡间蜿蜒的道路行驶在阳光明媚的早晨之中" + str(i) + ".png" for i in (9, 10)],
        ["??.png", "!!.png"],
    ],
    ids=[
        "padded",
        "8 to 11",
        "longer by a digit",
        "number within",
        "case",
        "no ending",
        "brackets",
        "Chinese",
        "Chinese 9 and 10",
        "nothing left",
    ],
)
def test_each_picture_of_an_upload_is_a_frame_in_its_order(desk, names):
    batch = new_id()
    for i, name in enumerate(names):
        assert put(desk, batch, name, grey(20 * i)).status_code == 200
    clip = desk.uploaded(desk.folder.visitor(SECRET), batch)
    pictures = [i for i, name in enumerate(names) if name.endswith(".png")]
    assert clip.count == len(pictures) and clip.name == f"{len(names)} pictures"
    frames = fz.read(clip.path, frames=clip.count, size=64).frames
    assert [round(float(frame.mean() + 1) * 127.5) for frame in frames] == [20 * i for i in pictures]


def test_two_files_of_one_name_that_come_at_once_are_two(desk):
    """The second comes while the first is not whole yet."""
    batch, second = new_id(), []

    async def stream():
        yield b"one"
        second.append(await routes.upload(request(other)))
        yield b"one"

    async def other():
        yield b"two"

    def request(body):
        params = {"batch": batch, "name": "A.png"}
        return SimpleNamespace(scope={"fz_secret": SECRET}, path_params=params, stream=body)

    routes = Routes(desk)
    first = asyncio.run(routes.upload(request(stream)))
    names = [json.loads(answer.body)["name"] for answer in (first, *second)]
    place = desk.folder.batch(desk.folder.visitor(SECRET), batch)
    assert {name: (place / name).read_bytes() for name in names} == {names[0]: b"oneone", names[1]: b"two"}
    assert sorted(path.name for path in place.iterdir()) == sorted(names)


# ---- words half typed ------------------------------------------------------------------------------------------


def test_a_result_is_shown_while_words_are_half_typed(desk, asked):
    made = desk.studio.do(Job(asked.visitor.name, asked.clip.id, "run", forms.checked(asked.form)))
    asked.form |= {"remove": "ca", "area": True}
    for kind in ("run", "preview", "sheet"):
        asked.said = {"clip": asked.clip.id, "kind": kind, "state": "done", "made": made, "line": ""}
        shown = page(desk).done(asked)
        assert "&#x27;ca&#x27; is not in" in shown["words"] and "fz-error" in shown["words"]
        assert shown.keys() >= {"run": {"result", "history"}}.get(kind, {kind}) | {"frames", "area", "edit said"}
    asked.said["kind"] = "run"
    shown = page(desk).done(asked)
    assert made in shown["result"] and made in shown["history"]


def test_every_event_answers_while_words_are_half_typed(desk, asked):
    """With all that it shows, the words' mistake among it; none of it tells the server's folders."""
    whole = asked.form
    events = page(desk)
    kinds = {
        "reframed": {"frames", "brush", "area"},
        "repainted": {"*steps", "frames"},
        "weighted": {"*weights"},
        "preset": {"*keep_shape", "area"},
        "worded": {"area", "*area", "*area_limit"},
        "retold": set(),
    }
    for name, expected in kinds.items():
        asked.form, asked.said = {**whole, "remove": "ca", "area": True, "kind": "shape"}, {"blue": 2.0}
        shown = getattr(events, name)(asked)
        assert expected < shown.keys() and "&#x27;ca&#x27; is not in" in shown["words"], name
        assert str(desk.folder.root) not in json.dumps(shown), name


# ---- areas that are drawn --------------------------------------------------------------------------------------


def drawing(value):
    out = io.BytesIO()
    Image.fromarray(np.full((64, 64), value, np.uint8)).save(out, "PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def test_an_area_is_called_drawn_where_the_server_has_one(desk, asked):
    """Not after all of it was wiped, and not where it was refused."""
    events = page(desk)
    for said, there in ((drawing(255), True), (drawing(0), False), (drawing(255), True), ("", False)):
        asked.said = said
        shown = events.drawn(asked)
        assert bool(shown["*mask"]) == there == ("An area is drawn." in shown["drawn"])
    # a clip, a result or a sheet's picture that has one brings it along
    for mask in ("", "0" * 16):
        shown = events.shown_frames(Asked(asked.visitor, asked.clip, {**asked.form, "mask": mask}, None))
        assert ("An area is drawn." in shown["drawn"]) == bool(mask)


def test_a_drawn_area_keeps_the_background_where_no_word_changes(desk, asked):
    """The words' table, the area and an edit know of it, as a run does."""
    asked.said = drawing(255)
    asked.form |= {"target": "", "enhance": "watercolor painting", "keep_background": True}
    shown = page(desk).drawn(asked) | page(desk).worded(asked)
    assert "fz-error" not in shown["words"] and "The area that you drew below is used." in shown["area"]
    job = desk.submit(asked.visitor, asked.clip, "preview", asked.form)
    assert desk.studio.do(job) == "preview"
    asked.form["mask"] = ""
    assert "Leave all outside the area untouched" in page(desk).worded(asked)["words"]


# ---- areas of words --------------------------------------------------------------------------------------------

RED = {"target": "", "remove": "red car"}
AREAS = [
    ({}, None),
    ({"area": True}, 0.7),
    ({"keep_background": True}, 0.3),
    ({"area": True, "keep_background": True}, 0.7),
    # a removal without a limit of its own has the usual one
    (RED, 0.3),
    ({**RED, "area": True}, 0.7),
    # in ten steps no shape is kept
    ({"area": True, "keep_shape": 9}, None),
    ({"area": True, "keep_shape": 9, "keep_background": True}, 0.7),
    ({"area": True, "mask": "0" * 16}, None),
]


@pytest.mark.parametrize(("form", "limit"), AREAS)
def test_the_limit_that_is_shown_is_the_one_that_counts(form, limit, desk, asked):
    asked.form |= {"area_limit": 0.7, "steps": 10, **form}
    desk.studio.inverted(Job("", asked.clip.id, "preview", asked.form), asked.clip, asked.form, quick=True)
    shown, edit = desk.area(asked.clip, asked.form), forms.settings_of(asked.form)
    tokens = [MODELS.editor(MINIATURE).checkpoint.text.tokens(prompt) for prompt in (asked.form["source"], edit.target)]
    plan = plan_edit(edit, *tokens, steps=10)
    frees_shapes = plan.region.mask_words is not None and (plan.region.hides_object or plan.fusion.replaces_self(0))
    used = edit.mask is None and (frees_shapes or plan.region.background is not None)
    assert limit == (plan.region.threshold if used else None)
    if limit is None:
        assert "data-limit" not in shown
    else:
        assert f'data-limit="{limit:g}"' in shown and ("usual tightness" in shown) == (limit == 0.3)
    assert ("no area is used" in shown) == (form == {"area": True, "keep_shape": 9})


@pytest.mark.parametrize("form", [{}, {"area": True}])
def test_what_changes_is_the_area_that_is_shown(form, desk, asked, monkeypatch):
    """To the pixel, wherever the slider stands; where it does not count, it cannot be moved."""
    seen = []
    monkeypatch.setattr(show, "spotlight", lambda video, mask, alt: seen.append(mask) or "")
    asked.form |= {"size": 128, "keep_background": True, **form}
    job, areas = Job("", asked.clip.id, "run", asked.form), []
    inversion = desk.studio.inverted(job, asked.clip, asked.form, quick=False)
    for limit in (0.1, 0.7):
        asked.form["area_limit"] = limit
        shown = page(desk).bounded(asked)
        edited = desk.studio.edited(job, inversion, asked.form, None, quick=False)
        changed = (edited.frames != inversion.video.frames).any(1)
        assert not changed[~seen[-1]].any() and changed[seen[-1]].float().mean() > 0.95
        assert f"{100 * float(seen[-1].float().mean()):.0f} % of the picture may change" in shown["area"]
        assert shown["*area_limit"]["interactive"] == bool(form)
        areas.append(float(seen[-1].float().mean()))
    assert (areas[0] > areas[1]) if form else (areas[0] == areas[1])


def test_an_area_where_shapes_change_is_not_called_all_that_changes(desk, asked):
    asked.form |= {"area": True}
    desk.studio.inverted(Job("", asked.clip.id, "preview", asked.form), asked.clip, asked.form, quick=True)
    assert "% of the picture: there shapes may change" in desk.area(asked.clip, asked.form)


@pytest.mark.parametrize("event", ["with_form", "worded", "preset", "bounded", "drawn"])
def test_controls_that_do_not_count_cannot_be_moved(event, desk, asked):
    """What is taken away is hidden within an area, always; one that is drawn has no limit."""
    cases = [
        ({"kind": "style"}, (False, True, False)),
        ({"kind": "shape", "area": True}, (True, True, True)),
        ({"remove": "red"}, (True, False, True)),
        ({"kind": "shape", "area": True, "mask": "0" * 16}, (True, False, False)),
    ]
    for form, expected in cases:
        asked.form |= {"kind": "attribute", "area": False, "remove": "", "mask": "", **form}
        if event == "drawn":
            asked.said = drawing(255) if "mask" in form else ""
        arguments = (asked, asked.clip, asked.form) if event == "with_form" else (asked,)
        shown = getattr(page(desk), event)(*arguments)
        box, limit = shown["*area"], shown["*area_limit"]
        assert (box["value"], box["interactive"], limit["interactive"]) == expected, form


# ---- sheets ----------------------------------------------------------------------------------------------------

SHAPE, PLACE, AREA, STRENGTH = forms.VARIED


@pytest.mark.parametrize(
    ("vary", "form", "line"),
    [
        (AREA, {"mask": "0" * 16}, "area that you drew is used"),
        (AREA, {"mask": "0" * 16, "keep_background": True}, "area that you drew is used"),
        (AREA, {"target": "a red car moving on the sand"}, "No word of the first sentence changes"),
        (AREA, {"target": "", "enhance": "watercolor painting"}, "No word of the first sentence changes"),
        (AREA, {"keep_shape": 20}, "no area is used"),
        (STRENGTH, {"keep_place": 0}, "no word has a strength"),
        (STRENGTH, {"keep_place": 10}, "no word has a strength"),
        (STRENGTH, {"target": "a red car moving on the sand"}, "No word of the new sentence is new"),
        ("", {}, "Choose what to try"),
    ],
)
def test_a_sheet_of_pictures_that_cannot_differ_is_refused_before_it_waits(vary, form, line, desk, asked):
    with pytest.raises(FzError, match=line):
        desk.submit(asked.visitor, asked.clip, "sheet", {**asked.form, **form, "vary": vary})
    assert desk.queue.jobs == []


SHEETS = [
    (SHAPE, {}, 5),
    (PLACE, {}, 4),
    (AREA, {}, 6),
    (AREA, {"keep_shape": 0, "keep_background": True}, 5),
    # a removal without a limit has the usual one
    (AREA, {"keep_shape": 0, "remove": "red"}, 5),
    (STRENGTH, {"keep_place": 100}, 5),
]


def sheet(desk, asked, vary, form):
    return desk.submit(asked.visitor, asked.clip, "sheet", {**asked.form, "size": 128, **form, "vary": vary})


@pytest.mark.parametrize(("vary", "form", "count"), SHEETS)
def test_a_sheet_has_what_makes_another_edit(vary, form, count, desk, asked):
    """Of the shares that four steps know each once."""
    tried = desk.studio.tried(sheet(desk, asked, vary, form).form, vary)
    assert len(tried) == count == len({json.dumps(tile) for tile in tried})


def test_the_tiles_of_an_area_say_what_grows(desk, asked):
    """It gets tighter, as the slider of that name, until no shape changes; 'everywhere' is where shapes are kept."""
    assert AREA == LABELS["area_limit"]
    job = sheet(desk, asked, AREA, {"area": True, "area_limit": 0.9})
    tried = desk.studio.tried(job.form, AREA)
    labels = [forms.label(form, job.form) for form in tried]
    assert labels == [f"tightness {limit:g}" for limit in (0.1, 0.2, 0.3, 0.45, 0.6)] + ["shapes kept everywhere"]
    limits = [forms.limit(form) for form in tried]
    assert limits[:-1] == sorted(limits[:-1]) and limits[-1] is None and not tried[-1]["area"]


@pytest.mark.slow
@pytest.mark.parametrize(("vary", "form", "count"), SHEETS)
def test_all_pictures_of_a_sheet_differ(vary, form, count, desk, asked):
    desk.studio.do(sheet(desk, asked, vary, form))
    tiles = json.loads((asked.visitor.place(asked.clip.id) / "sheet.json").read_text())["tiles"]
    assert len({tile["picture"] for tile in tiles}) == len({tile["label"] for tile in tiles}) == count
