"""The page in Gradio: its parts and what happens when they are used; the words are page.py's."""

import asyncio
import contextlib
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI

from explanation.overlay import STRENGTH
from helper import UserError, log
from inference.predictor import SliceClassifier
from preparation.sources import MAX_FILE_MIB
from webapp import page_content
from webapp.request_filter import Guard
from webapp.user_session import (
    Desk,
    check_upload,
    judge_files,
    lay_file,
    lay_frame,
    make_heatmap,
    sweep,
)

PATIENCE_S = 2  # for answers under way when the page is ended
KEPT_S = 3600  # a file that nobody uses for so long is deleted
SWEPT_S = 300  # how often it is looked for them
MOST_WAITING = 32  # events that wait for their turn
MOST_READERS = 200  # whose pictures are kept in memory: those who came last
FORMATS = "JPEG, PNG, TIFF, BMP or DICOM"
CSS = """
.gradio-container {width: 100%; max-width: 1100px !important; margin: auto;
  padding-bottom: 5.5em !important}
.gradio-container .block {min-width: 0 !important; max-width: 100%}
#sides > * {min-width: 0 !important}
@media (max-width: 700px) {#sides {flex-direction: column}}
#notice {position: fixed; inset: auto 0 0 0; z-index: 50; background: #5c1a1a; border-radius: 0}
#notice p {color: #fff; margin: 0; padding: .1em .6em; text-align: center; font-size: 13px;
  line-height: 1.35}
.box {display: flex; gap: .7em; padding: .6em .8em; margin: .4em 0; border-left: 6px solid;
  border-radius: 4px}
.box .mark {font-size: 1.3em; line-height: 1.1; width: 1em; text-align: center}
.box.bad {border-color: #b3261e; background: #b3261e22}
.box.refer {border-color: #9a6700; background: #d4a72c2e}
.box.good {border-color: #1a7f37; background: #1a7f3722}
.verdict h2 {font-size: 1em; font-weight: 600; overflow-wrap: anywhere; margin: .2em 0}
.likeliest {font-size: 1.35em; font-weight: 700; margin: .4em 0}
.bar {display: grid; grid-template-columns: minmax(5em, auto) 1fr 4em; gap: .6em;
  align-items: center; margin: .3em 0}
.bar i {height: 1em; border-radius: 3px; background: #8884; overflow: hidden}
.bar u {display: block; height: 100%; background: #2f6fb5}
.bar span:last-child {text-align: right; font-variant-numeric: tabular-nums}
.small {font-size: .85em}
#picture .empty {padding: 4em 1em; text-align: center; border: 1px dashed #8886; border-radius: 4px}
#picture img {width: 100%; max-height: 58vh; object-fit: contain; display: block; background: #000;
  border-radius: 4px}
.nearest {display: grid; grid-template-columns: repeat(5, 1fr); gap: .5em}
.nearest figure {margin: 0; text-align: center}
.nearest img {width: 100%; border-radius: 3px}
.nearest figcaption {font-size: .85em; overflow-wrap: anywhere}
.scroll {overflow-x: auto}
.scroll table {border-collapse: collapse; font-size: .85em; white-space: nowrap}
.scroll th, .scroll td {padding: .3em .6em; border: 0 solid #8886; border-bottom-width: 1px;
  text-align: left}
.scroll td:first-child {white-space: normal; overflow-wrap: anywhere; min-width: min(16em, 25vw)}
.scroll tr.bad {background: #b3261e22}
.scroll tr.bad td:nth-child(2) {font-weight: 700}
"""
# Gradio would pass over a drop that comes while an earlier one is being answered
QUIET: dict[str, Any] = {"api_visibility": "private", "trigger_mode": "multiple"}


def build_site(
    classifier: SliceClassifier, training: page_content.TrainingSlices, folder: Path
) -> FastAPI:
    """The page as a web application.

    Args:
        classifier: What judges.
        training: The slices that are shown as nearest to a picture.
        folder: Where files are uploaded to, the only ones that are judged, and tables written.
    """
    blocks = gr.Blocks(analytics_enabled=False, title="Brain MRI slices")
    blocks.state_session_capacity = MOST_READERS
    with blocks:
        gr.HTML(page_content.describe_notice(classifier), elem_id="notice", js_on_load=None)
        gr.HTML(page_content.describe_top(classifier), elem_id="top", js_on_load=None)
        with gr.Tab("One slice"):
            _build_one(classifier, training, folder)
        with gr.Tab("Many files"):
            _build_many(classifier, folder)
    blocks.queue(max_size=MOST_WAITING)
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["monospace"]}

    @contextlib.asynccontextmanager
    async def lifespan(site: FastAPI) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(_sweep_on(folder))
        yield
        sweeping.cancel()

    site = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan),
        blocks,
        path="/",
        footer_links=[],
        run_history=False,  # it would keep pictures and answers in the browser
        show_error=False,
        max_file_size=MAX_FILE_MIB * 2**20,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=gr.themes.Base(**fonts),
        css=CSS,
    )
    blocks.has_launched = True  # before that Gradio copies any file that a client names
    return site


async def _sweep_on(folder: Path) -> None:
    """Gradio would delete the files that it knows by name, and the desks give them others."""
    while True:
        await asyncio.sleep(SWEPT_S)
        await asyncio.to_thread(sweep, folder, KEPT_S)


def run_site(site: Guard, door: socket.socket, announce: Callable[[], None]) -> None:
    """Offer the page at a socket until the process is told to end.

    Args:
        site: What answers.
        door: The socket, which listens.
        announce: Called when it answers, and Ctrl-C is heeded: not before.
    """

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            announce()

    settings = uvicorn.Config(
        site, log_level="critical", timeout_graceful_shutdown=PATIENCE_S, server_header=False
    )
    Server(settings).run(sockets=[door])


def _build_one(
    classifier: SliceClassifier, training: page_content.TrainingSlices, folder: Path
) -> None:
    """One slice: the answer at the left, the picture and its heat map at the right."""
    desk = gr.State(Desk())
    with gr.Row(elem_id="sides"):
        with gr.Column():
            dropped = gr.File(
                label=f"Drop a slice: {FORMATS}",
                height=140,
                elem_id="dropped",
            )
            frame = gr.Slider(1, 2, 1, step=1, label="Frame", visible=False, elem_id="frame")
            answer = _text("answer")
        with gr.Column():
            picture = _text("picture", page_content.show_picture(Desk(), 0))
            words = _text("words")
            strength = gr.Slider(
                0, 1, STRENGTH, step=0.05, label="Strength of the heat map", elem_id="strength"
            )
            target = gr.Radio(classifier.classes, label="Heat map for", elem_id="target")
    nearest = _text("nearest")
    shown = [answer, picture, words, target, nearest]

    def show(own: Desk) -> list[Any]:
        assert own.verdict is not None
        return [
            page_content.describe_answer(own, classifier),
            page_content.show_picture(own, 0),
            page_content.describe_heatmap(own),
            gr.update(value=own.class_name),
            training.describe(own.verdict),
        ]

    def drop(path: str, own: Desk) -> list[Any]:
        try:
            lay_file(own, classifier, check_upload(Path(path), folder))
            result = show(own)
        except Exception as error:  # noqa: BLE001  the page goes on
            own.clear()  # of what was refused before it lay there
            own.delete_file()
            result = _show_failure(error)
        slider = gr.update(
            value=own.frame, maximum=max(2, own.n_frames), visible=own.n_frames > 1, label="Frame"
        )
        return [None, slider, *result]

    def turn_to(number: float, own: Desk) -> list[Any]:
        try:
            lay_frame(own, classifier, int(number))
            return show(own)
        except Exception as error:  # noqa: BLE001  the page goes on
            return _show_failure(error)

    def choose(class_name: str, share: float, own: Desk) -> list[Any]:
        own.class_name = class_name
        return show_map(share, own)

    def explain(share: float, own: Desk) -> list[Any]:
        try:
            make_heatmap(own, classifier)
        except Exception as error:  # noqa: BLE001  the answer stands without a heat map
            _log_failure(error)
            return [gr.skip(), page_content.describe_error(error)]
        # of what lies there now, which may be another picture: nothing old comes back
        return show_map(share, own)

    def show_map(share: float, own: Desk) -> list[Any]:
        return [page_content.show_picture(own, share), page_content.describe_heatmap(own)]

    def blend(share: float, own: Desk) -> str:
        return page_content.show_picture(own, share)

    explained: dict[str, Any] = {
        "fn": explain,
        "inputs": [strength, desk],
        "outputs": [picture, words],
        "show_progress": "minimal",
        "show_progress_on": [words],
        **QUIET,
    }
    judged: dict[str, Any] = {"concurrency_id": "judge", **QUIET}
    silent: dict[str, Any] = {"show_progress": "hidden", **QUIET}
    dropped.upload(drop, [dropped, desk], [dropped, frame, *shown], **judged).then(**explained)
    # by mouse, keyboard or number alike: the last one counts
    frame.input(turn_to, [frame, desk], shown, **{**judged, "trigger_mode": "always_last"}).then(
        **explained
    )
    target.input(choose, [target, strength, desk], [picture, words], **silent).then(**explained)
    strength.change(blend, [strength, desk], picture, **{**silent, "trigger_mode": "always_last"})


def _text(name: str, value: str = "") -> gr.HTML:
    return gr.HTML(value, elem_id=name, js_on_load=None)


def _show_failure(error: Exception) -> list[Any]:
    _log_failure(error)
    nothing = page_content.show_picture(Desk(), 0)
    return [page_content.describe_error(error), nothing, "", gr.update(value=None), ""]


def _log_failure(error: Exception) -> None:
    """Say on the terminal that something went wrong, but not with which file."""
    if not isinstance(error, UserError):
        log.warning("a picture could not be judged: %s", type(error).__name__)


def _build_many(classifier: SliceClassifier, folder: Path) -> None:
    """Many files: a row for each, and the table to download."""
    dropped = gr.File(
        label=f"Drop files: {FORMATS}",
        file_count="multiple",
        height=160,
        elem_id="many",
    )
    summary = _text("summary")
    table = _text("table")
    download = gr.DownloadButton("Download the table (CSV)", visible=False, elem_id="csv")

    def judge(paths: list[str], progress: Any = gr.Progress()) -> list[Any]:  # noqa: B008
        rows: list[Any] = []
        try:
            uploads = [check_upload(Path(path), folder) for path in paths]
            for new in judge_files(classifier, uploads):
                rows += new
                progress((min(len(rows), len(paths)), len(paths)), unit="files")
        except Exception as error:  # noqa: BLE001  the page goes on
            _log_failure(error)
            return [None, page_content.describe_error(error), "", gr.update(visible=False)]
        text = page_content.write_table(rows, classifier.classes)
        path = Path(tempfile.mkdtemp(dir=folder)) / page_content.name_table(classifier)
        path.write_text(text, "utf-8", newline="")
        update = gr.update(value=str(path), visible=True)
        return [None, page_content.summarise(rows), page_content.show_table(text), update]

    outputs = [dropped, summary, table, download]
    # not in one queue with single slices, whose readers wait
    dropped.upload(judge, dropped, outputs, concurrency_id="batches", **QUIET)
