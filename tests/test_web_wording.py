"""What visitors read: one name for a control wherever it is meant, and errors of the core's in the page's words."""

import re

import pytest

pytest.importorskip("gradio", reason="the page's tests need pip install -e '.[web]'")

from fz.errors import FzError
from fz.shell import MEMORY
from fz.web import form as forms
from fz.web import show
from fz.web.page import Page
from fz.web.studio import MINIATURE, Models
from fz.web.wording import LABELS, for_visitors

MODELS = Models([None], {"device": "cpu"})
SOURCE = "a red car moving on the sand"
# what people who never saw the command line cannot read
FOREIGN = re.compile(r"\b[a-z]+_[a-z_]+\b|--|\btokens?\b|\bPass\b|\bblend\b|\bmask\b|\bsource\b|\btarget\b|UTF")


def form_of(**given):
    usual = {**forms.USUAL, "model": MINIATURE, "source": SOURCE, "target": "a blue car moving on the sand"}
    return forms.checked({**usual, **given})


STYLE = {"kind": "style", "target": f"{SOURCE}, watercolor painting", "keep_background": True}
WRONG = {
    "no area": (STYLE, ("“Leave all outside the area untouched”", "“More”")),
    "too long": ({"target": "very " * 80 + "car"}, ("too long", "“very very", "no room for")),
    "too long by what polishes": ({"enhance": "very " * 80}, ("too long", SOURCE.replace("red", "blue")[:20])),
    "takes away what is not there": (
        {"target": "", "remove": "cra"},
        ("Take away: 'cra'", "the first sentence", "Did you mean 'car'?"),
    ),
    "beside a sentence of its own": (
        {"remove": "lorry"},
        ("Take away: 'lorry' is not in the first sentence", "a, red, car"),
    ),
    "takes away everything": (
        {"target": "", "remove": SOURCE},
        ("Take away:", "nothing is left", "“What should it become?”"),
    ),
    "takes away no word": ({"target": "", "remove": "!!"}, ("Take away: ",)),
    "strength of what is gone": ({"weights": {"green": 2}}, ("Strength of each word: 'green'", "the second sentence")),
    "control character": ({"target": "a blue\x00 car"}, ("The second sentence",)),
    "no text": ({"source": "a red\ud800 car"}, ("The first sentence",)),
}


@pytest.mark.parametrize(("given", "parts"), WRONG.values(), ids=WRONG)
def test_errors_of_the_core_are_in_the_words_of_the_page(given, parts):
    form = form_of(**given)
    with pytest.raises(FzError) as error:
        MODELS.editor(MINIATURE).explain(form["source"], forms.sentence(form), **forms.editing(form))
    line = for_visitors(str(error.value))
    assert all(part in line for part in parts), line
    assert not FOREIGN.search(line), line
    # some are worded where they arise and again where they are shown
    assert for_visitors(line) == line


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (MEMORY, "There is not enough memory for this. Take fewer frames or a smaller size."),
        (
            "memory: this edit needs about 4.7 GB, and 1.2 GB are free. Take fewer --frames or a smaller --size.",
            "Too large: this edit needs about 4.7 GB, and 1.2 GB are free. Take fewer frames or a smaller size.",
        ),
        (
            "frames: a.mp4 has 8 frames, too few for 8 frames from frame 4 (needs 12). Use --frames 4 or --start 0",
            "How many frames: a.mp4 has 8 frames, too few for 8 frames from frame 4 (needs 12). "
            "Use “How many frames” 4 or “Begin after frame” 0",
        ),
        ("Use frames=4 or every=2", "Use “How many frames” 4 or “Take every … frame” 2"),
        ("video: a.mp4 is no video", "Your clip: a.mp4 is no video"),
        ("Choose what to try.", "Choose what to try."),
    ],
)
def test_lines_for_visitors(line, expected):
    assert for_visitors(line) == expected


def test_what_is_read_of_a_clip_is_told_without_settings(tmp_path):
    """As `fz.read` tells it: of 8 frames two, cut at the sides."""
    import numpy as np

    import fz
    from fz.clips.media import write_pngs

    write_pngs(tmp_path / "clip", np.zeros((8, 64, 128, 3), np.uint8))
    video = fz.read(str(tmp_path / "clip"), frames=2, size=64)
    assert "frames=" in video.notes[-1]
    lines = re.findall(r"<p.*?>(.*?)</p>", show.thumbnails(video))
    assert lines == ["Frames 1–2 of 8, centre 64×64 → 64×64"]


@pytest.fixture(scope="module")
def page():
    """The page's controls, of a server that nobody visits."""
    from types import SimpleNamespace

    folder, examples = SimpleNamespace(upload_limit=10**6), SimpleNamespace(listed=list)
    page = Page(SimpleNamespace(folder=folder, models=MODELS, examples=examples), 7860)
    page.build()
    return page


def test_a_control_has_the_name_that_errors_give_it(page):
    shown = {name: part.label for name, part in page.parts.items() if name in LABELS}
    assert shown == LABELS
    assert len({label.lower() for label in LABELS.values()}) == len(LABELS)


def test_what_the_area_is_for_is_said(page):
    """It frees shapes and protects nothing; what protects says which area."""
    area = page.parts["area"]
    assert "shapes" in area.label and "first sentence" in area.info and "only" not in area.label.lower()
    assert "smaller" in page.parts["area_limit"].info
    assert "the one that you draw" in page.parts["keep_background"].info


def test_the_table_of_words_has_no_terms_of_its_own():
    form = form_of(keep_place=0)
    shown = [
        show.words(MODELS.editor(MINIATURE).explain(f["source"], f["target"], **forms.editing(f)), True, True)
        for f in (form, form_of())
    ]
    for table in shown:
        assert re.findall(r'<th scope="col">(.*?)</th>', table) == ["Word", "What happens", "Kept in place", "Strength"]
        assert not re.search("is free|Held|piece|token", table)
    assert "until step" in shown[1] and "until step" not in shown[0]
