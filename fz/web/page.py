"""How is the page laid out? Gradio's controls in four sections, from the clip to the result; what happens at what is
`fz.web.events`'s question, what moves in the browser page.js's.
"""

from pathlib import Path
from typing import Any

import gradio as gr

from fz.web import form as forms
from fz.web import show
from fz.web.desk import Desk
from fz.web.events import Events
from fz.web.guard import cookie_name
from fz.web.studio import guess
from fz.web.wording import LABELS, MORE, STRENGTH

HERE = Path(__file__).parent


def as_sent(part: Any, payload: Any) -> Any:
    """What a page sends of a control. What it may be is `forms.checked`'s question: Gradio's own checks answer without
    a line, and go by what it last told the page, which a server that was started again does not know.
    """
    return payload


for kind in (gr.Slider, gr.Radio, gr.Dropdown):
    kind.preprocess = as_sent


def look() -> dict[str, Any]:
    """Theme, style and script: fonts of the visitor's system, nothing from elsewhere."""
    fonts = ("ui-sans-serif", "system-ui", "sans-serif")
    theme = gr.themes.Base(
        primary_hue=gr.themes.colors.orange, neutral_hue=gr.themes.colors.stone, radius_size=gr.themes.sizes.radius_lg,
        font=fonts, font_mono=("ui-monospace", "Consolas", "monospace"),
    )  # fmt: skip
    script = (HERE / "page.js").read_text(encoding="utf-8")
    return {
        "theme": theme,
        "css": (HERE / "page.css").read_text(encoding="utf-8"),
        "head": f"<script>{script}</script>",
    }


class Page:
    """`build` makes the blocks. parts: controls by their names in a form; out: what is shown, by name."""

    def __init__(self, desk: Desk, port: int):
        self.desk, self.cookie = desk, cookie_name(port)
        self.parts: dict[str, Any] = {}
        self.out: dict[str, Any] = {}

    # ---- layout --------------------------------------------------------------------------------------------

    def build(self) -> gr.Blocks:
        with gr.Blocks(title="fz: edit a clip by words", analytics_enabled=False) as blocks:
            gr.HTML(HEADER, elem_classes="fz-plain")
            self.hidden()
            with gr.Column(elem_classes="fz-section"):
                self.clip_section()
            with gr.Column(elem_classes="fz-section"):
                self.words_section()
            with gr.Column(elem_classes="fz-section"):
                self.edit_section()
            with gr.Column(elem_classes="fz-section"):
                gr.HTML(title(4, "Result"), elem_classes="fz-plain")
                self.shown("result")
                self.shown("history")
            Events(self.desk, self.cookie, self.parts, self.out).wire(blocks)
        return blocks

    def hidden(self) -> None:
        """What the script tells, and what a page remembers."""
        for name in ("clip", "word", "weights", "drawing", "tile", "result", "done", "uploaded"):
            self.out[f"say {name}"] = gr.Textbox(elem_id=f"fz-{name}", elem_classes="fz-hidden", show_label=False)
        for name in ("clip_id", "mask"):
            self.parts[name] = gr.Textbox(elem_id=f"fz-{name}", elem_classes="fz-hidden", show_label=False)
        self.parts["weights"] = gr.JSON({}, elem_classes="fz-hidden", show_label=False)

    def shown(self, name: str, value: str = "") -> None:
        self.out[name] = gr.HTML(value, elem_id=f"fz-shown-{name.replace(' ', '-')}", elem_classes="fz-plain")

    def part(self, name: str, kind: type, **options: Any) -> None:
        usual = {"elem_id": f"fz-{name.replace('_', '-')}"} | ({"label": LABELS[name]} if name in LABELS else {})
        self.parts[name] = kind(**usual, **options)

    def clip_section(self) -> None:
        gr.HTML(title(1, "Your clip"), elem_classes="fz-plain")
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=280):
                gr.HTML(f'<fz-drop data-limit="{self.desk.folder.upload_limit}"></fz-drop>', elem_classes="fz-plain")
                gr.HTML(
                    "<h3>Or begin with one of these</h3>" + show.examples(self.desk.examples.listed()),
                    elem_classes="fz-plain",
                )
            with gr.Column(scale=2, min_width=280):
                usual = guess(self.desk.models, self.desk.models.names[0])
                several = len(self.desk.models.names) > 1
                self.part("model", gr.Dropdown, choices=self.desk.models.names, value=self.desk.models.names[0],
                          visible=True if several else "hidden")  # fmt: skip
                self.part("frames", gr.Slider, minimum=1, maximum=forms.MOST_FRAMES, step=1, value=8)
                self.part("start", gr.Slider, minimum=0, maximum=7, step=1, value=0)
                self.part("every", gr.Slider, minimum=1, maximum=10, step=1, value=1)
                self.part("size", gr.Slider, minimum=64, maximum=768, step=32, value=usual["size"],
                          info="pixels; larger takes longer")  # fmt: skip
        self.shown("clip said")
        self.shown("frames")

    def words_section(self) -> None:
        gr.HTML(title(2, "Words"), elem_classes="fz-plain")
        with gr.Row():
            self.part("source", gr.Textbox, max_length=1000, min_width=280,
                      placeholder="a red car moving on the sand")  # fmt: skip
            self.part("target", gr.Textbox, max_length=1000, min_width=280,
                      placeholder="a blue car moving on the sand")  # fmt: skip
        self.shown("words")
        self.shown("where")

    def edit_section(self) -> None:
        gr.HTML(title(3, "Edit"), elem_classes="fz-plain")
        self.part("kind", gr.Radio, choices=list(forms.KINDS.items()), value="attribute")
        with gr.Row(equal_height=False):
            with gr.Column(min_width=280):
                self.part("keep_shape", gr.Slider, minimum=0, maximum=100, step=1, value=80,
                          info="% of the way: more stays closer to your clip")  # fmt: skip
                self.part("keep_place", gr.Slider, minimum=0, maximum=100, step=1, value=70,
                          info="% of the way: words stay where they were")  # fmt: skip
                self.part("area", gr.Checkbox, value=False,
                          info="the area of those words of the first sentence that change; elsewhere shapes stay as in "
                          "your clip")  # fmt: skip
                self.part("area_limit", gr.Slider, minimum=0.05, maximum=0.95, step=0.01, value=0.3,
                          info="tighter is smaller")  # fmt: skip
                self.shown("area")
            with gr.Column(min_width=280):
                gr.HTML(f"<h3>{STRENGTH}</h3>", elem_classes="fz-plain")
                self.shown("weights")
                self.part("keep_background", gr.Checkbox, value=False,
                          info="the area where the changed words are, or the one that you draw")  # fmt: skip
        with gr.Accordion(MORE, open=False, elem_id="fz-more"):
            with gr.Row():
                self.part("remove", gr.Textbox, placeholder="red car", max_length=200, min_width=240,
                          info="words of the first sentence")  # fmt: skip
                self.part("enhance", gr.Textbox, placeholder="watercolor painting", max_length=200, min_width=240,
                          info="words put after the second sentence")  # fmt: skip
            self.shown("brush")
            self.shown("drawn")
            with gr.Row():
                self.part("steps", gr.Slider, minimum=2, maximum=100, step=1, value=20,
                          info="more is finer and takes longer", min_width=240)  # fmt: skip
                self.part("guidance", gr.Slider, minimum=1, maximum=15, step=0.5, value=3, min_width=240)
        with gr.Row(elem_classes="fz-go"):
            self.out["preview button"] = gr.Button("Preview", elem_id="fz-preview", min_width=120)
            self.out["run button"] = gr.Button("Run", variant="primary", elem_id="fz-run", min_width=120)
            self.part("fast", gr.Checkbox, value=False, min_width=200)
            self.part("stays", gr.Checkbox, value=True, min_width=200)
        self.shown("edit said")
        gr.HTML("<fz-progress></fz-progress>", elem_classes="fz-plain")
        self.shown("preview")
        with gr.Accordion("Try settings: one sheet of many", open=False, elem_id="fz-try"):
            self.part("vary", gr.Radio, choices=list(forms.VARIED), value=next(iter(forms.VARIED)), label="Try")
            self.out["sheet button"] = gr.Button("Make the sheet", elem_id="fz-sheet")
            self.shown("sheet")


HEADER = """<header class="fz-header"><h1>Edit a clip by words</h1>
<p>Say what is in it and what it should become. What moves keeps moving.</p></header>"""


def title(number: int, text: str) -> str:
    return f'<h2 class="fz-title"><span aria-hidden="true">{number}</span>{text}</h2>'
