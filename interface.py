"""The page in Gradio: components and what happens when they are used; words are page.py's."""

import csv
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from numpy.typing import NDArray

import answers
import page
from assessment.overlay import STRENGTH, blend_heatmap
from classifier import SliceClassifier
from helper import NOTICE
from imaging.archive import MAX_FILE_MIB
from imaging.grey import ImageError
from imaging.read import IMAGE_SUFFIXES

KEPT_S = 3600  # pictures of earlier answers are deleted after this
CSS = """
.gradio-container {max-width: min(1100px, 100vw) !important; margin: auto}
.gradio-container .block, .gradio-container .column {min-width: 0 !important; max-width: 100%}
.box {display: flex; gap: .7em; padding: .6em .8em; margin: .4em 0; border-left: 5px solid;
  border-radius: 4px}
.box.bad {border-color: #b3261e; background: #b3261e22}
.box.refer {border-color: #9a6700; background: #9a670022}
.box.good {border-color: #1a7f37; background: #1a7f3722}
.box.note {border-color: #57606a; background: #57606a22}
.bar {display: grid; grid-template-columns: 5.5em 1fr 4em; gap: .6em; align-items: center;
  margin: .3em 0}
.bar i {height: 1em; border-radius: 3px; background: #8884}
.bar u {display: block; height: 100%; border-radius: 3px; background: #2f6fb5}
.small {font-size: .85em; opacity: .85}
"""
Picture = NDArray[np.uint8] | None


def build_site(
    classifier: SliceClassifier, data_dir: Path, policy: str, hosts: list[str]
) -> FastAPI:
    """The page as a web application that hands out nothing but itself.

    Args:
        classifier: What judges.
        data_dir: Folder of the training slices, for those nearest to a picture.
        policy: The Content-Security-Policy of every answer.
        hosts: The names under which it may be asked for.
    """
    site = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    if "0.0.0.0" not in hosts and "::" not in hosts:
        # no page from elsewhere may reach this one under a name of its own
        site.add_middleware(TrustedHostMiddleware, allowed_hosts=[*hosts, "[::1]"])

    @site.middleware("http")
    async def guard(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = policy
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    font = ["system-ui", "sans-serif"]
    return gr.mount_gradio_app(
        site,
        build_blocks(classifier, page.TrainingSlices(data_dir)),
        path="/",
        footer_links=[],
        show_error=False,
        max_file_size=MAX_FILE_MIB * 2**20,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=gr.themes.Base(font=font, font_mono=["monospace"]),
        css=CSS,
    )


def build_blocks(classifier: SliceClassifier, training: page.TrainingSlices) -> gr.Blocks:
    """Two tabs: one slice with its heat map, and many files with a table."""
    blocks = gr.Blocks(
        analytics_enabled=False, title="Brain MRI slices", delete_cache=(KEPT_S, KEPT_S)
    )
    with blocks:
        gr.HTML(page.describe_top(classifier), elem_id="top")
        with gr.Tab("One slice"):
            _build_one(classifier, training)
        with gr.Tab("Many files"):
            _build_many(classifier)
        gr.HTML(f"<p class='small'>{NOTICE} Pictures stay on this machine and are deleted.</p>")
    return blocks


def _build_one(classifier: SliceClassifier, training: page.TrainingSlices) -> None:
    shown, heatmap = gr.State(), gr.State()
    with gr.Row():
        with gr.Column(min_width=300):
            dropped = gr.File(
                label="Drop a slice: JPEG, PNG, TIFF, BMP or DICOM",
                file_types=[*IMAGE_SUFFIXES, "file"],
                height=140,
                elem_id="dropped",
            )
            frame = gr.Slider(1, 2, 1, step=1, label="Frame", visible=False, elem_id="frame")
            answer = gr.HTML(elem_id="answer")
        with gr.Column(min_width=300):
            picture = gr.Image(
                label="The slice, and what the answer rests on",
                interactive=False,
                format="png",
                buttons=["fullscreen"],
                elem_id="picture",
            )
            strength = gr.Slider(
                0, 1, STRENGTH, step=0.05, label="Strength of the heat map", elem_id="strength"
            )
            target = gr.Radio(classifier.classes, label="Heat map for", elem_id="target")
    nearest_words = gr.HTML(elem_id="nearest")
    nearest = gr.Gallery(
        label="Nearest training slices", columns=5, height=200, visible=False, format="png"
    )

    def judge(path: str | None, number: float) -> list[Any]:
        if path is None:
            return [None, None, "", None, gr.update(value=None), "", gr.update(visible=False)]
        try:
            result = page.judge_picture(classifier, Path(path), int(number))
        except Exception as error:  # noqa: BLE001  an answer that stayed would be another picture's
            words = page.describe_failure(error)
            return [None, None, words, None, gr.update(value=None), "", gr.update(visible=False)]
        slices = training.show(result.verdict)
        return [
            result,
            None,
            page.describe_shown(result, classifier),
            result.fitted.picture,
            gr.update(value=result.verdict.predicted),
            training.describe(result.verdict),
            gr.update(value=slices, visible=bool(slices)),
        ]

    def begin(path: str | None) -> list[Any]:
        """Take the answer of the file before away, and show how many frames this one has."""
        try:
            n_frames = page.count_frames(Path(path)) if path else 1
        except ImageError:
            n_frames = 1
        frames = gr.update(maximum=max(2, n_frames), value=1, visible=n_frames > 1)
        return [frames, None, None, "", None, gr.update(value=None), "", gr.update(visible=False)]

    def explain(result: page.Shown | None, class_name: str | None, share: float) -> list[Any]:
        if result is None or class_name is None:
            return [None, None]
        found = classifier.explain(result.fitted, class_name)
        return [found, blend(result, found, share)]

    def blend(result: page.Shown | None, found: Any, share: float) -> Picture:
        if result is None:
            return None
        if found is None:
            return result.fitted.picture
        return blend_heatmap(result.fitted.picture, found, share)

    answers_shown = [shown, heatmap, answer, picture, target, nearest_words, nearest]
    explained: dict[str, Any] = {
        "fn": explain,
        "inputs": [shown, target, strength],
        "outputs": [heatmap, picture],
        "show_progress": "minimal",  # the slice stays in sight meanwhile
        "api_visibility": "private",
    }
    quiet: dict[str, Any] = {"api_visibility": "private"}
    dropped.change(begin, dropped, [frame, *answers_shown], show_progress="hidden", **quiet).then(
        judge, [dropped, frame], answers_shown, **quiet
    ).then(**explained)
    frame.input(judge, [dropped, frame], answers_shown, trigger_mode="always_last", **quiet).then(
        **explained
    )
    target.input(**explained)
    strength.change(blend, [shown, heatmap, strength], picture, show_progress="hidden", **quiet)


def _build_many(classifier: SliceClassifier) -> None:
    dropped = gr.File(
        label="Drop files: JPEG, PNG, TIFF, BMP or DICOM",
        file_count="multiple",
        file_types=[*IMAGE_SUFFIXES, "file"],
        height=160,
        elem_id="many",
    )
    table = gr.Dataframe(
        headers=answers.list_columns(classifier.classes), interactive=False, elem_id="table"
    )
    download = gr.File(label="The table as CSV", interactive=False, elem_id="csv")

    def judge(paths: list[str] | None) -> list[Any]:
        if not paths:
            return [None, None]
        rows = page.judge_files(classifier, [(Path(path), Path(path).name) for path in paths])
        folder = Path(tempfile.mkdtemp(dir=gr.utils.get_upload_folder()))
        with (folder / "predictions.csv").open(
            "w", encoding="utf-8", errors="backslashreplace", newline=""
        ) as stream:
            answers.TableWriter(stream, classifier.classes, as_json=False).write(rows)
        with (folder / "predictions.csv").open(encoding="utf-8", newline="") as stream:
            cells = list(csv.reader(stream))[1:]
        return [cells, str(folder / "predictions.csv")]

    dropped.change(judge, dropped, [table, download], api_visibility="private")
