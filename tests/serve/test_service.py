"""Between the server's routes and its predictor: uploads read, answered in batches, and their masks gathered."""

import asyncio
import dataclasses
import io

import pydicom
import pytest

from mcis.imaging.formats import LoadedScan
from mcis.imaging.pool import WorkerPool
from mcis.serve.middleware import Limits, Refused
from mcis.serve.service import Asking, Batches, Upload, label_of
from tests.fixtures.dicom_files import write_series
from tests.serve.test_app import LIMITS, PICTURE, predictor  # noqa: F401


def test_a_mask_of_another_organ_is_no_part_of_a_volumes_segmentation(predictor, tmp_path):  # noqa: F811
    paths = write_series(tmp_path, [PICTURE[..., 0]] * 3, step=2.0)
    uploads = [Upload(path.name, str(path)) for path in paths]

    class Mixed:
        def results(self, scans, size):
            for one in predictor.results(scans, size):
                organ = "breast" if one.finding.scan == uploads[1].name else "brain"
                yield dataclasses.replace(one, finding=dataclasses.replace(one.finding, organ=organ))

    async def here():
        return False

    async def asked():
        batches, readers = Batches(Mixed()), WorkerPool(1)
        running = asyncio.create_task(batches.run())
        try:
            return await Asking(readers, batches, LIMITS, "").segmentations(uploads, str(tmp_path), False, here)
        finally:
            running.cancel()
            await readers.close()

    ((suffix, data),), failed = asyncio.run(asked())
    found = pydicom.dcmread(io.BytesIO(data))
    drawn = {
        tuple(map(float, group.PlanePositionSequence[0].ImagePositionPatient)): bool(frame.any())
        for group, frame in zip(found.PerFrameFunctionalGroupsSequence, found.pixel_array, strict=True)
    }
    assert suffix == ".dcm" and failed == []
    places = [tuple(map(float, pydicom.dcmread(path).ImagePositionPatient)) for path in paths]
    assert [drawn[place] for place in places] == [True, False, True]


def test_who_leaves_is_not_answered_to_the_end(predictor):  # noqa: F811
    """Of a request whose answer comes as a whole."""
    read = []

    class Reading(WorkerPool):
        async def read(self, path, frame):
            read.append(path)
            return LoadedScan(path, frame, error="nothing")

    async def gone():
        return len(read) >= 3

    async def asked():
        batches = Batches(predictor)
        running = asyncio.create_task(batches.run())
        uploads = [Upload(f"{k}.png", "/nowhere") for k in range(100)]
        asking = Asking(Reading(), batches, Limits(), "")
        with pytest.raises(Refused):
            async for _ in asking.results(uploads, gone):
                pass
        await asking.readers.close()
        running.cancel()

    asyncio.run(asked())
    assert len(read) < 20


def test_a_batch_that_breaks_is_an_error_of_those_who_asked_and_of_nobody_else():
    class Breaking:
        def results(self, scans, size):
            if any(scan == "bad" for scan in scans):
                raise RuntimeError
            return [f"result of {scan}" for scan in scans]

    async def asked():
        batches = Batches(Breaking())
        running = asyncio.create_task(batches.run())
        first = await asyncio.gather(batches.ask("bad"), batches.ask("bad"), return_exceptions=True)
        second = await asyncio.gather(*(batches.ask(k) for k in range(20)))
        running.cancel()
        return first, second

    first, second = asyncio.run(asked())
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
    assert label_of(name) == label
