"""The Gradio page: its components and event handlers; `page_content` writes the HTML."""

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
from gradio.exceptions import InvalidPathError

from explanation.overlay import STRENGTH
from helper import UserError, log
from inference.predictor import SlicePredictor
from preparation.sources import MAX_FILE_MIB
from webapp import page_content
from webapp.page_content import TrainingSlices
from webapp.request_filter import RequestFilter
from webapp.user_session import (
    Session,
    check_upload,
    delete_old_files,
    make_heatmap,
    open_file,
    open_frame,
    predict_files,
)

SHUTDOWN_S = 2  # for pending answers
MAX_AGE_S = 3600  # of an unused upload
CLEANUP_S = 300  # interval
MAX_WAITING = 32  # queued events
MAX_SESSIONS = 200  # in memory, the latest
FORMATS = "JPEG, PNG, TIFF, BMP, WebP, GIF, JPEG 2000, PNM or DICOM"
CSS = Path(__file__).with_name("page.css")
# by default Gradio ignores an upload while an earlier one is being processed
EVENT: dict[str, Any] = {"api_visibility": "private", "trigger_mode": "multiple"}


class _Blocks(gr.Blocks):
    async def preprocess_data(self, *arguments: Any, **options: Any) -> Any:
        """Preprocess the inputs of an event; refuse other files without a traceback in the log."""
        try:
            return await super().preprocess_data(*arguments, **options)
        except InvalidPathError:  # it contains the path that the client named
            raise gr.Error("not uploaded on this page", print_exception=False) from None


def build_site(predictor: SlicePredictor, training: TrainingSlices, folder: Path) -> FastAPI:
    """Build the page as an ASGI application; uploads and tables are files of `folder`."""
    blocks = _Blocks(analytics_enabled=False, title="Brain MRI slices")
    blocks.state_session_capacity = MAX_SESSIONS
    with blocks:
        _html("notice", page_content.describe_notice(predictor))
        _html("top", page_content.describe_top(predictor))
        with gr.Tab("One slice"):
            _build_single(predictor, training, folder)
        with gr.Tab("Many files"):
            _build_batch(predictor, folder)
    blocks.queue(max_size=MAX_WAITING)

    @contextlib.asynccontextmanager
    async def lifespan(site: FastAPI) -> AsyncIterator[None]:
        cleanup = asyncio.create_task(_clean_up(folder))
        yield
        cleanup.cancel()

    site = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan),
        blocks,
        path="/",
        footer_links=[],
        run_history=False,  # it would keep images and predictions in the browser
        show_error=False,
        max_file_size=MAX_FILE_MIB * 2**20,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        css=CSS.read_text("utf-8"),
    )
    blocks.has_launched = True  # until then Gradio copies any file that a client names
    return site


async def _clean_up(folder: Path) -> None:
    """Delete unused uploads; Gradio's own cleanup misses them, because they were renamed."""
    while True:
        await asyncio.sleep(CLEANUP_S)
        await asyncio.to_thread(delete_old_files, folder, MAX_AGE_S)


def run_site(site: RequestFilter, listener: socket.socket, announce: Callable[[], None]) -> None:
    """Serve the page until the process is interrupted; call `announce` once it answers."""

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            announce()

    settings = uvicorn.Config(
        site, log_level="critical", timeout_graceful_shutdown=SHUTDOWN_S, server_header=False
    )
    Server(settings).run(sockets=[listener])


def _html(name: str, value: str = "") -> gr.HTML:
    return gr.HTML(value, elem_id=name, js_on_load=None)


def _build_single(predictor: SlicePredictor, training: TrainingSlices, folder: Path) -> None:
    """One slice: prediction on the left, image and heat map on the right."""
    state = gr.State(Session())
    with gr.Row(elem_id="sides"):
        with gr.Column():
            upload = gr.File(label=f"Drop a slice: {FORMATS}", height=140, elem_id="upload")
            frame = gr.Slider(1, 2, 1, step=1, label="Frame", visible=False, elem_id="frame")
            answer = _html("prediction")
        with gr.Column():
            picture = _html("picture", page_content.show_picture(Session(), 0))
            legend = _html("legend")
            strength = gr.Slider(
                0, 1, STRENGTH, step=0.05, label="Strength of the heat map", elem_id="strength"
            )
            target = gr.Radio(predictor.classes, label="Heat map for", elem_id="target")
    nearest = _html("nearest")

    def show(session: Session) -> list[Any]:
        assert session.prediction is not None
        return [
            page_content.describe_prediction(session, predictor),
            page_content.show_picture(session, 0),
            page_content.describe_heatmap(session, predictor),
            gr.update(value=session.class_name),
            training.describe(session.prediction),
        ]

    def on_upload(path: str, session: Session) -> list[Any]:
        try:
            open_file(session, predictor, check_upload(Path(path), folder))
            result = show(session)
        except Exception as error:  # noqa: BLE001  the page stays usable
            session.clear()  # check_upload may have failed before the old image was removed
            session.delete_file()
            result = _show_failure(error)
        slider = gr.update(
            value=session.frame,
            maximum=max(2, session.n_frames),
            visible=session.n_frames > 1,
            label="Frame",
        )
        return [None, slider, *result]

    def on_frame(number: float, session: Session) -> list[Any]:
        try:
            open_frame(session, predictor, int(number))
            return show(session)
        except Exception as error:  # noqa: BLE001  the page stays usable
            return _show_failure(error)

    def show_map(session: Session, strength: float) -> list[Any]:
        picture = page_content.show_picture(session, strength)
        return [picture, page_content.describe_heatmap(session, predictor)]

    def on_target(class_name: str, session: Session, strength: float) -> list[Any]:
        session.class_name = class_name
        return show_map(session, strength)

    def explain(session: Session, strength: float) -> list[Any]:
        try:
            make_heatmap(session, predictor)
        except Exception as error:  # noqa: BLE001  the prediction stays visible
            _log_failure(error)
            return [gr.skip(), page_content.describe_error(error)]
        return show_map(session, strength)  # the image may have changed meanwhile

    blend = [state, strength]
    shown = [answer, picture, legend, target, nearest]
    predict: dict[str, Any] = {"concurrency_id": "predict", **EVENT}
    silent: dict[str, Any] = {"show_progress": "hidden", **EVENT}
    last_only = {"trigger_mode": "always_last"}  # sliders fire while they move
    changes = (
        upload.upload(on_upload, [upload, state], [upload, frame, *shown], **predict),
        frame.input(on_frame, [frame, state], shown, **{**predict, **last_only}),
        target.input(on_target, [target, *blend], [picture, legend], **silent),
    )
    for change in changes:
        progress = {"show_progress": "minimal", "show_progress_on": [legend]}
        change.then(explain, blend, [picture, legend], **progress, **EVENT)
    strength.change(page_content.show_picture, blend, picture, **{**silent, **last_only})


def _show_failure(error: Exception) -> list[Any]:
    _log_failure(error)
    empty = page_content.show_picture(Session(), 0)
    return [page_content.describe_error(error), empty, "", gr.update(value=None), ""]


def _log_failure(error: Exception) -> None:
    """Log an unexpected error without the name of the file."""
    if not isinstance(error, UserError):
        log.warning("an image could not be predicted: %s", type(error).__name__)


def _build_batch(predictor: SlicePredictor, folder: Path) -> None:
    """Many files: a row for each, and the table for download."""
    upload = gr.File(
        label=f"Drop files: {FORMATS}", file_count="multiple", height=160, elem_id="many"
    )
    summary, table = _html("summary"), _html("table")
    download = gr.DownloadButton("Download the table (CSV)", visible=False, elem_id="csv")

    def on_upload(paths: list[str], progress: Any = gr.Progress()) -> list[Any]:  # noqa: B008
        rows: list[Any] = []
        try:
            uploads = [check_upload(Path(path), folder) for path in paths]
            for new in predict_files(predictor, uploads):
                rows += new
                progress((min(len(rows), len(paths)), len(paths)), unit="files")
        except Exception as error:  # noqa: BLE001  the page stays usable
            _log_failure(error)
            return [None, page_content.describe_error(error), "", gr.update(visible=False)]
        text = page_content.write_table(rows, predictor.classes)
        path = Path(tempfile.mkdtemp(dir=folder)) / page_content.name_table(predictor)
        path.write_text(text, "utf-8", newline="")
        update = gr.update(value=str(path), visible=True)
        return [None, page_content.summarise(rows), page_content.show_table(text), update]

    shown = [upload, summary, table, download]
    upload.upload(on_upload, upload, shown, concurrency_id="batches", **EVENT)  # its own queue
