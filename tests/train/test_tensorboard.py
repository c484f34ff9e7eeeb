"""What is written for TensorBoard, read the way TensorBoard reads it."""

import json
import struct

import cv2
import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from mcis.checkpoints import bundle
from mcis.cli import train
from mcis.imaging.overlay import overlay
from mcis.tasks.apply import make_expert
from mcis.train import run_record, tensorboard
from tests.fixtures.runs import tiny_network
from tests.fixtures.tasks import small_task

PEAK = 8e-4
OPTIONS = ["--sources=phantom", "--model=plain", "--size=32", "--features=4", "--epochs=2", "--batch_size=8"]
OPTIONS += [f"--learning_rate={PEAK}"]


def events(folder):
    """Every event of a folder's files, in order: each record is its length, a checksum, itself, a checksum."""
    for file in sorted(folder.iterdir(), key=lambda path: int(path.suffix[1:])):  # by time
        content, at = file.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            yield Event.FromString(content[at + 12 : at + 12 + length])
            at += 12 + length + 4


def values(folder):
    """(tag, step) -> a number or an image; what is written again replaces the older one, as in TensorBoard."""
    found = {}
    for event in events(folder):
        if event.session_log.status == event.session_log.START:
            found = {key: value for key, value in found.items() if key[1] < event.step}
        for value in event.summary.value:
            image = value.image.encoded_image_string
            shown = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR) if image else value.simple_value
            found[value.tag, event.step] = shown
    return found


@pytest.fixture(scope="module")
def run(phantom_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    where = [f"--data_dir={phantom_dir}", f"--runs_dir={folder}"]
    with tiny_network():
        assert train.main(["--task=segment_brain", *OPTIONS, *where]) == 0
    return folder / "segment_brain"


def test_every_metric_of_the_log_is_a_curve_and_so_is_the_learning_rate(run):
    found = values(run / tensorboard.FOLDER)
    for line in map(json.loads, (run / run_record.LOG).read_text().splitlines()):
        for split in ("train", "validation"):
            for name, value in line[split].items():
                assert found[f"{split}/{name}", line["step"]] == pytest.approx(value, rel=1e-6)
        assert ("train/gradient_norm", line["step"]) in found
        rate = found["learning_rate", line["step"]]
        assert 0 < rate < PEAK if line["epoch"] == 1 else rate == pytest.approx(0)


def test_a_segmenter_is_scored_on_its_own_metrics(run, tiny):
    lines = [json.loads(line) for line in (run / run_record.LOG).read_text().splitlines()]
    weights = bundle.load_weights(run)
    best = run_record.best_epoch(weights.task.select, lines)
    assert weights.manifest["validation"] == best["validation"] and weights.task.name == "segment_brain"
    assert {"accuracy", "dice_lesion"} <= best["validation"].keys()
    for line in lines:
        assert all(np.isfinite(value) for value in line["validation"].values())


def test_examples_show_the_true_mask_on_the_left_and_the_predicted_one_on_the_right(run, scans, tiny):
    found = values(run / tensorboard.FOLDER)
    last = max(step for _, step in found)
    shown = [image for (tag, step), image in found.items() if tag.startswith("examples/") and step == last]
    lesions = [i for i in np.flatnonzero(scans[1].organ == "brain") if scans[1].area[i]]
    assert 0 < len(shown) == min(tensorboard.EXAMPLES, len(lesions))
    weights = bundle.load_weights(run)  # of the last epoch
    expert = jax.jit(make_expert(weights.task))
    for example, row in zip(shown, lesions, strict=False):
        image, true = (x[0] for x in scans[1].pixels.read(np.array([row])))
        mask = np.asarray(expert(weights.variables, image[None]).mask)[0, ..., 0] > 0.5
        pair = [overlay(image, one) for one in (true[..., 0], mask.astype(np.uint8))]
        np.testing.assert_array_equal(example[..., ::-1], np.concatenate(pair, 1))


def test_an_epoch_that_is_trained_again_replaces_itself_and_later_ones(scans, tmp_path):
    task = small_task("classify_brain", model="cnn", epochs=4)
    for session in (((1, 0.9), (2, 0.8), (3, 0.7)), ((2, 0.6),)):  # within one second
        write = tensorboard.make_summary_writer(tmp_path, task, scans[1])
        for epoch, loss in session:
            line = {"epoch": epoch, "step": 10 * epoch, "train": {"loss": loss}, "validation": {"accuracy": 0.5}}
            write(line, {})
    assert len(list((tmp_path / tensorboard.FOLDER).iterdir())) == 4
    found = values(tmp_path / tensorboard.FOLDER)
    assert {key: value for key, value in found.items() if key[0] == "train/loss"} == {
        ("train/loss", 10): pytest.approx(0.9),
        ("train/loss", 20): pytest.approx(0.6),
    }
    assert not any(tag.startswith("examples/") for tag, _ in found)
