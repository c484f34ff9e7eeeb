"""The routes: the page, and the REST API under /v1. What it answers is for research use only."""

import asyncio
import base64
import contextlib
import csv
import dataclasses
import fcntl
import html
import io
import json
import os
import pathlib
import shutil
import stat
import tempfile
import zipfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from fastapi import Body, FastAPI, File, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response, StreamingResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

import mcis
from mcis import organs
from mcis.files import from_json
from mcis.imaging.image_files import encode_png
from mcis.imaging.pool import WorkerPool
from mcis.imaging.scan import ScanError
from mcis.inference.predictor import BATCH, Predictor, Result
from mcis.report.finding import KEYS, Finding, plain
from mcis.report.volume import KEYS as VOLUME_KEYS
from mcis.report.volume import summarise
from mcis.serve.middleware import BROKEN, CLOSES, Guard, Limits
from mcis.serve.service import Asking, Batches

SHOWN = 2048
"""Longest side of a picture that is sent back, pixels; its mask keeps the scan's size."""
FAINT = 0.05
"""The drop of a probability that a heat map shows as strongest at least: where a label is sure, hiding takes next to
nothing anywhere, and what is left is noise."""
PREFIX = "mcis-serve-"
KINDS = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
PAGE = {kind: pathlib.Path(__file__).with_name(f"page.{kind}").read_text(encoding="utf-8") for kind in KINDS}

Files = Annotated[list[UploadFile], File(description="scans: pictures, DICOM or NIfTI files, or zip archives of them")]


def make_app(
    predictor: Predictor,
    root: str,
    limits: Limits | None = None,
    hosts: Sequence[str] | None = None,
    token: str | None = None,
) -> Guard:
    """The server as an ASGI application.

    Args:
      predictor: what answers.
      root: a folder for uploads, of `upload_folder`.
      limits: of a request, as for `Guard`.
      hosts: likewise.
      token: likewise.
    """
    bounds = limits or Limits()
    asking: Asking  # while it runs

    @contextlib.asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        nonlocal asking
        readers, batches = WorkerPool(seconds=bounds.reading), Batches(predictor)
        asking = Asking(readers, batches, bounds, root)
        answering = asyncio.create_task(batches.run())
        try:
            await asyncio.gather(*(batches.warm(size) for size in (1, BATCH)))
            yield
        finally:
            answering.cancel()
            await readers.close()

    app = FastAPI(
        title="mcis",
        version=mcis.__version__,
        description=f"{mcis.__doc__}\n\n{mcis.NOTICE}",
        lifespan=running,
        docs_url=None,  # they would load scripts from elsewhere
        redoc_url=None,
    )

    app.state.scans = bounds.scans
    app.router.route_class = _Route  # of the routes that follow

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        return _json({"error": str(error.detail)}, error.status_code)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        said = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:5])
        hint = " (scans are sent as form fields called files)" if "files" in said else ""
        return _json({"error": f"{said}{hint}"}, 422)

    @app.exception_handler(ScanError)
    async def unreadable(_: Request, error: ScanError) -> Response:
        return _json({"error": str(error)}, 422)

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> Response:
        return _json({"error": BROKEN}, 500)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        notice = html.escape(mcis.NOTICE)
        return Response(PAGE["html"].replace("__NOTICE__", notice), media_type=KINDS["html"])

    @app.get("/page.{kind}", include_in_schema=False)
    async def part(kind: Literal["js", "css"]) -> Response:
        return Response(PAGE[kind], media_type=KINDS[kind])

    @app.get("/v1/about")
    async def about() -> Response:
        """What this server is: version, weights, organs and their classes, limits, notice."""
        said = {
            "mcis": mcis.__version__,
            "notice": mcis.NOTICE,
            "weights": plain(predictor.weights_record),
            "lacking": predictor.lacking,
            "asked": dataclasses.asdict(predictor.options),
            "organs": {organ.name: {"scan": organ.scan, "classes": organ.classes} for organ in organs.ORGANS},
            "limits": dataclasses.asdict(bounds),
        }
        return _json(said)

    @app.post("/v1/findings", responses=_answers(*FORMATS.values()))
    async def findings(
        request: Request,
        files: Files,
        format: Annotated[
            Literal["json", "ndjson", "csv"], Query(description="ndjson: a line as soon as it is known")
        ] = "json",
        pictures: Annotated[bool, Query(description="add the scan and its mask as base64 of PNG files")] = False,
    ) -> Response:
        """Findings of scans, in their order: one a picture, frame or slice; what cannot be read has an `error`."""

        async def rows() -> AsyncIterator[dict[str, Any]]:
            with asking.folder() as folder:
                uploads = await asking.keep(files, folder)
                async with contextlib.aclosing(asking.results(uploads, request.is_disconnected)) as answers:
                    async for answer in answers:
                        yield await asyncio.to_thread(_row, answer.result, pictures)

        if format == "ndjson":
            lines = (json.dumps(row) + "\n" async for row in rows())
            return StreamingResponse(lines, media_type=FORMATS[format])
        found = [row async for row in rows()]
        if format == "csv":
            return Response(as_csv(found), media_type=FORMATS[format])
        return _json({"notice": mcis.NOTICE, "findings": found, "volumes": volumes_of(found)})

    @app.post("/v1/volumes")
    async def volumes(findings: Annotated[list[dict[str, Any]], Body(max_length=100_000)]) -> Response:
        """Volumes that findings sum up to, as `volumes.jsonl` has them; `lines` and such count from the first."""
        try:
            return _json({"notice": mcis.NOTICE, "volumes": volumes_of(findings)})
        except (KeyError, TypeError, ValueError, OverflowError):
            raise HTTPException(422, "no findings; a list of them as /v1/findings gives them is needed") from None

    @app.post("/v1/heat", responses=_answers("image/png"), response_class=Response)
    async def heat(
        files: Files,
        frame: Annotated[int, Query(ge=0)] = 0,
        name: Annotated[str | None, Query(alias="scan", description="of several, which: its finding's `scan`")] = None,
    ) -> Response:
        """Where the network looks that gives a scan its label, as a grey PNG file of the scan's size.

        White is where hiding the scan takes most from the label's probability, at least FAINT, and black where it takes
        nothing; the header `largest-drop` says how much that is. Seconds on a CPU.
        """
        with asking.folder() as folder:
            uploads = await asking.keep(files, folder)
            if name is None and len(uploads) > 1:
                raise HTTPException(422, f"{len(uploads)} scans came; name one of them with ?scan=")
            chosen = next((one for one in uploads if name in (None, one.name)), None)
            if chosen is None:
                raise HTTPException(422, f"{len(uploads)} scans came; none of them is {name!r:.300}")
            answer = await asking.result(chosen, frame or None)
            if answer.result.finding.error:
                raise HTTPException(422, answer.result.finding.error)
            found = await asking.batches.heat(answer.loaded, answer.result.finding)
        if found is None:
            raise HTTPException(422, "this scan has no label to look for")
        largest = max(float(found.max()), 0.0)
        grey = np.clip(np.rint(255 * found / max(largest, FAINT)), 0, 255).astype(np.uint8)
        return Response(encode_png(grey), media_type="image/png", headers={"largest-drop": f"{largest:.4f}"})

    @app.post(
        "/v1/segmentations",
        responses=_answers(*SEGMENTATIONS.values(), "application/zip"),
        response_class=Response,
    )
    async def segmentations(
        request: Request,
        files: Files,
        named: Annotated[bool, Query(description="with the patient's name and number")] = False,
    ) -> Response:
        """The lesions of volumes: a DICOM SEG file of a DICOM series or file, a NIfTI file of one; several in a zip.

        What has none, of several, is named in `failed.txt` there.
        """
        with asking.folder() as folder:
            uploads = await asking.keep(files, folder)
            made, failed = await asking.segmentations(uploads, folder, named, request.is_disconnected)
        if len(made) == 1 and not failed:
            ((suffix, data),) = made
            return Response(data, media_type=SEGMENTATIONS[suffix])
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for number, (suffix, data) in enumerate(made):
                archive.writestr(f"segmentation_{number:04}{suffix}", data)
            if failed:
                archive.writestr("failed.txt", "".join(f"{why}\n" for why in failed))
        return Response(packed.getvalue(), media_type="application/zip")

    return Guard(app, bounds, hosts, token)


class _Request(Request):
    def form(self, **_: Any) -> Any:  # Starlette takes 1,000 files, whatever the limit of scans is
        return super().form(max_files=self.app.state.scans)


class _Route(APIRoute):
    """A route that takes no parameter it does not know, which would be one misspelt."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        known = {parameter.alias for parameter in self.dependant.query_params}

        async def answering(request: Request) -> Response:
            if unknown := sorted(set(request.query_params) - known):
                takes = ", ".join(sorted(known)) or "none"
                raise HTTPException(422, f"no parameter {unknown[0][:100]!r}; this route takes: {takes}")
            return await answer(_Request(request.scope, request.receive))

        return answering


def _json(value: Any, status: int = 200) -> Response:
    """JSON in ASCII: a name may hold what UTF-8 has no form for."""
    headers = {"connection": "close"} if status in CLOSES else None
    return Response(json.dumps(value), status, headers, media_type="application/json")


def _answers(*kinds: str) -> dict[int | str, dict[str, Any]]:
    """What a route answers with, for the API's description."""
    return {200: {"content": {kind: {} for kind in kinds}}}


FORMATS = {"json": "application/json", "ndjson": "application/x-ndjson", "csv": "text/csv"}

SEGMENTATIONS = {".dcm": "application/dicom", ".nii.gz": "application/gzip"}


def _row(result: Result, pictures: bool) -> dict[str, Any]:
    """A finding as it is sent: its keys, and its pictures where they are wanted."""
    row = plain({key: getattr(result.finding, key) for key in KEYS})
    if pictures:
        row["scan_png"] = None if result.image is None else _base64(encode_png(_smaller(_grey(result.image))))
        row["mask_png"] = None if result.mask is None else _base64(encode_png(result.mask * np.uint8(255)))
        row["size"] = None if result.image is None else [result.image.shape[1], result.image.shape[0]]
    return row


def volumes_of(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The volumes of findings that are JSON, as JSON."""
    found = summarise(from_json(Finding, json.dumps(row)) for row in rows)
    return [plain({key: getattr(volume, key) for key in VOLUME_KEYS}) for volume in found]


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _grey(image: np.ndarray) -> np.ndarray:
    """One channel of a grey picture, which is what most scans are; a third of the bytes."""
    return image[..., 0] if (image[..., :1] == image).all() else image


def _smaller(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    if (scale := SHOWN / max(height, width)) >= 1:
        return image
    return cv2.resize(
        image, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA
    )


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Findings as a table, a column a key; what is no number or text is JSON within its cell."""
    out = io.StringIO()
    table = csv.writer(out)
    table.writerow(KEYS)
    table.writerows([_cell(row[key]) for key in KEYS] for row in rows)
    return out.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, dict | list):
        return json.dumps(value)
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"  # a table's program would compute it
    return value


@contextlib.contextmanager
def upload_folder() -> Iterator[str]:
    """A folder for the uploads of this process. What servers that were killed have left is removed."""
    temporary = pathlib.Path(tempfile.gettempdir())
    for left in temporary.glob(f"{PREFIX}*/lock"):
        with contextlib.suppress(OSError), _locked(left, os.O_RDONLY):  # fails while its server lives
            shutil.rmtree(left.parent, ignore_errors=True)
    root = pathlib.Path(tempfile.mkdtemp(prefix=f".{PREFIX}"))
    try:
        with _locked(root / "lock", os.O_RDWR | os.O_CREAT):
            root = root.rename(temporary / root.name.lstrip("."))  # found by others only now that it is locked
            yield str(root)
    finally:
        shutil.rmtree(root, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: pathlib.Path, flags: int) -> Iterator[None]:
    """Hold a lock of this user's, a plain file: anybody may put a pipe or a link into a folder for temporary files."""
    lock = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        status = os.fstat(lock)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid():
            raise OSError(f"{path}: no lock of ours")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(lock)
