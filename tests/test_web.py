"""The page without a browser: its command, what is kept of whom, the queue, the controls, who may ask for what."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from fz.errors import FzError
from fz.memory.inversions import Inversion
from fz.web import form as forms
from fz.web import guard, main
from fz.web.folder import DAY, MONTH, Folder, Visitor, VisitorClip, new_id, safe_name
from fz.web.jobs import MOST_WAITING, Job, Queue
from fz.web.options import Options, options_of

SECRET, OTHER = "a" * 32, "b" * 32


@pytest.fixture
def folder(tmp_path):
    made = Folder(tmp_path / "root", 1000)
    yield made
    made.lock.release()


# ---- the command -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--host", "0.0.0.0"], "Pass --password"),
        (["--share"], "Pass --password"),
        (["--port", "70000"], "expected 1 to 65535"),
        (["--prot", "1"], "Did you mean '--port'?"),
        (["--checkpoint", "/nowhere/sd"], "/nowhere/sd does not exist"),
        (["--threads", "1000000"], "threads: got 1000000, expected a whole number from 1 to 1024"),
        (["--host", "", "--no-password"], "host: got '', expected an address"),
        (["--host", "[::1]", "--no-password"], "host: got '[::1]', expected an address"),
        (["--host", "ä..b", "--no-password"], "host: got 'ä..b'"),
        (["--host", "a" * 300, "--no-password"], "host: got 'aaa"),
        (["--host", "fz.invalid", "--no-password"], "host: got 'fz.invalid'"),
        (["--host", "192.0.2.7", "--no-password"], "host: 192.0.2.7 is no address of this machine"),
    ],
)
def test_mistakes_are_one_line(argv, line, capsys, monkeypatch):
    monkeypatch.setattr("fz.web.find_spec", lambda name: True)
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1


def test_options(monkeypatch, tmp_path):
    monkeypatch.delenv("FZ_WEB_PASSWORD", raising=False)
    assert options_of([]).local and options_of(["--host", "::1"]).local
    assert not options_of(["--host", "0.0.0.0", "--no-password"]).local
    monkeypatch.setenv("FZ_WEB_PASSWORD", "open sesame")
    assert options_of(["--host", "0.0.0.0"]).password == "open sesame"
    assert options_of(["--folder", str(tmp_path)]).folder == tmp_path


def test_a_device_that_is_not_there_is_said_before_the_server_starts(monkeypatch, capsys):
    monkeypatch.setattr("fz.web.find_spec", lambda name: True)
    monkeypatch.setattr("sys.platform", "linux")
    assert main(["--device", "mps"]) == 2 and "device: got mps" in capsys.readouterr().err


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.2", "127.0.0.2"), ("::1", "[::1]"), ("0.0.0.0", "0.0.0.0")])
def test_the_address_that_is_told_is_the_one_that_answers(host, shown, options):
    pytest.importorskip("gradio")
    from fz.web.server import address

    assert address(dataclasses.replace(options, host=host)) == f"http://{shown}:7860"


@pytest.mark.parametrize("signals", [["SIGTERM"], ["SIGINT"], ["SIGINT", "SIGINT", "SIGTERM"]], ids="-".join)
def test_a_server_that_is_ended_while_it_computes_ends_quietly(signals, tmp_path):
    """Its job is taken up at the next start, and an end that was asked for is no failure of the job."""
    pytest.importorskip("gradio")
    from fz.web.examples import Examples

    folder = Folder(tmp_path / "root", 1000)
    clip, visitor = Examples(folder).clips[0], folder.visitor(SECRET)
    visitor.keep(clip)
    form = {**forms.USUAL, "model": "miniature", "source": clip.source, "target": clip.target, "steps": 100}
    queue = Queue(folder, lambda job: "")
    job = queue.submit(Job(visitor.name, clip.id, "run", form))
    folder.lock.release()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "fz.web", "--port", port, "--folder", str(folder.root), "--threads", "1"]
    with open(tmp_path / "log", "wb") as log:
        server = subprocess.Popen([*command, "--device", "cpu"], stdout=log, stderr=log)
    try:
        end = time.monotonic() + 240
        while json.loads(queue.path(job).read_text())["tries"] == 0:
            assert server.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(0.05)
        for name in signals:
            server.send_signal(getattr(signal, name))
            time.sleep(0.02)
        code = server.wait(60)
    finally:
        server.kill()
    said = (tmp_path / "log").read_text()
    assert code in ((0,) if len(signals) == 1 else (0, 130)), said
    assert "Traceback" not in said and "terminate" not in said, said
    assert json.loads(queue.path(job).read_text())["tries"] == 0
    Folder(folder.root, 1000).lock.release()


def test_without_gradio_the_command_says_so(monkeypatch, capsys):
    monkeypatch.setattr("fz.web.find_spec", lambda name: None)
    assert main([]) == 2
    said = capsys.readouterr().err
    assert "pip install" in said and "[web]" in said and said.count("\n") == 1


def test_a_port_in_use_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fz.web.find_spec", lambda name: True)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["--port", str(taken.getsockname()[1]), "--folder", str(tmp_path)]) == 2
    assert "Pass another --port" in capsys.readouterr().err


# ---- the folder ------------------------------------------------------------------------------------------------


def clip_of(visitor, name="clip.mp4"):
    clip = VisitorClip(new_id(), name, str(visitor.path / "x"), (64, 64), 8, 8.0)
    visitor.keep(clip)
    return clip


def test_visitors_do_not_see_each_other(folder):
    one, other = folder.visitor(SECRET), folder.visitor(OTHER)
    clip = clip_of(one)
    assert one.clip(clip.id) == clip and SECRET not in str(one.path)
    for ask in (lambda: other.clip(clip.id), lambda: other.result(clip.id, new_id()), lambda: folder.visitor("short")):
        with pytest.raises(FzError):
            ask()


@pytest.mark.parametrize(
    "bad", ["", ".", "..", "../..", "/etc", "a" * 16 + "/..", "A" * 16, "0" * 15, "0" * 17, "0" * 16 + "\n"]
)
def test_ids_lead_nowhere(folder, bad):
    visitor = folder.visitor(SECRET)
    for ask in (
        visitor.place,
        visitor.clip,
        lambda bad: visitor.result("0" * 16, bad),
        lambda bad: folder.batch(visitor, bad),
    ):
        with pytest.raises(FzError):
            ask(bad)


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("clip.mp4", "clip.mp4"),
        ("../../etc/passwd", "passwd"),
        ("..\\..\\x.GIF", "x.gif"),
        ("<img src=x onerror=alert(1)>.mp4", "img-src-x-onerror-alert-1.mp4"),
        (".bashrc", "bashrc"),
        ("a" * 400 + ".mp4", "a" * 60 + ".mp4"),
        ("\0\n.mp4", "clip.mp4"),
        ("...", "clip"),
        ("a" * 70 + " 00012.png", "a" * 60 + "-00012.png"),
        ("1" * 400 + ".png", "1" * 20 + ".png"),
        ("com1.png", "com1_.png"),
    ],
)
def test_names_of_uploads_are_made_safe(name, safe):
    assert safe_name(name) == safe


def test_uploads_go_after_a_day_and_results_stay(folder):
    visitor = folder.visitor(SECRET)
    plain, edited = clip_of(visitor), clip_of(visitor)
    for clip in (plain, edited):
        (visitor.place(clip.id) / "upload").mkdir()
        (visitor.place(clip.id) / "upload" / "clip.mp4").write_bytes(b"x" * 10)
    result = visitor.place(edited.id) / "results" / new_id()
    result.mkdir(parents=True)
    (result / "about.json").write_text("{}")
    assert folder.forget() == []
    assert len(folder.forget(time.time() + DAY + 5)) == 2
    assert not visitor.place(plain.id).exists() and visitor.results(edited.id) == [result.name]
    assert not (visitor.place(edited.id) / "upload").exists()


def test_a_visitor_who_left_nothing_is_forgotten_after_a_month(folder):
    idle, edited, busy = (folder.visitor(c * 24) for c in "abc")
    for visitor in (idle, edited, busy):
        clip = clip_of(visitor)
    (visitor.path / "jobs").mkdir()
    result = edited.place(clip_of(edited).id) / "results" / new_id()
    result.mkdir(parents=True)
    (result / "about.json").write_text("{}")
    month = time.time() + MONTH + 5
    (busy.place(clip.id) / "masks").mkdir()
    os.utime(busy.place(clip.id) / "masks", (month - 10, month - 10))
    assert folder.forget(time.time() + MONTH - 60) == []
    assert folder.forget(month) == [idle.path]
    assert not idle.path.exists() and edited.path.exists() and busy.path.exists()


def test_what_the_server_did_not_name_stays(folder):
    """--folder may be one that has other things, with such names, in it."""
    visitor = folder.visitor(SECRET)
    places = ("holiday/2024/upload", "holiday/2024/results/best", "holiday/photos", f"{visitor.path.name}/2024/upload")
    for place in places:
        (folder.visitors / place).mkdir(parents=True)
        (folder.visitors / place / "photo.png").write_bytes(b"mine")
    result = visitor.place(clip_of(visitor).id) / "results" / new_id()
    result.mkdir(parents=True)
    (result / "about.json").write_text("{}")
    assert folder.forget(time.time() + 2 * MONTH) == []
    assert all((folder.visitors / place / "photo.png").exists() for place in places)


def test_inversions_go_that_were_not_used_for_a_month(folder):
    with Inversion.open(str(folder.cache), "a" * 32, lambda line: None) as open_one:
        old = folder.cache / ("b" * 32)
        with Inversion.open(str(folder.cache), old.name, lambda line: None):
            pass
        assert folder.forget(time.time() + MONTH - 60) == []
        assert folder.forget(time.time() + MONTH + 60) == [old]
        assert not old.exists() and open_one.folder.exists()


def test_uploads_are_bounded(folder):
    place = folder.batch(folder.visitor(SECRET), new_id())
    path, left = folder.room(place, "a.mp4")
    assert left == 1000 and path.parent == place
    path.write_bytes(b"x" * 1000)
    with pytest.raises(FzError, match="no room"):
        folder.room(place, "b.mp4")


def test_one_server_has_the_folder(folder):
    with pytest.raises(FzError, match="is in use by"):
        Folder(folder.root, 1000)


def test_lines_tell_no_folder(folder):
    line = folder.told(f"video: {folder.visitors}/abc/0123/upload/clip.mp4 is no video. Use --frames 3")
    assert line == "Your clip: clip.mp4 is no video. Use “How many frames” 3"


# ---- the queue -------------------------------------------------------------------------------------------------


class Slow:
    """Work that waits to be told, a step at a time."""

    def __init__(self):
        self.go, self.done = threading.Semaphore(0), []

    def __call__(self, job):
        job.of = 3
        for _ in range(3):
            assert self.go.acquire(timeout=20)
            job.step(1)
        self.done.append(job.id)
        return "made"


def until(true):
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def queue(folder):
    made = Queue(folder, Slow())
    made.start(lambda: None)
    yield made
    for job in made.jobs:
        job.unwanted = True
    made.close()
    made.do.go.release(1000)


def job_of(visitor="v" * 32, n=0, stays=True):
    return Job(visitor, "0" * 16, "run", {"n": n}, stays)


def test_one_at_a_time_in_order_and_places(queue):
    jobs = [queue.submit(job_of(visitor)) for visitor in ("a", "b", "c")]
    until(lambda: jobs[0].state == "running")
    assert [queue.place(job) for job in jobs] == [0, 1, 2] and jobs[1].state == "waiting"
    queue.do.go.release(9)
    until(lambda: all(job.over for job in jobs))
    assert queue.do.done == [job.id for job in jobs] and {job.state for job in jobs} == {"done"}


def test_fifty_clicks_are_one_job(queue):
    assert len({queue.submit(job_of()).id for _ in range(50)}) == 1
    for n in range(1, MOST_WAITING):
        queue.submit(job_of(n=n))
    with pytest.raises(FzError, match="waiting"):
        queue.submit(job_of(n=99))
    # and nobody else is kept out
    queue.submit(job_of("w"))


def test_cancel_now_and_while_waiting(queue):
    running, waiting = queue.submit(job_of(n=1)), queue.submit(job_of(n=2))
    until(lambda: running.state == "running")
    assert not queue.cancel("another", running.id)
    assert queue.cancel(waiting.visitor, waiting.id) and waiting.state == "cancelled"
    assert queue.cancel(running.visitor, running.id)
    queue.do.go.release(1)
    until(lambda: running.over)
    assert running.state == "cancelled" and not queue.do.done and not list(queue.folder.visitors.glob("*/jobs/*"))


def test_a_closed_page_leaves_what_stays(queue):
    gone, stays = queue.submit(job_of(n=1, stays=False)), queue.submit(job_of(n=2))
    until(lambda: gone.state == "running")
    queue.left_alone(gone.visitor)
    queue.do.go.release(4)
    until(lambda: gone.over and stays.over)
    assert (gone.state, stays.state) == ("cancelled", "done")


def test_time_left(queue):
    job = queue.submit(job_of())
    until(lambda: job.state == "running")
    assert job.left() is None
    queue.do.go.release(1)
    until(lambda: job.work == 1)
    assert 0 < job.left() < 60 and queue.told(job.visitor)[0]["share"] == 0.333


def test_a_killed_server_takes_its_jobs_up(folder):
    first = Queue(folder, Slow())
    left, leaves = first.submit(job_of(n=1)), first.submit(job_of(n=2, stays=False))
    again = Queue(folder, lambda job: "made")
    assert [(job.id, job.form) for job in again.jobs] == [(left.id, {"n": 1})] and not first.path(leaves).exists()
    again.start(lambda: None)
    until(lambda: again.jobs[0].over)
    assert again.jobs[0].state == "done" and not first.path(left).exists()


def test_a_job_that_kills_the_server_ends(folder):
    first = Queue(folder, Slow())
    job = first.submit(job_of())
    for _ in range(2):
        job.tries += 1
        first.write(job)
    again = Queue(folder, Slow())
    assert again.jobs[0].state == "failed" and "smaller" in again.jobs[0].line


def test_an_end_that_was_asked_for_is_no_try(folder):
    first = Queue(folder, Slow())
    job = first.submit(job_of())
    for _ in range(5):
        first.next()
        first.close()
        first = Queue(folder, Slow())
        assert [(one.id, one.state, one.tries) for one in first.jobs] == [(job.id, "waiting", 0)]


def test_a_full_disk_stops_no_queue(folder, monkeypatch):
    """Whoever asks is told; what waits already is done."""
    queue = Queue(folder, lambda job: "made")
    there = queue.submit(job_of(n=1))

    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("fz.web.jobs.write_json", full)
    with pytest.raises(FzError, match="no room for it"):
        queue.submit(job_of(n=2))
    assert queue.jobs == [there]
    queue.start(lambda: None)
    until(lambda: there.over)
    assert there.state == "done"


def test_mistakes_of_a_job(folder, capsys):
    def work(job):
        if job.form["n"]:
            raise FzError(f"video: {folder.root}/visitors/x/clip.mp4 is broken")
        raise RuntimeError("a bug")

    queue = Queue(folder, work)
    jobs = [queue.submit(job_of(n=n)) for n in (0, 1)]
    queue.start(lambda: None)
    until(lambda: all(job.over for job in jobs))
    assert "not your doing" in jobs[0].line and "a bug" in capsys.readouterr().out
    assert jobs[1].line == "Your clip: clip.mp4 is broken"


# ---- the form --------------------------------------------------------------------------------------------------


def test_forms_are_checked():
    assert forms.checked({}) == forms.USUAL
    for bad in (
        {"kind": "x"},
        {"frames": 1000},
        {"size": 8192},
        {"steps": 10**9},
        {"area_limit": float("nan")},
        {"source": "a " * 600},
        {"frames": "8"},
        {"area": 1},
        {"weights": {"a": "b"}},
        {"source": None},
        {"frames": float("nan")},
        {"steps": float("inf")},
        {"start": 10**400},
        {"mask": "../../x"},
        {"mask": "a" * 5000},
    ):
        with pytest.raises(FzError):
            forms.checked(bad)


def test_damaged_files_of_a_clip_are_none(folder):
    pytest.importorskip("gradio")
    from fz.web.desk import Desk

    visitor = folder.visitor(SECRET)
    clip, result, desk = clip_of(visitor), new_id(), Desk(folder, None, None, None, None)
    about = visitor.place(clip.id) / "results" / result / "about.json"
    about.parent.mkdir(parents=True)
    whole = {"form": {}, "target": "a car", "frames": 2, "fps": 8.0, "seconds": 1.0, "texts": {"command": "fz"}}
    about.write_text(json.dumps(whole))
    assert "a car" in "".join(desk.results(visitor, clip)) and desk.form_of(visitor, clip, result) == forms.USUAL
    for name, bad in [(n, v) for n in whole for v in (None, 3 if n not in ("frames", "fps", "seconds") else "x", [1])]:
        about.write_text(json.dumps({**whole, name: bad}))
        shown, others = desk.results(visitor, clip)
        assert "Your edit appears here" in shown and others == "", name
        assert desk.form_of(visitor, clip, result) == forms.USUAL
    for text in (
        "{",
        "[]",
        '{"tiles": [3]}',
        '{"tiles": 3}',
        '{"source": "x", "tiles": [{"form": 3}]}',
        '{"source": 3}',
    ):
        (visitor.place(clip.id) / "sheet.json").write_text(text)
        (visitor.place(clip.id) / "preview.json").write_text(text)
        assert desk.sheet(visitor, clip) == "" and desk.preview(visitor, clip) == ""
        with pytest.raises(FzError, match="not here any more"):
            desk.tile(visitor, clip, 0)


def test_an_address_tells_no_folder(folder):
    pytest.importorskip("gradio")
    import asyncio
    from types import SimpleNamespace

    from fz.web.routes import Routes

    routes = Routes(SimpleNamespace(folder=folder, queue=SimpleNamespace(left_alone=None)))

    async def fails(request):
        raise FzError(f"results: {folder.root}/visitors/x/run has no run.json")

    answer = asyncio.run(routes.answering(fails)(SimpleNamespace(method="GET")))
    assert answer.status_code == 404 and json.loads(answer.body)["line"] == "results: run has no run.json"


@pytest.mark.parametrize("count", [1, 2, 3, 8, 64, 65, 100_000])
def test_clips_of_any_length_have_sliders(count):
    """One picture, too: Gradio has no slider whose ends are one."""
    gr = pytest.importorskip("gradio")

    for name, end in forms.ends(count).items():
        gr.Slider(minimum=forms.BOUNDS[name][0], maximum=end)
        # its farthest is in the clip, but for a clip of one picture, whose sliders stand still
        assert end <= {"frames": count, "start": count - 1, "every": count}[name] or count == 1


def test_a_page_that_knows_other_ends_than_the_server_is_answered():
    """As after a restart: what a control may be is the form's question, whose answer is a line."""
    gr = pytest.importorskip("gradio")
    import fz.web.page  # noqa: F401

    slider, radio = gr.Slider(0, 7, step=1), gr.Radio(["a"])
    for sent in (50, None, "x", []):
        assert slider.preprocess(sent) == sent and radio.preprocess(sent) == sent


def test_what_no_page_sends_is_no_bug():
    pytest.importorskip("gradio")
    from types import SimpleNamespace

    from fz.web.events import Asked, Events

    chosen = []
    desk = SimpleNamespace(
        folder=SimpleNamespace(visitor=lambda secret: None), tile=lambda visitor, clip, number: chosen.append(number)
    )
    events = Events(desk, "cookie", {"clip_id": "clip"}, {"edit said": "said"})
    events.with_form = lambda asked, clip, form: {}
    for sent in ("", "{", "[]", "[" * 100_000, None, "3"):
        with pytest.raises(FzError, match="no answer"):
            events.asked({"clip": "", "box": sent}, SimpleNamespace(cookies={}), "box")
    for said in (None, "x", [], {}, float("nan"), float("inf"), "\ud800", "²", 10**30, -1):
        events.tile(Asked(None, "clip", {}, said))
    events.tile(Asked(None, "clip", {}, 3))
    assert chosen == [-1] * 10 + [3]


def test_what_the_controls_mean():
    form = {**forms.USUAL, **forms.of_preset("shape"), "kind": "shape", "weights": {"blue": 2, "car": 1}}
    expected = {"kind": "shape", "self_replace": 0.5, "cross_replace": 0.5, "threshold": 0.3, "keep_background": False}
    assert forms.editing(form) == {**expected, "reweight": {"blue": 2}}
    assert forms.editing({**forms.USUAL})["threshold"] is None
    assert forms.sentence({**form, "remove": "red car"}) is None and forms.sentence(form) == ""


@pytest.mark.parametrize("what", forms.VARIED)
def test_sheets_vary_one_thing(what):
    form = {**forms.USUAL, "source": "a red car", "target": "a blue car"}
    tried = forms.varied(form, what, ["blue"], has_area=True)
    assert 4 < len(tried) <= forms.MOST_TILES and len({json.dumps(form) for form in tried}) == len(tried)
    assert all(forms.checked(form) == form for form in tried)
    labels = [forms.label(tile, form) for tile in tried]
    assert len(set(labels)) == len(labels)
    # in two steps there are three ways to keep a share of them
    few = forms.varied({**form, "steps": 2}, what, ["blue"], has_area=True)
    assert len(few) == (3 if "replace" in forms.VARIED[what][0] else len(tried))
    assert (
        len(
            forms.varied({**form, "steps": 2, "keep_place": 100, "keep_shape": 100, "fast": True}, what, ["blue"], True)
        )
        > 1
    )


# ---- the guard -------------------------------------------------------------------------------------------------


@pytest.fixture
def options(tmp_path):
    return Options((None,), "cpu", 1, "127.0.0.1", 7860, None, False, tmp_path, 1000)


def asked(options, path="/", method="GET", body=b"", **headers):
    """(status, headers, whether the app behind was reached)"""
    import asyncio

    reached, sent = [], []

    async def app(scope, receive, send):
        reached.append(scope)
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    headers = {"host": "127.0.0.1:7860", **{name.replace("_", "-"): value for name, value in headers.items()}}
    scope = {"type": "http", "path": path, "method": method}
    scope["headers"] = [(name.encode(), value.encode()) for name, value in headers.items()]
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive():
        return next(messages)

    async def send(message):
        sent.append(message)

    asyncio.run(guard.Guard(app, options)(scope, receive, send))
    return sent[0]["status"], {k.decode(): v.decode() for k, v in sent[0]["headers"]}, reached


@pytest.mark.parametrize(
    "path",
    ["/gradio_api/file=/etc/passwd", "/gradio_api/upload", "/gradio_api/proxy=http://x", "/file/x", "/monitoring",
     "/gradio_api/vibe-edit/", "/assets/../../x", "/static/..",
     "/gradio_api/process_recording", "/assets/../x?", "/gradio_api/openapi.json", "/docs"],
)  # fmt: skip
def test_what_serves_or_takes_files_is_closed(options, path):
    status, _, reached = asked(options, path)
    assert status in (403, 404) and not reached


def test_a_visitor_gets_a_secret_once(options):
    _, headers, _ = asked(options)
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Lax" in cookie and len(cookie.split(";")[0].split("=")[1]) >= 32
    _, headers, reached = asked(options, cookie=cookie.split(";")[0])
    assert "set-cookie" not in headers and reached[0]["fz_secret"] == cookie.split(";")[0].split("=")[1]
    assert "default-src 'self'" in headers["content-security-policy"]


def test_other_sites_may_not_ask(options):
    assert asked(options, host="evil.example:7860")[0] == 403
    assert asked(options, "/fz/cancel/x", "POST", origin="http://evil.example")[0] == 403
    assert asked(options, "/fz/cancel/x", "POST", origin="http://127.0.0.1:7860")[0] == 200
    # Gradio would let another page of this machine read it
    for origin in ("http://localhost:3000", "http://127.0.0.1:3000", "null"):
        for method in ("GET", "OPTIONS"):
            assert asked(options, "/fz/state", method, origin=origin)[0] == 403
    assert asked(dataclasses.replace(options, host="0.0.0.0", password="x"), host="a.example")[0] == 401


def test_sockets_are_closed(options):
    import asyncio

    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(guard.Guard(None, options)({"type": "websocket", "path": "/", "headers": []}, None, send))
    assert [message["type"] for message in sent] == ["websocket.close"]


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (FzError("no such file"), 404, "no such file"),
        (OSError(28, "No space left on device", "/secret/place"), 507, "No space left on device"),
        (KeyError(999), 500, "could not be answered"),
    ],
)
def test_what_goes_wrong_is_one_line_and_no_traceback(error, status, line, options, capsys):
    pytest.importorskip("gradio")
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.routing import Route
    from starlette.testclient import TestClient

    from fz.web.routes import answering

    async def fails(request):
        raise error

    app = Starlette(
        routes=[Route("/fz/state", answering(fails))], middleware=[Middleware(guard.Guard, options=options)]
    )
    answer = TestClient(app, base_url="http://127.0.0.1:7860").get("/fz/state")
    assert answer.status_code == status and line in answer.text and "/secret" not in answer.text
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err and said.out.count("\n") == (status != 404)


def test_a_visitor_who_goes_while_he_uploads_leaves_no_traceback():
    pytest.importorskip("gradio")
    import asyncio

    from starlette.requests import ClientDisconnect

    from fz.web.routes import answering

    async def fails(request):
        raise ClientDisconnect

    assert asyncio.run(answering(fails)(None)).status_code == 400


def test_too_much_is_refused_before_and_while_it_comes(options):
    status, _, reached = asked(options, "/fz/upload/a/b", "PUT", content_length=str(2 * 10**9))
    assert status == 413 and not reached
    assert asked(options, "/fz/upload/a/b", "PUT", body=b"x" * 1001)[0] == 413
    assert asked(options, "/fz/upload/a/b", "PUT", body=b"x" * 1000)[0] == 200
    assert asked(options, "/gradio_api/run/predict", "POST", body=b"x" * (guard.MOST_SENT + 1))[0] == 413


def test_the_password(options):
    import base64

    closed = dataclasses.replace(options, host="0.0.0.0", password="naïve: yes")
    for given in (None, "Basic !!!", "Basic " + base64.b64encode(b"me:wrong").decode(), "Bearer naive"):
        status, headers, reached = asked(closed, **({"authorization": given} if given else {}))
        assert status == 401 and "www-authenticate" in headers and not reached
    right = "Basic " + base64.b64encode("me:naïve: yes".encode()).decode()
    assert asked(closed, authorization=right)[0] == 200


def test_visitors_are_made_of_secrets(folder):
    assert isinstance(folder.visitor(SECRET), Visitor) and folder.visitor(SECRET).path != folder.visitor(OTHER).path


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("frames 0–1 of 8 (0.2 of 1.0 s), no audio; --frames all", "Frames 1–2 of 8 (0.2 of 1.0 s), no audio"),
        ("frame 3 of 8; --frames all", "Frame 4 of 8"),
        ("frames 0–1 of 8; frames=None, every=7", "Frames 1–2 of 8"),
        ("centre 128×128 → 128×128; size=(64, 128)", "centre 128×128 → 128×128"),
        ("frames 0, 2, …, 8 of 12", "Frames 1, 3, …, 9 of 12"),
        ("centre 128×128 → 128×128; --size 64x128", "centre 128×128 → 128×128"),
    ],
)
def test_notes_of_clips_for_people(line, shown):
    from fz.web.show import without_advice

    assert without_advice(line) == shown


def test_what_visitors_write_is_text():
    from fz.web import show

    wicked = "<script>alert(1)</script> \"'onload=x"
    for piece in (show.note(wicked), show.weights(wicked, {wicked: 2}), show.word_button(wicked, "", True),
                  show.player([], [], 8, wicked)):  # fmt: skip
        assert "<script" not in piece and "\"'onload" not in piece
    about = {"form": {}, "target": wicked, "frames": 1, "fps": 8, "texts": {"command": wicked, "python": wicked}}
    clip = VisitorClip("0" * 16, wicked, wicked, (64, 64), 8, 8.0)
    for piece in (show.result(clip, "1" * 16, about), show.history("0" * 16, [("1" * 16, about)], "")):
        assert "<script" not in piece and "\"'onload" not in piece


# ---- the studio ------------------------------------------------------------------------------------------------


def visited(folder, **form):
    """(studio, visitor, clip, form) of the bundled clip on the miniature: an edit that takes a second."""
    from fz.web.examples import Examples
    from fz.web.studio import MINIATURE, Models, Studio

    clip, visitor = Examples(folder).clips[0], folder.visitor(SECRET)
    visitor.keep(clip)
    usual = {**forms.USUAL, "model": MINIATURE, "source": clip.source, "target": clip.target}
    form = forms.checked({**usual, "frames": 2, "size": 64, "steps": 6, **form})
    return Studio(Models([None], {"device": "cpu"}), folder), visitor, clip, form


@pytest.mark.parametrize("fast", [False, True])
def test_fast_in_the_form_is_fast_of_the_command(folder, fast):
    """In the settings of what is run, and in the command line that the page shows."""
    import shlex

    from fz.settings.parse import parse

    studio, visitor, clip, form = visited(folder, fast=fast)
    place = visitor.result(clip.id, studio.do(Job(visitor.name, clip.id, "run", form)))
    about, run = (json.loads((place / name).read_text()) for name in ("about.json", "run/run.json"))
    line = ["--video", clip.path, "--source", clip.source, "--target", clip.target, "--steps", "2" if fast else "6"]
    expected = parse([*line, *(["--fast"] if fast else [])]).settings
    shown = parse(shlex.split(about["texts"]["command"])[3:]).settings
    for name in ("steps", "weights", "reuse", "guidance_window"):
        value = run["settings"][name]
        assert (tuple(value) if isinstance(value, list) else value) == getattr(expected, name), name
        assert getattr(shown, name) == getattr(expected, name), name


def test_a_server_that_starts_again_knows_its_inversions(folder):
    import shutil

    import torch

    studio, visitor, clip, form = visited(folder)
    studio.do(Job(visitor.name, clip.id, "run", form))
    before = studio.at_hand(clip, form).attention("car")
    again, *_ = visited(folder)
    assert again.at_hand(clip, form) is None
    again.restore()
    assert torch.equal(again.inversion(clip, form).attention("car"), before)
    # one that is gone is not computed when the server starts: it is given up after a step
    shutil.rmtree(folder.cache)
    third, *_ = visited(folder)
    third.restore()
    assert third.at_hand(clip, form) is None and len(list(folder.cache.rglob("*.safetensors"))) <= 2
