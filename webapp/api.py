"""The routes of the page: its interface, documented at /docs, and its files."""

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import anyio
import numpy as np
from fastapi import Depends, FastAPI, File, Form, Header, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from swagger_ui_bundle import swagger_ui_path

from helper import NOTICE, UserError, log
from imaging.grayscale import ImageError
from inference.pipeline import predict_batches
from inference.predictor import SlicePredictor
from inference.training_slices import TrainingSlices
from webapp import answers, uploads
from webapp.answers import Answer, Model, Result

STATIC = Path(__file__).with_name("static")
DOCS_FILES = ("swagger-ui.css", "swagger-ui-bundle.js")
LINES = "application/x-ndjson"
NOTE = "note"  # kind of a result that names files that were passed over
WORKERS = 2  # requests that are computed at once; more would share the same cores
HEATMAPS = 1  # of them, so that a prediction never waits for heat maps alone
CLIENT_LEFT = 499  # status that nobody reads
PNG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}}}


class PictureResponse(Response):
    """A PNG file."""

    media_type = "image/png"


def build_app(predictor: SlicePredictor, training: TrainingSlices, folder: Path) -> FastAPI:
    """Build the application; uploads are stored in `folder` until their request ends."""
    app = FastAPI(
        title="Brain MRI slices",
        description=f"{NOTICE} Uploads are deleted when their request ends.",
        docs_url=None,
        redoc_url=None,
        # for the documentation; the token is checked by the guard
        dependencies=[Depends(HTTPBearer(auto_error=False, description="with --token only"))],
    )
    workers, heatmaps = asyncio.Semaphore(WORKERS), asyncio.Semaphore(HEATMAPS)

    async def work(function: Any, *arguments: Any) -> Any:
        async with workers:
            return await run_to_its_end(function, *arguments)

    @app.post("/predict", response_model=Answer)
    async def predict(
        request: Request,
        files: Annotated[list[UploadFile], File(description="images, or archives of them")],
        pictures: Annotated[bool, Form(description="add each picture as it was read")] = False,
        accept: Annotated[str, Header(description=f"{LINES}: a line for each result")] = "",
    ) -> Any:
        """Predict every picture of the files, of every series and of every patient."""
        results = run(request, files, pictures)
        if LINES in accept:
            return StreamingResponse(write_lines(results), media_type=LINES)
        found = [result async for result in results]
        return Answer(
            warnings=predictor.list_warnings(),
            classes=predictor.classes,
            notes=[result.note for result in found if result.kind == NOTE],
            results=[result for result in found if result.kind != NOTE],
        )

    async def run(
        request: Request, files: list[UploadFile], pictures: bool
    ) -> AsyncIterator[Result]:
        stack = contextlib.ExitStack()  # a generator that is never started has stored nothing
        try:
            found = await work(stack.enter_context, uploads.store(files, folder))
            for name, line in found.errors:
                yield Result(kind="slice", file=name, error=line)
            batches = answers.predict(predictor, found, set(training.paths), pictures)
            stack.enter_context(contextlib.closing(batches))
            while (batch := await work(next, batches, None)) is not None:
                for result in batch:
                    yield result
                if await request.is_disconnected():
                    return
            for note in found.notes:
                yield Result(kind=NOTE, file="", note=note)
        finally:
            await run_to_its_end(stack.close)

    @app.post("/heatmap", response_class=PictureResponse, responses=PNG)
    async def heatmap(
        request: Request,
        files: Annotated[UploadFile, File(description="one picture")],
        class_name: Annotated[str, Form(description="default: the predicted class")] = "",
        frame: Annotated[int, Form(description="of a file of several, from 1", ge=1)] = 1,
    ) -> Response:
        """Return the heat map of a class: grey, brighter contributes more, size of the picture."""
        if class_name and class_name not in predictor.classes:
            names = ", ".join(predictor.classes)
            raise UserError(f"class_name {class_name[:100]}: no class of the model; take {names}")

        def explain() -> bytes:
            with uploads.store([files], folder) as found:
                batches = predict_batches(predictor, found.files)
                pairs = itertools.chain.from_iterable(batches)
                for number, (picture, prediction) in enumerate(pairs, 1):
                    if number < frame:
                        continue
                    if picture.prepared is None or prediction is None:
                        raise ImageError(picture.error)
                    map_ = predictor.explain(picture.prepared, class_name or prediction.predicted)
                    return answers.encode_png(np.rint(255 * map_).astype(np.uint8))
            raise UserError(f"frame {frame}: the file has no such frame")

        async with heatmaps:
            if await request.is_disconnected():  # a reader who turns pages leaves many behind
                return Response(status_code=CLIENT_LEFT)
            return PictureResponse(await work(explain))

    @app.get("/training/{sha256}", response_class=PictureResponse, responses=PNG)
    async def training_slice(sha256: str) -> Response:
        """Return a training slice that a prediction named as near."""
        pixels = await work(training.read, sha256)
        if pixels is None:
            raise HTTPException(404, "no such training slice in the data folder")
        return PictureResponse(answers.encode_png(pixels))

    @app.get("/model")
    async def model() -> Model:
        """Return the classes, warnings and limits of the networks."""
        return answers.describe_model(predictor)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Return that the page answers."""
        return {"status": "ok"}

    _add_files(app)
    for kind in (Exception, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _answer_error)
    return app


def _add_files(app: FastAPI) -> None:
    """Add the routes of the page and of the documentation."""

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> FileResponse:
        return FileResponse(STATIC / "docs.html")

    @app.get("/docs/{name}", include_in_schema=False)
    async def docs_file(name: str) -> FileResponse:
        if name not in DOCS_FILES:
            raise HTTPException(404, "no such page")
        return FileResponse(Path(swagger_ui_path) / name)

    app.mount("/static", StaticFiles(directory=STATIC))

    # the page of the documentation reads 3.0, where a file has another keyword
    app.openapi_version, describe_routes = "3.0.3", app.openapi
    keyword, of_3_0 = '"contentMediaType": "application/octet-stream"', '"format": "binary"'
    app.openapi = lambda: json.loads(json.dumps(describe_routes()).replace(keyword, of_3_0))  # type: ignore[method-assign]


async def run_to_its_end(function: Any, *arguments: Any) -> Any:
    """Run a function in a thread; if the task is cancelled, first wait until the function ends.

    It uses files of the request, which must not be deleted before. A task is cancelled several
    times: as the client leaves or the server ends, and as the event loop ends.
    """
    running = asyncio.get_running_loop().run_in_executor(None, partial(function, *arguments))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        with anyio.CancelScope(shield=True):
            while not running.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([running])
        raise


async def write_lines(results: AsyncIterator[Result]) -> AsyncIterator[str]:
    """Yield a line of JSON for each result; an error ends them with a line of its own."""
    try:
        async for result in results:
            yield result.model_dump_json() + "\n"
    except Exception as error:  # noqa: BLE001  the answer has begun
        _, line = describe(error)
        yield Result(kind="failure", file="", error=line).model_dump_json() + "\n"


async def _answer_error(_: Request, error: Exception) -> JSONResponse:
    status, line = describe(error)
    return JSONResponse({"error": line}, status)


def describe(error: Exception) -> tuple[int, str]:
    """Return the status and one line for an error, without a file's name if it is unexpected."""
    if isinstance(error, HTTPException):
        status, line = error.status_code, str(error.detail)
        return (status, "no such page") if line == "Not Found" else (status, line)
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        return 422, f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}"
    if isinstance(error, ImageError):
        return 422, f"this file cannot be read: {error.reason}"
    if isinstance(error, UserError):
        return 422, str(error)
    log.warning("a request failed: %s", type(error).__name__)
    return 500, f"failed ({type(error).__name__}); try another file"
