"""The REST API: findings equal to those of `mcis predict`, limits, errors, and no files left behind."""

import base64
import csv
import gzip
import io
import json
import os
import pathlib
import re
import tempfile
import zipfile

import cv2
import nibabel
import numpy as np
import pydicom
import pytest
from starlette.testclient import TestClient

import mcis
from mcis.imaging import formats, image_files, phantom
from mcis.inference.predictor import Predictor
from mcis.report.finding import KEYS
from mcis.serve import app as web
from mcis.serve.middleware import INTERNAL_ERROR, Limits
from mcis.serve.service import upload_folder
from tests.fixtures import dicom_files
from tests.fixtures.bundles import numpy_predictor
from tests.fixtures.dicom_files import write, write_series

PICTURE = phantom.make_phantom("brain", 1, 5, size=(120, 160)).image
CANARY = "ZEPHYRINE"
LIMITS = Limits(size=1 << 22, scans=20)


def png(image=PICTURE):
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


class WithMaps(Predictor):
    """A predictor whose saliency map is the brightness of the scan."""

    def saliency_map(self, loaded, finding):
        return loaded.image[..., 0] / np.float32(1000)


@pytest.fixture(scope="module")
def predictor():
    return WithMaps(**vars(numpy_predictor(task="segment_brain")))


@pytest.fixture(scope="module")
def client(predictor):
    with upload_folder() as root, TestClient(web.make_app(predictor, root, LIMITS)) as client:
        client.uploads = pathlib.Path(root)
        yield client


def ask(client, *files, path="/v1/findings", **query):
    return client.post(path, files=[("files", one) for one in files], params=query or None)


def left(client):
    """Files of uploads that were not removed."""
    return [path for path in client.uploads.iterdir() if path.name != "lock"]


def test_findings_are_those_of_the_predictor_and_uploads_are_removed(client, predictor):
    answer = ask(client, ("a.png", png()), ("folder/b.png", b"none"))
    assert answer.status_code == 200 and answer.json()["notice"] == mcis.NOTICE
    assert answer.json()["operating_point"] is None  # one network, or weights without points
    first, second = answer.json()["findings"]
    expected = json.loads(predictor.predict(PICTURE).finding.to_json())
    assert first.pop("label_probs") == pytest.approx(expected.pop("label_probs"), abs=1e-5)
    assert answer.headers["cache-control"] == "no-store"
    assert first == expected | {"scan": "a.png", "diameter_px": pytest.approx(expected["diameter_px"])}
    assert second["scan"] == "folder/b.png" and "not a readable" in second["error"]
    assert left(client) == []


def test_pictures_are_the_scan_and_its_mask_as_png(client, predictor):
    (found,) = ask(client, ("a.png", png()), pictures=True).json()["findings"]
    result = predictor.predict(PICTURE)
    shown, mask = (
        cv2.imdecode(np.frombuffer(base64.b64decode(found[name]), np.uint8), cv2.IMREAD_UNCHANGED)
        for name in ("scan_png", "mask_png")
    )
    np.testing.assert_array_equal(shown, PICTURE[..., 0])
    np.testing.assert_array_equal(mask, result.mask * 255)
    outer = cv2.imdecode(np.frombuffer(base64.b64decode(found["outer_png"]), np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(outer, result.outer * 255)
    assert outer.sum() > mask.sum() and found["outer_area_px"] == result.outer.sum()
    assert found["size"] == [160, 120]


def test_a_large_image_is_reduced_but_its_mask_is_not(client):
    wide = cv2.resize(PICTURE, (web.MAX_SIDE + 400, 90))
    (found,) = ask(client, ("a.png", png(wide)), pictures=True).json()["findings"]
    shown, mask = (
        cv2.imdecode(np.frombuffer(base64.b64decode(found[name]), np.uint8), cv2.IMREAD_UNCHANGED).shape
        for name in ("scan_png", "mask_png")
    )
    assert found["size"] == [web.MAX_SIDE + 400, 90] and mask == (90, web.MAX_SIDE + 400)
    assert shown == (round(90 * web.MAX_SIDE / (web.MAX_SIDE + 400)), web.MAX_SIDE)


def test_ndjson_and_csv_contain_the_same_findings(client):
    files = [("a.png", png()), ("=1+1.png", b"none"), ("c.png", png())]
    findings = ask(client, *files).json()["findings"]
    lines = ask(client, *files, format="ndjson")
    assert lines.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line) for line in lines.text.splitlines()] == findings
    table = list(csv.DictReader(io.StringIO(ask(client, *files, format="csv").text)))
    assert list(table[0]) == list(KEYS) and len(table) == 3
    assert table[1]["scan"] == "'=1+1.png", "a spreadsheet would evaluate it"
    assert json.loads(table[0]["label_probs"]) == findings[0]["label_probs"] and table[0]["error"] == ""


def test_archives_and_files_with_several_pages(client, tmp_path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("../a.png", png())
        archive.writestr("b.txt", "none")
    cv2.imwritemulti(str(tmp_path / "p.tiff"), [PICTURE, PICTURE // 2])
    answer = ask(
        client,
        ("x.zip", packed.getvalue()),
        ("p.tiff", (tmp_path / "p.tiff").read_bytes()),
        ("e.zip", b"PK\x05\x06" + bytes(18)),
    )
    found = [(one["scan"], one["frame"], one["error"]) for one in answer.json()["findings"]]
    assert found == [
        ("x.zip/../a.png", None, None),
        ("p.tiff", 0, None),
        ("p.tiff", 1, None),
        ("e.zip", None, "the archive contains no scans"),
    ]
    assert left(client) == []


def test_a_saliency_map_is_scaled_and_its_header_has_the_largest_drop(client, predictor):
    answer = ask(client, ("a.png", png()), path="/v1/heat")
    loaded = formats.prepare("a", None, lambda: image_files.from_array(PICTURE))
    expected = predictor.saliency_map(loaded, predictor.predict(PICTURE).finding)
    largest = max(float(expected.max()), 0)
    assert float(answer.headers["largest-drop"]) == pytest.approx(largest, abs=1e-3)
    grey = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert grey.shape == (120, 160)
    np.testing.assert_allclose(grey, np.clip(255 * expected / max(largest, web.MIN_DROP), 0, 255), atol=2)


def test_a_saliency_map_is_of_the_requested_page(client, tmp_path):
    pages = [PICTURE, np.ascontiguousarray(PICTURE[::-1, ::-1])]
    cv2.imwritemulti(str(tmp_path / "p.tiff"), [page[..., ::-1] for page in pages])
    file = ("p.tiff", (tmp_path / "p.tiff").read_bytes())
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.png", png())
        archive.writestr("in/p.tiff", file[1])
    maps = [ask(client, file, path="/v1/heat", frame=frame).content for frame in (0, 1)]
    within = ask(client, ("x.zip", packed.getvalue()), path="/v1/heat", frame=1, scan="x.zip/in/p.tiff")
    assert within.content == maps[1], within.text
    alone = [ask(client, ("a.png", png(page)), path="/v1/heat").content for page in pages]
    assert maps == alone and maps[0] != maps[1]


def test_a_series_gives_one_volume_and_one_segmentation(client, predictor, tmp_path):
    paths = write_series(tmp_path, [PICTURE[..., 0]] * 3, spacing=(0.5, 0.25), step=2.0, order=(1, 2, 0))
    files = [(path.name, path.read_bytes()) for path in sorted(paths)]
    values = ask(client, *files, ("a.png", png())).json()
    (volume,) = values["volumes"]
    mask = predictor.predict(paths[0]).mask
    assert volume["slices"] == 3 and volume["spacing_mm"] == pytest.approx([2.0, 0.5, 0.25])
    assert volume["lesion_volume_mm3"] == pytest.approx(3 * 2 * 0.5 * 0.25 * mask.sum())
    assert client.post("/v1/volumes", json=values["findings"]).json()["volumes"] == [volume]
    answer = ask(client, *files, ("a.png", png()), path="/v1/segmentations")
    assert answer.headers["content-type"] == "application/dicom", answer.text
    found = pydicom.dcmread(io.BytesIO(answer.content))
    assert found.Modality == "SEG" and found.pixel_array.shape == (3, 120, 160) and found.PatientName == ""
    for frame in found.pixel_array:
        np.testing.assert_array_equal(frame, mask)
    named = pydicom.dcmread(io.BytesIO(ask(client, *files, path="/v1/segmentations", named=True).content))
    assert named.PatientName == dicom_files.CANARY
    for name in ("x.dcm", "y.dcm"):  # of different studies
        write(
            tmp_path / name,
            PICTURE[..., 0],
            SeriesInstanceUID="1.2.3",
            ImagePositionPatient=[0, 0, len(files)],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
        )
        files.append((name, (tmp_path / name).read_bytes()))
    answer = ask(client, *files[3:], path="/v1/segmentations")
    assert answer.status_code == 422 and answer.json()["error"].startswith("y.dcm: of another series than x.dcm")
    packed = zipfile.ZipFile(
        io.BytesIO(ask(client, *files, path="/v1/segmentations").content)
    )  # one volume succeeds, one fails
    assert packed.namelist() == ["segmentation_0000.dcm", "failed.txt"] and b"another series" in packed.read(
        "failed.txt"
    )
    assert not re.search("zephyr", client.get("/v1/about").text + json.dumps(values), re.I)


def test_a_nifti_volume_gives_a_nifti_segmentation(client, tmp_path):
    nibabel.Nifti1Image(np.repeat(PICTURE[..., :1], 4, axis=2), np.diag([1.0, 1.0, 3.0, 1.0])).to_filename(
        tmp_path / "v.nii.gz"
    )
    data = (tmp_path / "v.nii.gz").read_bytes()
    values = ask(client, ("v.nii.gz", data)).json()
    assert len(values["findings"]) == 4 and values["volumes"][0]["slices"] == 4
    answer = ask(client, ("v.nii.gz", data), path="/v1/segmentations")
    assert values["volumes"][0]["lesion_slices"]
    assert nibabel.Nifti1Image.from_bytes(gzip.decompress(answer.content)).shape == (120, 160, 4)


@pytest.mark.parametrize(
    "rows", [{}, [1], [{}], [{"scan": 1, "series": []}], [{"scan": "a", "series": "b", "position_mm": "x"}]]
)
def test_values_that_are_not_findings_are_rejected(client, rows):
    answer = client.post("/v1/volumes", json=rows)
    assert answer.status_code == 422 and answer.json()["error"]


@pytest.mark.parametrize(
    ("path", "files", "status", "words"),
    [
        ("/v1/heat", [("a.png", b"none")], 422, "not a readable"),
        ("/v1/heat", [("a.png", png()), ("b.png", png())], 422, "2 scans in the request; choose one of them"),
        (
            "/v1/heat?scan=c.png",
            [("a.png", png()), ("b.png", png())],
            422,
            "none of the 2 scans in the request is named 'c.png'",
        ),
        ("/v1/segmentations", [("a.png", b"none")], 422, "not a readable"),
        ("/v1/findings?format=xml", [("a.png", png())], 422, "format"),
        ("/v1/heat?frame=-1", [("a.png", png())], 422, "frame"),
        (
            "/v1/findings?picture=true",
            [("a.png", png())],
            422,
            "unknown parameter 'picture'; allowed: format, pictures",
        ),
        ("/v1/findings", [], 422, "form fields named files"),
        ("/v1/nowhere", [("a.png", png())], 404, "Not Found"),
        ("/v1/findings", [("a.png", bytes(5 << 20))], 413, "larger than 4 MiB"),
    ],
)
def test_invalid_requests_have_a_status_and_a_reason(client, path, files, status, words):
    answer = ask(client, *files, path=path)
    assert answer.status_code == status and words in answer.json()["error"]


def test_scans_beyond_the_limit_are_errors(client, tmp_path):
    cv2.imwritemulti(str(tmp_path / "p.tiff"), [PICTURE[:20, :20]] * 21)
    (found,) = ask(client, ("p.tiff", (tmp_path / "p.tiff").read_bytes())).json()["findings"]
    assert found["error"] == "21 frames; the limit is 20 per request"


def test_the_size_limit_holds_for_a_body_without_a_length(client):
    def pieces():
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        for _ in range(10):
            yield bytes(1 << 19)

    answer = client.post("/v1/findings", content=pieces(), headers={"content-type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 413


def test_the_page_loads_nothing_from_other_servers(client):
    page = client.get("/")
    assert (
        mcis.NOTICE in page.text
        and page.headers["notice"] == mcis.NOTICE
        and "default-src 'none'" in page.headers["content-security-policy"]
    )
    for part in ("/page.js", "/page.css"):
        assert client.get(part).status_code == 200
        assert "http://" not in client.get(part).text and "https://" not in client.get(part).text
    assert client.get("/page.html").json()["error"] and client.get("/docs").status_code == 404
    about = client.get("/v1/about").json()
    assert about["operating_point"] is None and about["asked"]["operating_point"] == "balanced"
    assert about["organs"]["breast"]["classes"] == ["normal", "benign", "malignant"] and about["limits"]["scans"] == 20
    assert {f"/v1/{name}" for name in ("findings", "heat", "segmentations", "volumes")} <= set(
        client.get("/openapi.json").json()["paths"]
    )


def test_an_internal_error_is_json_without_details(client, monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError(f"{CANARY}.dcm")

    monkeypatch.setattr(web, "_row", broken)
    answer = ask(client, ("a.png", png()))
    assert answer.status_code == 500 and answer.json() == {"error": INTERNAL_ERROR}
    assert CANARY not in capsys.readouterr().err


def test_more_than_a_thousand_files_are_accepted(predictor):
    app = web.make_app(predictor, tempfile.gettempdir(), Limits(scans=2000))
    with TestClient(app) as client:
        answer = ask(client, *((f"{k}.png", b"none") for k in range(1001)))
        more = ask(client, *((f"{k}.png", b"none") for k in range(2001)))
    assert len(answer.json()["findings"]) == 1001
    assert more.status_code == 400 and "2000" in more.json()["error"]


def test_uploads_of_killed_servers_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("pipe", "link"):  # other users may have put them there
        (tmp_path / f"mcis-serve-{name}").mkdir()
    os.mkfifo(tmp_path / "mcis-serve-pipe" / "lock")
    (tmp_path / "mcis-serve-link" / "lock").symlink_to(__file__)
    dead = tmp_path / "mcis-serve-dead"
    dead.mkdir()
    (dead / "lock").touch()
    (dead / "000000.dcm").write_bytes(b"of a patient")
    with upload_folder() as alive, upload_folder() as other:
        assert not dead.exists() and pathlib.Path(alive).exists() and pathlib.Path(other).exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mcis-serve-link", "mcis-serve-pipe"]


def test_objects_that_are_no_scans_are_counted_and_alone_are_an_error(client, tmp_path):
    write(tmp_path / "seg.dcm", np.zeros((3, 40, 40), np.uint8), NumberOfFrames=3, Modality="SEG")
    seg = (tmp_path / "seg.dcm").read_bytes()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in (("a.png", png()), ("seg", seg), ("notes.txt", b"x")):
            archive.writestr(name, data)
    answer = ask(client, ("b.png", png()), ("seg.dcm", seg), ("x.zip", packed.getvalue())).json()
    assert [(one["scan"], one["error"]) for one in answer["findings"]] == [("b.png", None), ("x.zip/a.png", None)]
    assert answer["passed_over"] == {
        "files": 3,
        "kinds": {"DICOM SEG": 2, ".txt": 1},
        "text": "Passed over 3 files that hold no scan: 1 .txt, 2 DICOM objects that are no scans (SEG)",
    }
    (alone,) = ask(client, ("seg.dcm", seg)).json()["findings"]
    assert "of modality SEG: a segmentation" in alone["error"]
    assert left(client) == []


def test_the_two_files_of_a_nifti_pair_are_one_volume(client, tmp_path):
    volume = np.stack([PICTURE[..., 0]] * 3, -1).astype(np.int16)
    nibabel.save(nibabel.Nifti1Pair(volume, np.diag([1, 1, 4, 1])), tmp_path / "v.img")
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([1, 1, 4, 1])), tmp_path / "v.nii")
    pair = [(f"study/v{end}", (tmp_path / f"v{end}").read_bytes()) for end in (".img", ".hdr")]
    found = ask(client, *pair, pictures=True).json()
    assert [(one["scan"], one["frame"], one["error"]) for one in found["findings"]] == [
        ("study/v.hdr", frame, None) for frame in range(3)
    ]
    whole = ask(client, ("v.nii", (tmp_path / "v.nii").read_bytes()), pictures=True).json()
    assert [one["scan_png"] for one in found["findings"]] == [one["scan_png"] for one in whole["findings"]]
    assert found["passed_over"]["files"] == 0
    (alone,) = ask(client, pair[1]).json()["findings"]
    assert alone["error"] == "the header of a pair, but no .img file of the same name is beside it, with the voxels"
    assert left(client) == []
