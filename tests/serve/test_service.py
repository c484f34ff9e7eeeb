"""The service between routes and predictor: shared batches, disconnected clients, segmentations, names."""

import asyncio
import dataclasses
import io

import pydicom
import pytest

from mcis.imaging.formats import LoadedScan
from mcis.imaging.pool import WorkerPool
from mcis.serve.middleware import Limits, Rejected
from mcis.serve.service import Batches, Service, Upload, display_name
from tests.fixtures.bundles import numpy_predictor
from tests.fixtures.dicom_files import write_series
from tests.serve.test_app import LIMITS, PICTURE


def test_masks_of_another_organ_are_not_part_of_a_segmentation(tmp_path):
    predictor = numpy_predictor(task="segment_brain")
    paths = write_series(tmp_path, [PICTURE[..., 0]] * 3, step=2.0)
    uploads = [Upload(path.name, str(path)) for path in paths]

    class Mixed:
        def results(self, scans, size):
            for one in predictor.results(scans, size):
                organ = "breast" if one.finding.scan == uploads[1].name else "brain"
                yield dataclasses.replace(one, finding=dataclasses.replace(one.finding, organ=organ))

    async def connected():
        return False

    async def run():
        batches, readers = Batches(Mixed()), WorkerPool(1)
        running = asyncio.create_task(batches.run())
        try:
            return await Service(readers, batches, LIMITS, "").segmentations(uploads, str(tmp_path), False, connected)
        finally:
            running.cancel()
            await readers.close()

    ((suffix, data),), failed = asyncio.run(run())
    found = pydicom.dcmread(io.BytesIO(data))
    drawn = {
        tuple(map(float, group.PlanePositionSequence[0].ImagePositionPatient)): bool(frame.any())
        for group, frame in zip(found.PerFrameFunctionalGroupsSequence, found.pixel_array, strict=True)
    }
    assert suffix == ".dcm" and failed == []
    places = [tuple(map(float, pydicom.dcmread(path).ImagePositionPatient)) for path in paths]
    assert [drawn[place] for place in places] == [True, False, True]


def test_the_rest_of_a_request_is_skipped_when_its_client_disconnects():
    read = []

    class Reading(WorkerPool):
        async def read(self, path, frame):
            read.append(path)
            return LoadedScan(path, frame, error="nothing")

    async def disconnected():
        return len(read) >= 3

    async def run():
        batches = Batches(numpy_predictor())
        running = asyncio.create_task(batches.run())
        uploads = [Upload(f"{k}.png", "/nowhere") for k in range(100)]
        service = Service(Reading(), batches, Limits(), "")
        with pytest.raises(Rejected):
            async for _ in service.results(uploads, disconnected):
                pass
        await service.readers.close()
        running.cancel()

    asyncio.run(run())
    assert len(read) < 20


def test_an_error_in_a_batch_is_raised_only_to_the_requests_in_it():
    class Breaking:
        def results(self, scans, size):
            if any(scan == "bad" for scan in scans):
                raise RuntimeError
            return [f"result of {scan}" for scan in scans]

    async def run():
        batches = Batches(Breaking())
        running = asyncio.create_task(batches.run())
        first = await asyncio.gather(batches.predict("bad"), batches.predict("bad"), return_exceptions=True)
        second = await asyncio.gather(*(batches.predict(k) for k in range(20)))
        running.cancel()
        return first, second

    first, second = asyncio.run(run())
    assert [type(error) for error in first] == [RuntimeError] * 2
    assert second == [f"result of {k}" for k in range(20)]


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("a.png", "a.png"),
        (None, "upload"),
        ("", "upload"),
        ("a\nb\x1b[31m", "a\ufffdb\ufffd[31m"),
        ("x" * 400, "x" * 300),
    ],
)
def test_names_are_printable_and_not_too_long(name, label):
    assert display_name(name) == label
