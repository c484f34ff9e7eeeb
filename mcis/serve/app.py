"""The routes: the page, and the REST API under /v1. Results are for research use only."""

import asyncio
import base64
import collections
import contextlib
import csv
import dataclasses
import functools
import html
import io
import json
import pathlib
import zipfile
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from fastapi import APIRouter, Body, FastAPI, File, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response, StreamingResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

import mcis
from mcis import organs
from mcis.files import from_json
from mcis.imaging import search
from mcis.imaging.image_files import encode_png
from mcis.imaging.pool import WorkerPool
from mcis.imaging.scan import ScanError
from mcis.inference.predictor import BATCH, Predictor
from mcis.inference.result import Result
from mcis.report.finding import KEYS, Finding, plain
from mcis.report.page import read_part
from mcis.report.volume import summarise
from mcis.serve.middleware import CLOSING, INTERNAL_ERROR, Guard, Limits
from mcis.serve.service import Batches, Service

MAX_SIDE = 2048
"""Longest side of an image in a response, pixels; the mask keeps the scan's size."""
MIN_DROP = 0.05
"""Smallest drop of a probability that a saliency map shows as white. Where a label is certain, hiding a part of the
scan changes little anywhere, and the map is mostly noise."""
FORMATS = {"json": "application/json", "ndjson": "application/x-ndjson", "csv": "text/csv"}
SEGMENTATIONS = {".dcm": "application/dicom", ".nii.gz": "application/gzip"}
PAGE_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
PAGE_PARTS = {"html": ("page.html",), "js": ("viewer.js", "page.js"), "css": ("page.css",)}


def make_app(
    predictor: Predictor,
    root: str,
    limits: Limits | None = None,
    hosts: Sequence[str] | None = None,
    token: str | None = None,
) -> Guard:
    """The server as an ASGI application.

    Args:
      predictor: predicts the scans.
      root: a folder for uploads, from `upload_folder`.
      limits: limits of a request, as for `Guard`.
      hosts: as for `Guard`.
      token: as for `Guard`.
    """
    limits = limits or Limits()
    app = FastAPI(
        title="mcis",
        version=mcis.__version__,
        description=f"{mcis.__doc__}\n\n{mcis.NOTICE}",
        lifespan=_lifespan,
        docs_url=None,  # these pages load scripts from other servers
        redoc_url=None,
        exception_handlers=dict.fromkeys((HTTPException, RequestValidationError, ScanError, Exception), _error),
    )
    app.include_router(router)
    app.state.predictor, app.state.root, app.state.limits = predictor, root, limits
    return Guard(app, limits, hosts, token)


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    state = app.state
    readers, batches = WorkerPool(seconds=state.limits.reading), Batches(state.predictor)
    state.service = Service(readers, batches, state.limits, state.root)
    running = asyncio.create_task(batches.run())
    try:
        await asyncio.gather(*(batches.compile(size) for size in (1, BATCH)))
        yield
    finally:
        running.cancel()
        await readers.close()


async def _error(_: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return _json({"error": str(error.detail)}, error.status_code)
    if isinstance(error, ScanError):
        return _json({"error": str(error)}, 422)
    if isinstance(error, RequestValidationError):
        text = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:5])
        hint = " (send scans as form fields named files)" if "files" in text else ""
        return _json({"error": f"{text}{hint}"}, 422)
    return _json({"error": INTERNAL_ERROR}, 500)


class _Request(Request):
    def form(self, **_: Any) -> Any:  # Starlette's own limit is 1,000 files
        return super().form(max_files=self.app.state.limits.scans)


class _Route(APIRoute):
    """A route that rejects unknown query parameters, which are usually misspelt."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        known = {parameter.alias for parameter in self.dependant.query_params}

        async def checked(request: Request) -> Response:
            if unknown := sorted(set(request.query_params) - known):
                allowed = ", ".join(sorted(known)) or "none"
                raise HTTPException(422, f"unknown parameter {unknown[0][:100]!r}; allowed: {allowed}")
            return await handler(_Request(request.scope, request.receive))

        return checked


def _content(*types: str) -> dict[int | str, dict[str, Any]]:
    """The media types of a route's responses, for the API description."""
    return {200: {"content": {kind: {} for kind in types}}}


router = APIRouter(route_class=_Route)
Files = Annotated[list[UploadFile], File(description="scans: images, DICOM or NIfTI files, or zip archives of them")]


@router.get("/", include_in_schema=False)
async def page() -> Response:
    """The page."""
    return Response(_page_part("html").replace("__NOTICE__", html.escape(mcis.NOTICE)), media_type=PAGE_TYPES["html"])


@router.get("/page.{kind}", include_in_schema=False)
async def page_part(kind: Literal["js", "css"]) -> Response:
    """Script and style of the page."""
    return Response(read_part(f"shared.{kind}") + _page_part(kind), media_type=PAGE_TYPES[kind])


@functools.cache
def _page_part(kind: str) -> str:
    paths = (pathlib.Path(__file__).with_name(name) for name in PAGE_PARTS[kind])
    return "".join(path.read_text(encoding="utf-8") for path in paths)


@router.get("/v1/about")
async def about(request: Request) -> Response:
    """Version, weights, organs and their classes, limits and notice of this server."""
    predictor: Predictor = request.app.state.predictor
    return _json(
        {
            "mcis": mcis.__version__,
            "notice": mcis.NOTICE,
            "weights": plain(predictor.weights_record),
            "lacking": predictor.lacking,
            "asked": dataclasses.asdict(predictor.options),
            "operating_point": predictor.operating_point,
            "organs": {organ.name: {"scan": organ.scan, "classes": organ.classes} for organ in organs.ORGANS},
            "limits": dataclasses.asdict(request.app.state.limits),
        }
    )


@router.post("/v1/findings", responses=_content(*FORMATS.values()))
async def findings(
    request: Request,
    files: Files,
    format: Annotated[Literal["json", "ndjson", "csv"], Query(description="ndjson: streamed line by line")] = "json",
    pictures: Annotated[bool, Query(description="include the scan and its mask as PNG files in base64")] = False,
) -> Response:
    """Findings in the order of the scans, one per image, frame or slice; an unreadable scan has an `error`."""
    service: Service = request.app.state.service
    passed = collections.Counter[str]()

    async def rows() -> AsyncIterator[dict[str, Any]]:
        with service.folder() as folder:
            uploads = await service.save(files, folder, passed)
            async with contextlib.aclosing(service.results(uploads, request.is_disconnected, passed)) as results:
                async for one in results:
                    yield await asyncio.to_thread(_row, one.result, pictures)

    if format == "ndjson":
        lines = (json.dumps(row) + "\n" async for row in rows())
        return StreamingResponse(lines, media_type=FORMATS[format])
    values = [row async for row in rows()]
    if format == "csv":
        return Response(_csv(values), media_type=FORMATS[format])
    over = {"files": sum(passed.values()), "kinds": dict(passed), "text": search.describe(passed)}
    point = request.app.state.predictor.operating_point
    return _json(
        {
            "notice": mcis.NOTICE,
            "operating_point": point,
            "findings": values,
            "volumes": _volumes(values),
            "passed_over": over,
        }
    )


@router.post("/v1/volumes")
async def volumes(findings: Annotated[list[dict[str, Any]], Body(max_length=100_000)]) -> Response:
    """The volumes of findings, as in `volumes.jsonl`; `lines` and other line numbers count findings from 0."""
    try:
        return _json({"notice": mcis.NOTICE, "volumes": _volumes(findings)})
    except (KeyError, TypeError, ValueError, OverflowError):
        raise HTTPException(422, "not a list of findings as /v1/findings returns them") from None


@router.post("/v1/heat", responses=_content("image/png"), response_class=Response)
async def heat(
    request: Request,
    files: Files,
    frame: Annotated[int, Query(ge=0)] = 0,
    name: Annotated[str | None, Query(alias="scan", description="which of several: `scan` of its finding")] = None,
) -> Response:
    """Which parts of a scan determine its label: an occlusion map as a grey PNG file of the scan's size.

    A pixel is white where hiding it lowers the label's probability most, at least by MIN_DROP, and black where hiding
    it changes nothing. The header `largest-drop` has the largest drop. Takes seconds on a CPU.
    """
    service: Service = request.app.state.service
    with service.folder() as folder:
        uploads = await service.save(files, folder)
        if name is None and len(uploads) > 1:
            raise HTTPException(422, f"{len(uploads)} scans in the request; choose one of them with ?scan=")
        upload = next((one for one in uploads if name in (None, one.name)), None)
        if upload is None:
            raise HTTPException(422, f"none of the {len(uploads)} scans in the request is named {name!r:.300}")
        one = await service.result(upload, frame or None)
        if one.result.finding.error:
            raise HTTPException(422, one.result.finding.error)
        drop = await service.batches.heat(one.loaded, one.result.finding)
    if drop is None:
        raise HTTPException(422, "this scan has no label, so there is no saliency map")
    largest = max(float(drop.max()), 0.0)
    grey = np.clip(np.rint(255 * drop / max(largest, MIN_DROP)), 0, 255).astype(np.uint8)
    return Response(encode_png(grey), media_type="image/png", headers={"largest-drop": f"{largest:.4f}"})


@router.post(
    "/v1/segmentations", responses=_content(*SEGMENTATIONS.values(), "application/zip"), response_class=Response
)
async def segmentations(
    request: Request,
    files: Files,
    named: Annotated[bool, Query(description="include the patient's name and number")] = False,
) -> Response:
    """Lesion masks of volumes: DICOM SEG for DICOM, NIfTI for NIfTI; several files in a zip archive.

    `failed.txt` in the archive names the volumes without a file.
    """
    service: Service = request.app.state.service
    with service.folder() as folder:
        uploads = await service.save(files, folder)
        made, errors = await service.segmentations(uploads, folder, named, request.is_disconnected)
    if len(made) == 1 and not errors:
        ((suffix, content),) = made
        return Response(content, media_type=SEGMENTATIONS[suffix])
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for number, (suffix, content) in enumerate(made):
            archive.writestr(f"segmentation_{number:04}{suffix}", content)
        if errors:
            archive.writestr("failed.txt", "".join(f"{error}\n" for error in errors))
    return Response(packed.getvalue(), media_type="application/zip")


def _json(value: Any, status: int = 200) -> Response:
    """JSON in ASCII: a file name may contain characters that UTF-8 cannot encode."""
    headers = {"connection": "close"} if status in CLOSING else None
    return Response(json.dumps(value), status, headers, media_type="application/json")


def _row(result: Result, pictures: bool) -> dict[str, Any]:
    """The JSON of a finding, with its images on request."""
    row = plain(vars(result.finding))
    if pictures:
        image, mask, outer = result.image, result.mask, result.outer
        row["scan_png"] = None if image is None else _png(_reduced(image))
        row["mask_png"] = None if mask is None else _png(mask * np.uint8(255))
        row["outer_png"] = None if outer is None else _png(outer * np.uint8(255))
        row["size"] = None if image is None else [image.shape[1], image.shape[0]]
    return row


def _volumes(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The JSON of the volumes of findings in JSON."""
    return [plain(vars(volume)) for volume in summarise(from_json(Finding, json.dumps(row)) for row in rows)]


def _png(image: np.ndarray) -> str:
    return base64.b64encode(encode_png(image)).decode()


def _reduced(image: np.ndarray) -> np.ndarray:
    """An image of at most MAX_SIDE pixels per side; one channel if it is grey, as most scans are."""
    if (image[..., :1] == image).all():
        image = image[..., 0]
    height, width = image.shape[:2]
    if (scale := MAX_SIDE / max(height, width)) >= 1:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    """Findings as a table with a column per key; lists and objects are JSON in a cell."""
    out = io.StringIO()
    table = csv.writer(out)
    table.writerow(KEYS)
    table.writerows([_cell(row[key]) for key in KEYS] for row in rows)
    return out.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, dict | list):
        return json.dumps(value)
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"  # a spreadsheet would evaluate it as a formula
    return value
