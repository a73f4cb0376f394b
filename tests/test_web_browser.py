"""The page in headless Chromium: what a visitor does, from the example to the download, and what must not happen."""

import io
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the page's tests need pip install -e '.[web]'")
webdriver = pytest.importorskip("selenium.webdriver", reason="the page's tests need pip install selenium")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
if CHROMIUM is None or DRIVER is None:
    pytest.skip("the page's tests need Chromium and its driver", allow_module_level=True)

from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

PATIENCE = 240  # seconds, on a machine that has other things to do
EXAMPLE = "weights/mini/example"


class Server:
    """`fz web` as a process of its own."""

    def __init__(self, folder, *flags):
        self.folder, self.flags, self.process = folder, flags, None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"

    def start(self):
        argv = [sys.executable, "-m", "fz.web", "--port", str(self.port), "--threads", "1", "--device", "cpu"]
        argv += ["--folder", str(self.folder), "--upload-limit", "5", *self.flags]
        self.log = open(self.folder.with_suffix(".log"), "ab")
        self.process = subprocess.Popen(
            argv, stdout=self.log, stderr=self.log, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            assert self.process.poll() is None, self.said()
            try:
                urllib.request.urlopen(self.url, timeout=60).close()
                return self
            except OSError:
                time.sleep(0.2)
        raise AssertionError(f"the server did not start: {self.said()}")

    def said(self):
        return self.folder.with_suffix(".log").read_text()

    def stop(self, how=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(how)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.log.close()


class Visit:
    """A visitor with his browser. hosts: to which requests went; errors: what the console said; away: the test stops
    the server.
    """

    def __init__(self, browser, url):
        self.browser, self.url, self.hosts, self.errors, self.away = browser, url, set(), [], False

    def unexpected(self):
        """What the console said beside answers that a test asked for, and a server that a test stopped."""
        errors = [error for error in self.errors if "status of 4" not in error or "assets" in error]
        return [error for error in errors if not (self.away and "net::ERR_" in error)]

    def listen(self):
        for entry in self.browser.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                address = message["params"]["request"]["url"]
                if not address.startswith(("data:", "blob:", "about:", "chrome:", "devtools:")):
                    self.hosts.add(address.split("/")[2])
        self.errors += [e["message"] for e in self.browser.get_log("browser") if e["level"] == "SEVERE"]

    def one_tab(self):
        """Close what a test that failed left open."""
        first, *others = self.browser.window_handles
        for other in others:
            self.browser.switch_to.window(other)
            self.browser.close()
        self.browser.switch_to.window(first)

    def script(self, text, *arguments):
        return self.browser.execute_script(text, *arguments)

    def wait(self, condition, seconds=PATIENCE):
        """Until a JavaScript expression is true; returns it."""
        end, found = time.monotonic() + seconds, None
        while time.monotonic() < end:
            found = self.script(f"return {condition}")
            if found:
                return found
            time.sleep(0.1)
        error = self.script("return [...document.querySelectorAll('.fz-error')].map(e => e.textContent).join('; ')")
        raise AssertionError(f"never: {condition}; the page says {error!r}")

    def open(self, fresh=True):
        """The page; fresh: as somebody who was never there."""
        if fresh:
            if not self.browser.current_url.startswith(self.url):
                self.browser.get(self.url + "robots.txt")
            self.browser.delete_all_cookies()
        self.browser.get(self.url)
        self.wait("document.querySelector('[data-clip]') && document.querySelector('.fz-words')")
        return self

    def click(self, selector):
        self.wait(f"document.querySelector({selector!r})", 120)
        self.script("document.querySelector(arguments[0]).click()", selector)

    def number(self, name, value):
        box = self.browser.find_element(By.CSS_SELECTOR, f"#fz-{name} input[type=number]")
        self.script(
            "const set = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set;"
            "set.call(arguments[0], arguments[1]); for (const kind of ['input', 'change'])"
            "arguments[0].dispatchEvent(new Event(kind, { bubbles: true }))",
            box, str(value),
        )  # fmt: skip

    def value(self, name):
        return float(self.browser.find_element(By.CSS_SELECTOR, f"#fz-{name} input[type=number]").get_property("value"))

    def press(self, key):
        """Where the focus is."""
        ActionChains(self.browser).send_keys(key).perform()

    def write(self, name, text):
        box = self.browser.find_element(By.CSS_SELECTOR, f"#fz-{name} textarea, #fz-{name} input")
        box.send_keys(Keys.CONTROL, "a")
        box.send_keys(text or Keys.DELETE)

    def text(self, selector):
        return self.script("return document.querySelector(arguments[0])?.textContent ?? ''", selector)

    def small(self, frames=2, steps=2):
        """An edit that takes seconds."""
        self.number("frames", frames)
        self.wait(f"document.querySelectorAll('#fz-shown-frames img').length == {frames}", 120)
        self.click("#fz-more button")
        self.wait("document.querySelector('#fz-steps input[type=number]')", 120)
        self.number("steps", steps)
        return self

    def run(self):
        """Run, and the new result's id."""
        before = self.script("return document.querySelector('.fz-result')?.dataset.result ?? ''")
        self.click("#fz-run")
        return self.wait(f"(r => r && r != {before!r} && r)(document.querySelector('.fz-result')?.dataset.result)")

    def cookie(self):
        return next(c for c in self.browser.get_cookies() if c["name"].startswith("fz_visitor"))

    def fetch(self, path, cookie=True):
        headers = (
            {"Cookie": f"{self.cookie()['name']}={self.cookie()['value']}"} if cookie is True else {"Cookie": cookie}
        )
        with urllib.request.urlopen(
            urllib.request.Request(self.url + path, headers=headers), timeout=PATIENCE
        ) as reply:
            return reply.read()

    def link(self, name):
        return self.script(
            "return document.querySelector(`.fz-files a[href$='${arguments[0]}']`).getAttribute('href')", name
        )

    def bring(self, *paths):
        self.browser.find_element(By.ID, "fz-file").send_keys("\n".join(map(str, paths)))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("web") / "root").start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def visit(server):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    flags = "headless=new no-sandbox disable-gpu disable-dev-shm-usage no-first-run window-size=1280,1400"
    for flag in f"{flags} disable-background-networking disable-component-update".split():
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    browser.set_script_timeout(PATIENCE)
    yield Visit(browser, server.url)
    browser.quit()


@pytest.fixture(autouse=True)
def _nothing_leaves(visit):
    """After each test: no request to another host, and nothing in the console but answers that a test asked for."""
    visit.listen()
    visit.hosts.clear()
    visit.errors.clear()
    visit.away = False
    yield
    visit.listen()
    visit.one_tab()
    assert visit.hosts <= {visit.url.split("/")[2]}
    assert visit.unexpected() == []


def test_words_while_typing_and_what_is_refused(visit, tmp_path):
    visit.open()
    assert "stays as it is" in visit.text(".fz-words") and visit.text(".fz-word.gone") == "red"
    assert visit.text(".fz-word.replaced") == "blue"
    visit.write("target", "a green lorry")
    visit.wait("document.querySelector('.fz-word.strange')?.textContent == 'lorry'", 120)
    assert "does not know 'lorry'" in visit.text("#fz-shown-words")
    # what a visitor writes is text
    visit.write("target", "a <img src=x onerror=alert(1)> car")
    visit.wait("document.querySelector('.fz-words').textContent.includes('onerror')", 120)
    assert visit.script("return document.querySelectorAll('.fz-words img').length") == 0
    visit.write("target", "very " * 80 + "red car")
    visit.wait("document.querySelector('#fz-shown-words .fz-error')?.textContent.includes('too long')", 120)
    visit.write("target", "a blue car moving on the sand")
    visit.wait("document.querySelector('.fz-word.replaced')", 120)
    broken = tmp_path / "<b>broken<b>.mp4"
    broken.write_bytes(b"this is no video" * 100)
    visit.bring(broken)
    line = visit.wait(
        "document.querySelector('#fz-shown-clip-said .fz-error')?.textContent",
        120,
    )
    assert "mp4" in line and "/" not in line and "Traceback" not in line
    large = tmp_path / "large.mp4"
    with open(large, "wb") as out:
        out.truncate(6_000_000)
    visit.bring(large)
    assert "larger than 5 MB" in visit.wait("document.querySelector('fz-drop .fz-error')?.textContent", 120)


@pytest.mark.slow
def test_from_the_example_to_the_download(visit, root, tmp_path):
    """The bytes of the page are those of its command line and of its Python."""
    visit.open().small().write("target", "a blue car moving on the sand")
    first = visit.run()
    command, python = visit.text("#fz-command"), visit.text("#fz-python")
    page = {name: visit.fetch(visit.link(name)) for name in ("edit.mp4", "edit.gif", "side-by-side.mp4", "frames.zip")}
    assert b'<canvas id="compare"' in visit.fetch(visit.link("report.html"))
    argv = shlex.split(command)
    assert argv[:3] == ["python", "-m", "fz.run"] and argv[-2:] == ["--out", "my-edit"]
    argv = [sys.executable, *argv[1:-1], str(tmp_path / "run"), "--cache", "none"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, cwd=root, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    names = {"edit.mp4": "edit-0.mp4", "edit.gif": "edit-0.gif", "side-by-side.mp4": "side-by-side-0.mp4"}
    for name, file in names.items():
        assert page[name] == (tmp_path / "run" / file).read_bytes(), name
    text = python.replace("'edit.mp4'", repr(str(tmp_path / "edit.mp4")))
    done = subprocess.run([sys.executable, "-c", text], cwd=root, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "edit.mp4").read_bytes() == page["edit.mp4"]

    # a second edit begins at once
    assert "known already" not in visit.text(".fz-result")
    visit.write("target", "a green car moving on the sand")
    visit.wait("document.querySelector('.fz-word.replaced')?.textContent == 'green'", 120)
    second = visit.run()
    assert second != first and "known already" in visit.text(".fz-result")
    assert visit.script("return document.querySelectorAll('#fz-shown-history .fz-card').length") == 2

    # words and areas are seen without a run
    visit.click("button.fz-word[data-value='car']")
    assert visit.wait("document.querySelectorAll('#fz-shown-where img').length") == 2
    visit.click("#fz-area input")
    visit.wait("document.querySelector('.fz-area')", 120)
    shares = []
    for limit in (0.1, 0.5, 0.9):
        visit.number("area-limit", limit)
        visit.wait(f"document.querySelector('.fz-area')?.dataset.limit == '{limit}'", 120)
        shares.append(int(visit.text(".fz-area .fz-note").split(" %")[0]))
    assert shares[0] > shares[1] > shares[2] >= 0

    # a result of before, with its settings
    visit.click(f"[data-value='{first}']")
    visit.wait(f"document.querySelector('.fz-result').dataset.result == {first!r}", 120)
    visit.wait("document.querySelector('#fz-target textarea, #fz-target input').value.includes('blue')", 120)

    # nobody else gets at it
    with pytest.raises(urllib.error.HTTPError):
        visit.fetch(visit.link("edit.mp4"), cookie=f"{visit.cookie()['name']}={'x' * 32}")
    for path in (
        "fz/result/../../etc/passwd/x/y",
        "gradio_api/file=/etc/passwd",
        f"fz/result/{'0' * 16}/{first}/edit.mp4",
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            visit.fetch(path)
        assert refused.value.code in (403, 404)


@pytest.mark.slow
def test_an_upload_with_a_brush_and_a_sheet(visit, root, tmp_path):
    from fz.clips.media import write_mp4

    frames = np.stack([np.asarray(Image.open(root / EXAMPLE / f"{i:05d}.png").convert("RGB")) for i in range(8)])
    write_mp4(tmp_path / "my car.mp4", np.pad(frames, ((0, 0), (0, 0), (16, 16), (0, 0)), "edge"), 8)
    visit.open()
    visit.bring(tmp_path / "my car.mp4")
    visit.wait("document.querySelector('[data-clip]')?.textContent.includes('my-car.mp4, 8 frames')", 120)
    visit.write("source", "a red car moving on the sand")
    visit.write("target", "a blue car moving on the sand")
    visit.small()
    assert "centre 128×128" in visit.text("#fz-shown-frames")

    canvas = visit.wait("document.querySelector('fz-brush canvas')", 120)
    visit.script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    time.sleep(0.5)
    ActionChains(visit.browser).move_to_element(canvas).click_and_hold().move_by_offset(40, 0).release().perform()
    visit.wait("document.querySelector('#fz-mask textarea, #fz-mask input').value.length == 16", 120)
    visit.click("#fz-keep-background input")
    visit.run()
    mask = tmp_path / "mask.png"
    mask.write_bytes(visit.fetch(visit.link("mask.png")))
    drawn = np.asarray(Image.open(mask))
    assert drawn.shape == (128, 160) and set(np.unique(drawn)) == {0, 255} and 0.001 < (drawn > 0).mean() < 0.5
    # outside of what was drawn the clip's pixels stay
    pictures = [Image.open(io.BytesIO(visit.fetch(visit.link("edit.mp4").replace("edit.mp4", name))))
                for name in ("source-00000.png", "edit-00000.png")]  # fmt: skip
    source, edit = (np.asarray(picture.convert("RGB")) for picture in pictures)
    outside = drawn[:, 16:144] == 0
    assert (source[outside] == edit[outside]).all() and (source[~outside] != edit[~outside]).any()
    # and the command, where the files are, does the same
    (tmp_path / "my-car.mp4").write_bytes((tmp_path / "my car.mp4").read_bytes())
    argv = [sys.executable, *shlex.split(visit.text("#fz-command"))[1:], "--cache", "none"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "my-edit" / "edit-0.mp4").read_bytes() == visit.fetch(visit.link("edit.mp4"))

    visit.click("#fz-try button")
    visit.click("#fz-sheet")
    # in two steps, 20 and 40 % are one edit, 60 and 80 % another
    visit.wait("document.querySelectorAll('#fz-shown-sheet button.fz-card').length == 3")
    assert visit.value("keep-shape") == 80
    visit.script("document.querySelectorAll('#fz-shown-sheet button.fz-card')[1].click()")
    visit.wait("document.querySelector('#fz-keep-shape input[type=number]').value == '60'", 120)


@pytest.mark.slow
def test_pictures_of_one_name_and_an_area_that_is_wiped(visit, tmp_path):
    name = "a silver jeep driving down a curvy road in the countryside, take {} of many.png"
    paths = [tmp_path / name.format(i) for i in (9, 10, 11)]
    for path, value in zip(paths, (20, 120, 220), strict=True):
        Image.fromarray(np.full((64, 64, 3), value, np.uint8)).save(path)
    visit.open()
    visit.bring(*reversed(paths))
    visit.wait("document.querySelector('[data-clip]')?.textContent.includes('3 pictures, 3 frames')", 120)
    # in the order of their numbers, whatever the order in which they were chosen
    visit.wait("document.querySelectorAll('#fz-shown-frames img').length == 3", 120)
    shades = visit.script(
        "return [...document.querySelectorAll('#fz-shown-frames img')].map(image => { const c = "
        "document.createElement('canvas').getContext('2d'); c.drawImage(image, 0, 0); "
        "return c.getImageData(5, 5, 1, 1).data[0] })"
    )
    assert np.abs(np.array(shades) - (20, 120, 220)).max() < 4

    visit.click("#fz-more button")
    canvas = visit.wait("document.querySelector('fz-brush canvas')", 120)
    visit.script("arguments[0].focus()", canvas)
    assert visit.text("#fz-shown-drawn").strip() == ""
    visit.press(Keys.SPACE)
    visit.wait("document.querySelector('#fz-shown-drawn').textContent.includes('An area is drawn.')", 120)
    visit.press(Keys.BACKSPACE)
    visit.wait("document.querySelector('#fz-shown-drawn').textContent.trim() == ''", 120)
    assert visit.script("return document.querySelector('#fz-mask textarea, #fz-mask input').value") == ""


@pytest.mark.slow
def test_cancel_reload_two_tabs_and_many_clicks(visit):
    # an edit of minutes: it must not be done before the page has loaded twice, however busy the machine is
    visit.open().small(frames=8, steps=100)
    asked = "performance.getEntriesByType('resource').filter(e => e.name.includes('/run/predict')).length"
    visit.script("performance.setResourceTimingBufferSize(10000)")
    before = visit.script(f"return {asked}")
    for _ in range(50):
        visit.script("document.querySelector('#fz-run').click()")
    # one that comes to the server after the cancel would begin another edit
    visit.wait(f"{asked} >= {before + 50}")
    visit.wait("document.querySelector('.fz-job')?.textContent.includes('left')")
    assert visit.script("return document.querySelectorAll('.fz-job').length") == 1
    # a page that loads again finds it
    visit.open(fresh=False)
    visit.wait("document.querySelector('.fz-job')?.textContent.includes('left')")
    # and so does another
    first = visit.browser.current_window_handle
    visit.browser.switch_to.new_window("tab")
    visit.open(fresh=False)
    visit.wait("document.querySelector('.fz-job')")
    visit.click(".fz-cancel")
    visit.wait("!document.querySelector('.fz-job')")
    visit.wait("[...document.querySelectorAll('.fz-note')].some(n => n.textContent == 'Cancelled.')")
    visit.listen()
    visit.browser.close()
    visit.browser.switch_to.window(first)
    visit.wait("!document.querySelector('.fz-job')")
    assert not visit.script("return document.querySelector('.fz-result')")


@pytest.mark.slow
def test_a_killed_server_goes_on(visit, server):
    visit.open().small(frames=2, steps=20)
    visit.click("#fz-run")
    visit.wait("document.querySelector('.fz-job progress')?.value > 0")
    visit.away = True
    server.stop(signal.SIGKILL)
    assert not visit.script("return document.querySelector('.fz-result')")
    server.start()
    # the page that was open all the time gets its result
    visit.wait("document.querySelector('.fz-result')")
    # and once more: nothing waits, and what was computed is at hand without a preview
    server.stop(signal.SIGKILL)
    server.start()
    visit.open(fresh=False)
    visit.wait("document.querySelector('.fz-result')")
    assert visit.script("return document.querySelectorAll('#fz-shown-history .fz-card').length") == 1
    end, word = time.monotonic() + PATIENCE, "button.fz-word[data-value='car']"
    while not visit.script("return document.querySelector(arguments[0])", word) and time.monotonic() < end:
        # a page that was faster than the server's reading
        visit.open(fresh=False)
    visit.click(word)
    assert visit.wait("document.querySelectorAll('#fz-shown-where img').length") == 2


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_page(visit, width, dark):
    visit.browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]},
    )
    device = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    visit.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
    try:
        visit.open()
        assert visit.script("return document.documentElement.scrollWidth") <= width
        colours = visit.script("const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]")
        ink, ground = (sum(int(n) for n in c.split("(")[1].rstrip(")").split(",")[:3]) for c in colours)
        assert (ink > ground) == dark and abs(ink - ground) > 380
    finally:
        visit.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        visit.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.mark.slow
def test_by_keyboard_alone(visit):
    visit.open().small()
    visit.script("document.querySelector('#fz-target textarea, #fz-target input').focus()")
    names = []
    while "fz-run" not in names and len(names) < 80:
        visit.press(Keys.TAB)
        names.append(visit.script("return document.activeElement.closest('[id^=fz-]')?.id ?? ''"))
    # in the order in which they are seen
    wanted = ["fz-kind", "fz-keep-shape", "fz-area", "fz-preview", "fz-run"]
    assert [name for name in dict.fromkeys(names) if name in wanted] == wanted
    visit.press(Keys.ENTER)
    visit.wait("document.querySelector('.fz-result fz-player output')?.textContent")
    visit.script("document.querySelector('.fz-result fz-player canvas').focus()")
    # an arrow stops the player, and the next one shows the other of two frames
    visit.press(Keys.ARROW_RIGHT)
    assert visit.text(".fz-result fz-player .fz-button") == "Play"
    shown = visit.text(".fz-result fz-player output")
    visit.press(Keys.ARROW_RIGHT)
    assert {shown, visit.text(".fz-result fz-player output")} == {"1 of 2", "2 of 2"}
