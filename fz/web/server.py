"""How does the server start and stop? The folder, the models, the queue's thread, and Gradio's server of the page."""

import os
import sys
import time
from pathlib import Path

# before Gradio is imported: nothing is counted or sent anywhere
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr  # noqa: E402
from starlette.middleware import Middleware  # noqa: E402

from fz.web.desk import Desk  # noqa: E402
from fz.web.examples import Examples  # noqa: E402
from fz.web.folder import Folder  # noqa: E402
from fz.web.guard import Guard  # noqa: E402
from fz.web.jobs import Queue  # noqa: E402
from fz.web.options import Options  # noqa: E402
from fz.web.page import Page, look  # noqa: E402
from fz.web.routes import Routes  # noqa: E402
from fz.web.studio import Models, Studio  # noqa: E402

HERE = Path(__file__).parent
HOUR = 3600


def serve(options: Options) -> None:
    """Until Ctrl-C. Raises FzError where it cannot start."""
    folder, desk = Folder(options.folder, options.upload_limit), None
    try:
        folder.forget()
        desk = desk_of(options, folder)
        routes = Routes(desk)
        blocks = Page(desk, options.port).build()
        launch(blocks, options, routes)
        # the first preview finds a model that is loaded
        desk.queue.start(lambda: desk.studio.warm(desk.examples.clips[0]))
        print(f"fz web: {address(options)}   (Ctrl-C ends it)", flush=True)
        if not options.local:
            who = "anybody who reaches it" if options.password is None else "whoever knows the password"
            print(f"fz web: {who} may use this machine through it.", flush=True)
        watch(folder, routes)
    except KeyboardInterrupt:
        print("\nfz web: ended. Inversions and results stay in", folder.root, flush=True)
    finally:
        if desk is not None:
            desk.queue.close()
        folder.lock.release()


def desk_of(options: Options, folder: Folder) -> Desk:
    given = {"device": options.device} | ({"threads": options.threads} if options.threads else {})
    models = Models(list(options.checkpoints), given)
    studio, examples = Studio(models, folder), Examples(folder)
    # the thread that computes must not keep the one that answers waiting for long
    sys.setswitchinterval(0.001)
    return Desk(folder, models, studio, Queue(folder, studio.do), examples)


def launch(blocks: gr.Blocks, options: Options, routes: Routes) -> None:
    # Gradio's own place for files, which the guard keeps closed
    os.environ["GRADIO_TEMP_DIR"] = str(options.folder / "gradio")
    app_kwargs = {
        "middleware": [Middleware(Guard, options=options)],
        "routes": routes.listed(),
        "docs_url": None,
        "redoc_url": None,
    }
    blocks.launch(
        server_name=options.host, server_port=options.port, share=options.share, quiet=True, prevent_thread_lock=True,
        app_kwargs=app_kwargs, max_file_size=1, ssr_mode=False, footer_links=[], favicon_path=str(HERE / "icon.svg"),
        show_error=False, enable_monitoring=False, pwa=False, run_history=False, **look(),
    )  # fmt: skip


def address(options: Options) -> str:
    host = f"[{options.host}]" if ":" in options.host else options.host
    return f"http://{host}:{options.port}"


def watch(folder: Folder, routes: Routes) -> None:
    """Every hour what is too old goes; every second, who has left."""
    due = time.monotonic() + HOUR
    while True:
        time.sleep(1)
        routes.presence.look()
        if time.monotonic() > due:
            folder.forget()
            due = time.monotonic() + HOUR
