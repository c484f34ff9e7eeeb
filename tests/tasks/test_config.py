import dataclasses
import json

import numpy as np
import pytest
import tyro

from mcis.cli import train
from mcis.models import MODELS
from mcis.ops.augment import Augmentation
from mcis.ops.crf import CRF
from mcis.ops.metrics import label_scores, mask_scores
from mcis.organs import ORGAN_NAMES, ORGANS, UNKNOWN, UNSUPPORTED, organ_named
from mcis.tasks.config import LAST, Names, Pretraining, Task
from mcis.tasks.table import TASKS, task_from_json, task_named, task_to_json
from tests.fixtures.tasks import small_task

EVERY = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def test_there_are_a_router_and_two_tasks_for_each_organ():
    assert set(TASKS) == {"route"} | {f"{verb}_{organ}" for verb in ("classify", "segment") for organ in ORGAN_NAMES}
    assert all(task.name == name for name, task in TASKS.items())


@EVERY
def test_each_task_has_its_organs_classes(task):
    assert dataclasses.replace(task.check(), features=task.features) == task
    if task.name == "route":
        assert task.organ is None
        assert task.classes == (*ORGAN_NAMES, UNSUPPORTED)
    else:
        assert task.classes == organ_named(task.organ).classes
    assert task.segments == task.name.startswith("segment_")
    assert set(task.sources) <= set(TASKS["route"].sources)  # the router sees all that an expert sees
    found = set(label_scores(np.array([[0.5, 0.5]]), np.array([0])))
    found |= set(mask_scores(*np.array([[1, 0], [1, 0], [1, 0]]), np.array([0, 1])))
    assert task.select in (LAST, *task.metrics)
    assert set(task.metrics) <= found


@EVERY
def test_each_tasks_numbers_are_in_range(task):
    assert 0 < task.learning_rate < 1
    assert 0 <= task.ema < 1
    assert 0 <= task.warmup < 1
    assert 0 <= task.label_smoothing < 1
    assert 0 <= task.lesion_share <= 1
    assert task.clip > 0
    assert task.label_loss or (task.segments and task.mask_loss)


@EVERY
def test_each_network_has_the_tasks_width_and_axis(task):
    model = task.make_model(axis_name="data")
    assert type(model) is type(MODELS[task.model])
    assert model.features == task.width == task.check().features
    assert model.axis_name == "data"
    assert model.classes == len(task.classes)
    assert task.size % model.stride == 0


def test_another_network_has_its_own_width_unless_one_is_given():
    for name in ("route", "segment_brain"):
        task = TASKS[name]
        other = "resnet18" if not task.segments else "light"
        for words, width in (
            ([], task.width),
            ([f"--model={task.model}"], task.width),
            ([f"--model={other}"], MODELS[other].features),
            (["--model", other, "--features=24"], 24),
            (["--features=24"], 24),
        ):
            assert train.parse([f"--task={name}", *words])[1].features == width


def test_the_rate_of_an_encoder_is_that_of_the_tasks_own_network_alone(monkeypatch):
    monkeypatch.setitem(
        TASKS, "route", dataclasses.replace(TASKS["route"], model="efficientnet_lite0", encoder_rate=0.3, epochs=2)
    )
    for words, rate in (
        (["--features=8"], 0.3),
        (["--model=cnn"], 1.0),
        (["--model=resnet18"], 1.0),
        (["--model=resnet18", "--encoder_rate=0.5"], 0.5),
    ):
        assert train.parse(["--task=route", *words])[1].encoder_rate == rate
    with pytest.raises(ValueError, match=r"encoder_rate=0\.5: cnn has no encoder"):
        train.parse(["--task=route", "--model=cnn", "--encoder_rate=0.5"])


def test_a_segmenter_without_label_loss_has_no_label_head_and_a_classifier_always_has_one():
    segment = small_task("segment_brain", model="light", label_loss=0.0)
    assert segment.make_model().classes == 0
    classify = small_task("classify_brain", model="cnn", label_loss=0.0)
    assert classify.make_model().classes == 2


def test_targets_by_hand():
    route, brain = TASKS["route"], TASKS["classify_brain"]
    assert [route.label_of(organ, UNKNOWN) for organ in ORGAN_NAMES] == list(range(len(ORGANS)))
    assert [brain.label_of("brain", label) for label in (0, 1, UNKNOWN)] == [0, 1, UNKNOWN]
    assert brain.label_of("breast", 1) == UNKNOWN
    assert TASKS["segment_breast"].label_of("breast", 2) == 2


# Names and JSON


@EVERY
def test_json_round_trip(task):
    text = json.dumps(task_to_json(task))
    assert task_from_json(json.loads(text)) == task.check()
    changed = dataclasses.replace(task, sources=("phantom",), augmentation=Augmentation(flip=0.0), epochs=3)
    again = task_from_json(json.loads(json.dumps(task_to_json(changed))))
    assert again == changed.check()
    assert isinstance(again.sources, tuple)
    assert isinstance(again.augmentation, Augmentation)


def test_json_with_unknown_missing_or_mistyped_fields_names_them():
    good = task_to_json(TASKS["route"])
    with pytest.raises(ValueError, match=r"unknown.*'colour'.*missing.*'size'"):
        task_from_json({k: v for k, v in good.items() if k != "size"} | {"colour": 1})
    with pytest.raises(ValueError, match=r"augmentation.*unknown.*'swirl'"):
        task_from_json(good | {"augmentation": good["augmentation"] | {"swirl": 1.0}})
    with pytest.raises(ValueError, match="resnet"):
        task_from_json(good | {"model": "resnet"})
    with pytest.raises(ValueError, match=r"There is no task '../../home'\. The tasks are route, "):
        task_from_json(good | {"name": "../../home"})
    with pytest.raises(ValueError, match=r"size='128'.*int"):
        task_from_json(good | {"size": "128"})
    with pytest.raises(ValueError, match=r"grey=True.*float"):
        task_from_json(good | {"augmentation": good["augmentation"] | {"grey": True}})
    with pytest.raises(ValueError, match=r"crf=\[5\]: must be an object"):
        task_from_json(good | {"crf": [5]})


def test_json_without_a_newer_field_gets_its_default():
    route, segment = small_task("route", model="cnn"), small_task("segment_brain", model="light", each_channel=True)
    newer = ("even_sources", "even_classes", "max_repeats", "crf", "denoise", "edges", "start", "inside")
    parts = ("flip", "sector", "tint", "curve")
    for task in (route, segment):
        older = {k: v for k, v in task_to_json(task).items() if k not in newer}
        older["augmentation"] = {k: v for k, v in older["augmentation"].items() if k not in parts}
        found = task_from_json(older)
        assert found == task.check()
        assert not found.crf.steps and not found.start.epochs
        assert not found.inside  # all pixels count, as before
        assert [getattr(found.augmentation, name) for name in parts] == [0.5, 0, 0, 0]


def test_json_of_a_row_without_its_newer_fields_is_not_that_row():
    """What an older version trained is not taken for what the row says today."""
    row = task_to_json(TASKS["segment_breast"])
    older = {k: v for k, v in row.items() if k not in ("inside", "max_repeats")}
    augmentation = {k: v for k, v in row["augmentation"].items() if k not in ("sector", "tint", "curve")}
    found = task_from_json(older | {"augmentation": augmentation})
    before = {"inside": False, "max_repeats": 0.0, "augmentation": Augmentation(**augmentation)}
    assert found == dataclasses.replace(TASKS["segment_breast"], **before).check()
    assert (found.augmentation.sector, found.augmentation.tint, found.augmentation.curve) == (0.0, 0.0, 0.0)


def test_an_unknown_task_lists_the_tasks():
    assert task_named("route") is TASKS["route"]
    with pytest.raises(ValueError, match=f"'segment_liver'.*{', '.join(TASKS)}"):
        task_named("segment_liver")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "resnet"}, f"'resnet'.*{', '.join(MODELS)}"),
        ({"model": "cnn"}, "segment_brain.*segments.*light"),
        ({"sources": ()}, "segment_brain.*--sources"),
        ({"features": -1}, "features=-1"),
        ({"size": -32}, "size=-32"),
        ({"size": 100}, "size=100.*unet_folded.*multiples of 32"),
        ({"size": 1 << 20}, "size=1048576.*at most 1024"),
        ({"select": "balance"}, "'balance'.*balanced_accuracy.*dice_lesion"),
        ({"select": "accuracy", "label_loss": 0.0}, "'accuracy'.*dice_lesion"),
        ({"select": "false_masks"}, "'false_masks'"),  # lower is better
        ({"mask_loss": 0.0}, "mask_loss=0.*nothing to learn"),
        ({"learning_rate": 0.0}, "learning_rate=0.0.*above 0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"clip": -1.0}, "clip=-1.0"),
        ({"lesion_share": 1.5}, r"lesion_share=1.5.*\[0, 1\]"),
        ({"max_repeats": -1.0}, r"max_repeats=-1.0.*at least 0"),
        ({"weight_decay": float("inf")}, "weight_decay=inf"),
        ({"augmentation": Augmentation(grey=2.0)}, r"augmentation.grey=2.0.*\[0, 1\]"),
        ({"augmentation": Augmentation(rotate=-5.0)}, "augmentation.rotate=-5.0"),
        ({"augmentation": Augmentation(sector=1.5)}, r"augmentation.sector=1.5.*\[0, 1\]"),
        ({"augmentation": Augmentation(curve=1.5)}, r"augmentation.curve=1.5.*\[0, 1\]"),
        ({"augmentation": Augmentation(tint=-1.0)}, "augmentation.tint=-1.0"),
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"denoise": "wavelet"}, "denoise='wavelet'.*none, gaussian, median"),
        ({"edges": "laplace"}, "edges='laplace'.*none, sobel, canny"),
        ({"start": Pretraining(epochs=1, learning_rate=0.0)}, "start.learning_rate=0.0.*above 0"),
        ({"start": Pretraining(size=64)}, "start.size=64: a pretraining stage needs start.epochs"),
        ({"start": Pretraining(epochs=1, size=100)}, "start.size=100: .* takes multiples of"),
        ({"crf": CRF(sigma=0.0)}, "crf.sigma=0.0.*above 0"),
        ({"crf": CRF(weight=-1.0)}, "crf.weight=-1.0"),
        ({"crf": CRF(steps=101)}, "crf.steps=101: at most 100"),
        ({"schedule": "linear"}, "schedule='linear'.*cosine, polynomial"),
        ({"precision": "float16"}, "precision='float16'.*float32, bfloat16"),
        ({"batch_size": 8, "accumulate": 3}, "accumulate=3: it must divide batch_size=8"),
        ({"accumulate": 0}, "accumulate=0"),
        ({"patience": 3}, "patience=3: select='last'"),
        ({"auxiliary_loss": -0.5}, "auxiliary_loss=-0.5"),
    ],
)
def test_check_names_the_wrong_field(change, message):
    with pytest.raises(ValueError, match=message):
        small_task("segment_brain", **{"model": "unet_folded"} | change).check()


def test_a_classifier_has_no_mask_to_refine_or_to_supervise():
    with pytest.raises(ValueError, match=r"crf\.steps=5: route has no mask"):
        small_task("route", model="cnn", crf=CRF()).check()
    with pytest.raises(ValueError, match=r"encoder_rate=0\.0: cnn_attention has no encoder; resnet18, .* have"):
        small_task("classify_breast", model="cnn_attention", encoder_rate=0.0).check()
    with pytest.raises(ValueError, match=r"auxiliary_loss=0\.5: cnn has no auxiliary mask; light, unet.*have"):
        small_task("route", model="cnn", auxiliary_loss=0.5).check()


@pytest.mark.parametrize(
    ("typed", "names"),
    [("busi", ("busi",)), ("busi,busbra", ("busi", "busbra")), ("busi,", ("busi",)), (",", ()), ("a,,b", ("a", "b"))],
)
def test_names_on_a_command_line(typed, names):
    @dataclasses.dataclass
    class Options:
        sources: Names = ("lgg", "br35h")

    assert tyro.cli(Options, args=[f"--sources={typed}"]).sources == names
    assert tyro.cli(Options, args=["--sources", typed]).sources == names
    assert tyro.cli(Options, args=[]).sources == ("lgg", "br35h")


def test_the_pretraining_stage_is_the_task_at_another_size_and_length():
    task = small_task("classify_brain", model="cnn", select="accuracy", start=Pretraining(2, 64, 3e-3), patience=2)
    stage = task.pretraining
    assert stage == dataclasses.replace(
        task, epochs=2, size=64, learning_rate=3e-3, start=Pretraining(), select=LAST, patience=0
    )
    assert stage.check().pretraining is None


def test_a_task_takes_typed_overrides():
    default = TASKS["segment_brain"]
    changed = tyro.cli(
        Task, default=default, args=["--sources=phantom,lgg", "--size=96", "--augmentation.flip=0.25", "--model=light"]
    )
    augmentation = dataclasses.replace(default.augmentation, flip=0.25)
    assert changed == dataclasses.replace(
        default, sources=("phantom", "lgg"), size=96, model="light", augmentation=augmentation
    )
