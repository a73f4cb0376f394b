"""What happens on the page at what? Each event as a function from what is asked to what is shown; the pieces are
`fz.web.desk`'s.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from fz.errors import FzError
from fz.shell import explain
from fz.web import form as forms
from fz.web import show
from fz.web.desk import Desk
from fz.web.folder import Visitor, VisitorClip
from fz.web.studio import guess
from fz.words import says

Updates = dict[Any, Any]


class Asked:
    """One question of a page: whose, about which clip, with which form."""

    def __init__(self, visitor: Visitor, clip: VisitorClip | None, form: dict[str, Any], said: Any):
        self.visitor, self.form, self.said = visitor, form, said
        self.maybe = clip

    @property
    def clip(self) -> VisitorClip:
        if self.maybe is None:
            raise FzError("Choose or bring a clip first.")
        return self.maybe


class Events:
    """`wire` ties them to the page's blocks. parts: controls by their names in a form; out: what is shown, by name."""

    def __init__(self, desk: Desk, cookie: str, parts: dict[str, Any], out: dict[str, Any]):
        self.desk, self.cookie, self.parts, self.out = desk, cookie, parts, out

    def wire(self, blocks: gr.Blocks) -> None:
        parts, out = self.parts, self.out
        everything = [*parts.values(), *(box for name, box in out.items() if not name.startswith("say "))]
        self.on(blocks.load, self.opened, everything, "clip said")
        self.on(out["say clip"].change, self.chosen, everything, "clip said", out["say clip"])
        self.on(out["say uploaded"].change, self.uploaded, everything, "clip said", out["say uploaded"])
        clip = [out[name] for name in ("frames", "clip said", "words", "area", "brush", "drawn")]
        for name in ("frames", "start", "every", "size"):
            self.on(parts[name].input, self.reframed, clip, "clip said")
        self.on(parts["model"].input, self.repainted, [*clip, *(parts[n] for n in ("size", "steps", "guidance"))],
                "clip said")  # fmt: skip
        bounds = [out["area"], parts["area"], parts["area_limit"]]
        words = [out["words"], out["weights"], out["area"], parts["weights"]]
        for name in ("source", "target", "enhance"):
            self.on(parts[name].input, self.worded, words, "words")
        self.on(parts["remove"].input, self.worded, [*words, *bounds], "words")
        self.on(out["say weights"].change, self.weighted, [out["words"], parts["weights"]], "words", out["say weights"])
        self.on(out["say word"].change, self.where, [out["where"]], "where", out["say word"])
        preset = [parts[name] for name in forms.of_preset("style")]
        self.on(parts["kind"].input, self.preset, [out["words"], *preset, *bounds], "words")
        # how much of the shape is kept decides whether an area counts
        for name in ("keep_shape", "keep_place", "steps", "fast"):
            self.on(parts[name].input, self.reframed, [out["words"], out["frames"], out["area"]], "words")
        self.on(parts["area"].input, self.bounded, [out["area"], parts["area_limit"]], "area")
        # what is moved just now stays as it is
        for name in ("area_limit", "keep_background"):
            self.on(parts[name].input, self.bounded, [out["area"]], "area")
        drawn = [parts["mask"], *bounds, out["drawn"], out["edit said"]]
        self.on(out["say drawing"].change, self.drawn, drawn, "edit said", out["say drawing"])
        for name, kind in (("preview button", "preview"), ("run button", "run"), ("sheet button", "sheet")):
            self.on(out[name].click, self.submitting(kind), [out["edit said"]], "edit said", mode="multiple")
        done = [out[name] for name in ("words", "area", "preview", "sheet", "result", "history", "edit said", "frames")]
        self.on(out["say done"].change, self.done, done, "edit said", out["say done"], mode="multiple")
        self.on(out["say tile"].change, self.tile, everything, "edit said", out["say tile"])
        self.on(out["say result"].change, self.result, everything, "edit said", out["say result"])

    def on(
        self, trigger: Callable, work: Callable, outputs: list, said: str, box: Any = None, mode: str = "always_last"
    ):
        """Call `work` with what is asked, and show what it returns; a mistake is its one line at `said`. box: the
        script's, whose value comes as `said` of what is asked.
        """  # fmt: skip

        def answer(values: Mapping[Any, Any], request: gr.Request) -> Updates:
            try:
                answered = work(self.asked(values, request, box))
                return {part: value for part, value in answered.items() if part in shown}
            except FzError as error:
                line = self.desk.folder.told(str(error))
            except Exception as error:
                print(f"fz web: {explain(error)[0]}", flush=True)
                line = "Something went wrong here that is not your doing. The server's log has it."
            return {self.out[said]: show.note(line, "error")}

        shown = list(dict.fromkeys([*outputs, self.out[said]]))
        inputs = {*self.parts.values(), *([box] if box is not None else [])}
        trigger(answer, inputs, shown, queue=False, show_progress="hidden", trigger_mode=mode, api_visibility="private")

    def asked(self, values: Mapping[Any, Any], request: gr.Request, box: Any) -> Asked:
        visitor = self.desk.folder.visitor(dict(request.cookies).get(self.cookie))
        form = {name: values[part] for name, part in self.parts.items()}
        form = {name: forms.USUAL.get(name, "") if value is None else value for name, value in form.items()}
        clip_id, said = form.pop("clip_id"), None
        if box is not None:
            try:
                said = json.loads(values[box])["value"]
            except (TypeError, ValueError, KeyError, RecursionError):
                raise FzError("The page sent something that is no answer. Load it again.") from None
        return Asked(visitor, visitor.clip(clip_id) if clip_id else None, {**form, **forms.checked(form)}, said)

    # ---- what happens --------------------------------------------------------------------------------------

    def opened(self, asked: Asked) -> Updates:
        """A page is loaded: where its visitor was, or the bundled clip."""
        last = asked.visitor.last()
        try:
            clip = asked.visitor.clip(last) if last else None
        except FzError:
            clip = None
        return self.with_clip(asked, clip or self.desk.choose(asked.visitor, self.desk.examples.clips[0].id))

    def chosen(self, asked: Asked) -> Updates:
        return self.with_clip(asked, self.desk.choose(asked.visitor, str(asked.said)))

    def uploaded(self, asked: Asked) -> Updates:
        return self.with_clip(asked, self.desk.uploaded(asked.visitor, str(asked.said)))

    def with_clip(self, asked: Asked, clip: VisitorClip) -> Updates:
        """The page for another clip: with the settings of its last edit, or as it begins."""
        form = self.desk.form_of(asked.visitor, clip)
        if form is None or form["model"] not in self.desk.models.names:
            model = asked.form["model"] if asked.form["model"] in self.desk.models.names else self.desk.models.names[0]
            begin = {"model": model, "frames": min(8, clip.count), "source": clip.source, "target": clip.target}
            form = {**forms.USUAL, **guess(self.desk.models, model), **begin}
        updates = self.with_form(asked, clip, form)
        result, history = self.desk.results(asked.visitor, clip)
        out = self.out
        updates |= {out["result"]: result, out["history"]: history, self.parts["clip_id"]: clip.id}
        updates |= {out["preview"]: self.desk.preview(asked.visitor, clip), out["where"]: ""}
        updates |= {out["sheet"]: self.desk.sheet(asked.visitor, clip)}
        name = f"<p class='fz-note' role='status' data-clip='{clip.id}'>{show.safe(clip.name)}, {clip.count} frames</p>"
        return updates | {out["clip said"]: name}

    def with_form(self, asked: Asked, clip: VisitorClip, form: dict[str, Any]) -> Updates:
        """All controls at a form's values, and what follows from them."""
        parts = self.parts
        updates: Updates = {parts[name]: value for name, value in form.items() if name in parts}
        for name, end in forms.ends(clip.count).items():
            updates[parts[name]] = gr.update(maximum=end, value=form[name], interactive=clip.count > 1)
        asked.maybe, asked.form = clip, form
        return updates | self.worded(asked) | self.shown_frames(asked) | {self.out["edit said"]: ""}

    def shown_frames(self, asked: Asked) -> Updates:
        out, drawn = self.out, self.is_drawn(asked)
        try:
            frames, brush = self.desk.frames(asked.clip, asked.form), self.desk.brush(asked.clip, asked.form)
            return {out["frames"]: frames, out["brush"]: brush, out["drawn"]: drawn}
        except FzError as error:
            return {out["frames"]: self.refused(error), out["brush"]: "", out["drawn"]: ""}

    def is_drawn(self, asked: Asked) -> str:
        return show.note("An area is drawn." if asked.form["mask"] else "")

    def refused(self, error: FzError) -> str:
        """A mistake in the place of what cannot be shown."""
        return show.note(self.desk.folder.told(str(error)), "error")

    def reframed(self, asked: Asked) -> Updates:
        return self.shown_frames(asked) | self.retold(asked) | self.bounded(asked)

    def repainted(self, asked: Asked) -> Updates:
        """Another model: its own size and steps."""
        usual = guess(self.desk.models, asked.form["model"])
        asked.form |= usual
        return {self.parts[name]: value for name, value in usual.items()} | self.reframed(asked)

    def worded(self, asked: Asked) -> Updates:
        bounds = self.bounds(asked)
        try:
            table, weights = self.desk.words(asked.maybe, asked.form)
        except FzError as error:
            return {self.out["words"]: self.refused(error), self.out["area"]: "", **bounds}
        shown = {self.out["words"]: table, self.out["weights"]: weights}
        return shown | {self.parts["weights"]: asked.form["weights"]} | self.bounded(asked)

    def retold(self, asked: Asked) -> Updates:
        """The words' table alone: sliders are where they are. What is shown with it does not wait for a sentence."""
        try:
            return {self.out["words"]: self.desk.words(asked.maybe, asked.form)[0]}
        except FzError as error:
            return {self.out["words"]: self.refused(error)}

    def weighted(self, asked: Asked) -> Updates:
        asked.form |= {"weights": dict(asked.said)} if isinstance(asked.said, dict) else {}
        asked.form = {**asked.form, **forms.checked(asked.form)}
        return {self.parts["weights"]: asked.form["weights"]} | self.retold(asked)

    def where(self, asked: Asked) -> Updates:
        return {self.out["where"]: self.desk.word(asked.clip, asked.form, str(asked.said))}

    def preset(self, asked: Asked) -> Updates:
        values = forms.of_preset(asked.form["kind"])
        asked.form |= values
        bounded = self.bounded(asked)
        return {self.parts[name]: value for name, value in values.items()} | self.retold(asked) | bounded

    def bounds(self, asked: Asked) -> Updates:
        """The area's controls, which can be moved where they count: what is taken away is always hidden within an area,
        and one that is drawn has no limit.
        """
        form, removes = asked.form, bool(asked.form["remove"].strip())
        form["area"] = form["area"] or removes
        box = gr.update(value=form["area"], interactive=not (removes or form["mask"]))
        limit = gr.update(value=form["area_limit"], interactive=forms.sets_limit(form))
        return {self.parts["area"]: box, self.parts["area_limit"]: limit}

    def bounded(self, asked: Asked) -> Updates:
        shown = self.bounds(asked)
        if asked.maybe is None or not says(asked.form["source"]) or forms.sentence(asked.form) == "":
            return {self.out["area"]: "", **shown}
        try:
            return {self.out["area"]: self.desk.area(asked.clip, asked.form), **shown}
        except FzError as error:
            return {self.out["area"]: self.refused(error), **shown}

    def drawn(self, asked: Asked) -> Updates:
        asked.form["mask"] = self.desk.drawn(asked.visitor, asked.clip, str(asked.said)) if asked.said else ""
        shown = {self.out["drawn"]: self.is_drawn(asked), self.out["edit said"]: ""}
        return {self.parts["mask"]: asked.form["mask"]} | shown | self.bounded(asked)

    def submitting(self, kind: str) -> Callable[[Asked], Updates]:
        def submit(asked: Asked) -> Updates:
            job = self.desk.submit(asked.visitor, asked.clip, kind, asked.form)
            return {self.out["edit said"]: f'<p class="fz-sent" data-job="{job.id}"></p>'}

        return submit

    def done(self, asked: Asked) -> Updates:
        """A job of this visitor ended."""
        said = asked.said if isinstance(asked.said, dict) else {}
        if asked.maybe is None or said.get("clip") != asked.clip.id:
            return {self.out["edit said"]: ""}
        result, history = self.desk.results(asked.visitor, asked.clip, str(said.get("made", "")))
        shown = {self.out["result"]: result, self.out["history"]: history} if said.get("kind") == "run" else {}
        if said.get("kind") == "preview":
            shown[self.out["preview"]] = self.desk.preview(asked.visitor, asked.clip)
        if said.get("kind") == "sheet":
            shown[self.out["sheet"]] = self.desk.sheet(asked.visitor, asked.clip)
        line = str(said.get("line", ""))
        shown[self.out["edit said"]] = show.note(line, "error" if said.get("state") == "failed" else "note")
        return shown | self.retold(asked) | self.bounded(asked) | self.shown_frames(asked)

    def tile(self, asked: Asked) -> Updates:
        number = int(asked.said) if re.fullmatch(r"\d{1,4}", str(asked.said), re.ASCII) else -1
        form = self.desk.tile(asked.visitor, asked.clip, number)
        return self.with_form(asked, asked.clip, form) | {self.out["edit said"]: show.note("These settings are taken.")}

    def result(self, asked: Asked) -> Updates:
        """A result of before, and its settings."""
        clip, chosen = asked.clip, str(asked.said)
        result, history = self.desk.results(asked.visitor, clip, chosen)
        updates = self.with_form(asked, clip, self.desk.form_of(asked.visitor, clip, chosen) or asked.form)
        return updates | {self.out["result"]: result, self.out["history"]: history}
