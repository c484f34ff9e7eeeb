"""The table of organs."""

import subprocess
import sys

import pytest

from mcis.organs import ORGAN_NAMES, ORGANS, UNKNOWN, UNSUPPORTED, organ_named


def test_names_are_lower_case_identifiers_and_distinct():
    assert tuple(organ.name for organ in ORGANS) == ORGAN_NAMES
    assert len(set(ORGAN_NAMES)) == len(ORGANS)
    assert UNSUPPORTED not in ORGAN_NAMES
    for organ in ORGANS:
        for name in (organ.name, *organ.classes):
            assert name.isidentifier()
            assert name == name.lower()
        assert len(set(organ.classes)) == len(organ.classes) > 1
        assert organ.name in organ.scan
    classes = [name for organ in ORGANS for name in organ.classes]
    assert len(set(classes)) == len(classes), "a class must identify its organ, for example in labels.csv"


def test_some_classes_are_lesions_but_not_all():
    for organ in ORGANS:
        assert set(organ.lesions) < set(organ.classes)
        assert organ.lesions


def test_is_lesion_is_true_for_the_lesion_classes_only():
    brain, breast = organ_named("brain"), organ_named("breast")
    assert [brain.is_lesion(label) for label in (0, 1, UNKNOWN)] == [False, True, False]
    assert [breast.is_lesion(label) for label in (0, 1, 2, UNKNOWN)] == [False, True, True, False]


@pytest.mark.parametrize("organ", ORGANS, ids=lambda organ: organ.name)
def test_each_organ_is_found_by_its_name_and_lesions_follow_the_table(organ):
    assert organ_named(organ.name) is organ
    assert [organ.classes[i] for i in range(len(organ.classes)) if organ.is_lesion(i)] == list(organ.lesions)
    assert not organ.is_lesion(UNKNOWN)


@pytest.mark.parametrize("name", ["liver", "", "Brain", UNSUPPORTED])
def test_the_error_for_an_unknown_organ_lists_the_names(name):
    with pytest.raises(ValueError, match=", ".join(ORGAN_NAMES)) as caught:
        organ_named(name)
    assert repr(name) in str(caught.value)


def test_importing_organs_imports_only_the_standard_library():
    script = "import sys, mcis.organs; print([m for m in ('numpy', 'cv2', 'jax', 'tyro') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600)
    assert run.stdout.strip() == "[]", run.stderr
