"""What a DICOM header states about the organ, and what it must never say."""

import numpy as np
import pytest
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import UID_dictionary

from mcis.imaging import modality
from mcis.imaging.body_parts import BODY_PARTS, CODES, FILLERS, body_part_of_code, body_parts_in
from mcis.imaging.dicom import reader as dicom_reader
from mcis.imaging.modality import MODALITIES, SOP_CLASSES, STORAGE, contradiction, stated_content
from mcis.imaging.pool import read_all
from mcis.organs import ORGAN_NAMES, ORGANS
from tests.fixtures.dicom_files import CANARY, enhanced, items, write

MR, US, CT = (f"{STORAGE}{end}" for end in ("4", "6.1", "2"))
SC = f"{STORAGE}7"


def allowed(**header):
    stated, _ = stated_content(header)
    return [name for name in ORGAN_NAMES if all(name in one.organs for one in stated)]


@pytest.mark.parametrize(
    ("header", "organs"),
    [
        ({"Modality": "MR"}, ["brain"]),
        ({"Modality": " mr "}, ["brain"]),
        ({"Modality": b"MR"}, ["brain"]),
        ({"Modality": "US"}, ["breast"]),
        *(({"Modality": code}, []) for code in ("CT", "XA", "DX", "CR", "MG", "PT", "NM", "OP", "ES", "SM", "IVUS")),
        ({"Modality": ["CT", "PT"]}, []),
        *(({"Modality": code}, list(ORGAN_NAMES)) for code in ("OT", "SC", "", None, [], "XYZ", CANARY, 7)),
        ({}, list(ORGAN_NAMES)),
        ({"Modality": "MR", "BodyPartExamined": "BRAIN"}, ["brain"]),
        ({"Modality": "MR", "BodyPartExamined": "head"}, ["brain"]),
        ({"Modality": "MR", "BodyPartExamined": "HEAD_NECK"}, ["brain"]),
        ({"Modality": "MR", "BodyPartExamined": "Sch\u00e4del"}, ["brain"]),
        ({"Modality": "MR", "BodyPartExamined": "NECK AND HEAD"}, ["brain"]),
        ({"Modality": "MR", "BodyPartExamined": "PITUITARY"}, ["brain"]),
        ({"Modality": "MR", "BodyPartExamined": "WHOLEBODY"}, ["brain"]),
        ({"Modality": "MR", "BodyPartExamined": "KNEE-like coil"}, ["brain"]),  # a word that no table knows
        ({"Modality": "MR", "BodyPartExamined": "KNEE"}, []),
        ({"Modality": "MR", "BodyPartExamined": "LKNEE"}, []),
        ({"Modality": "MR", "BodyPartExamined": "C-SPINE"}, []),
        ({"Modality": "MR", "BodyPartExamined": "CHEST/ABDOMEN"}, []),
        ({"Modality": "MR", "BodyPartExamined": "BREAST"}, []),
        ({"Modality": "US", "BodyPartExamined": "BREAST_L"}, ["breast"]),
        ({"Modality": "US", "BodyPartExamined": "Mamma li"}, ["breast"]),
        ({"Modality": "US", "BodyPartExamined": "LBREAST"}, ["breast"]),
        ({"Modality": "US", "BodyPartExamined": "THYROID"}, []),
        ({"Modality": "US", "BodyPartExamined": "HEAD"}, []),
        ({"Modality": "US", "BodyPartExamined": "  "}, ["breast"]),
        ({"Modality": "OT", "BodyPartExamined": "HEART"}, []),
        ({"BodyPartExamined": "BREAST"}, ["breast"]),
        ({"Modality": "MR", "SOPClassUID": SC}, ["brain"]),
        ({"Modality": "XA", "SOPClassUID": SC}, []),
        ({"SOPClassUID": SC}, list(ORGAN_NAMES)),
        ({"SOPClassUID": CT}, []),
        ({"Modality": "OT", "SOPClassUID": MR}, ["brain"]),
        ({"SOPClassUID": US}, ["breast"]),
        ({"Modality": "US", "SOPClassUID": CT}, []),
        ({"Modality": "MR", "SOPClassUID": f"{STORAGE}12.1"}, []),
        ({"Modality": "MR", "SOPClassUID": US}, ["brain"]),  # both are analysed: it is noted
        ({"Modality": ["MR", "PT"], "SOPClassUID": f"{STORAGE}128"}, ["brain"]),  # of a hybrid scanner
        ({"Modality": "OT", "ConversionType": "SD"}, []),
        ({"Modality": "US", "ConversionType": "DRW"}, []),
        *(({"Modality": "US", "ConversionType": kind}, ["breast"]) for kind in ("DF", "DV", "WSD", "SYN", "SI")),
    ],
)
def test_a_header_allows_the_organs_that_it_does_not_contradict(header, organs):
    assert allowed(**header) == organs


def test_notes_say_what_a_header_leaves_open():
    def notes(**header):
        return "; ".join(stated_content(header)[1])

    assert notes(Modality="MR", SOPClassUID=MR) == ""
    assert "names no known modality: it is judged by the picture" in notes()
    assert "names no known modality" in notes(Modality=CANARY) and "CANARY" not in notes(Modality=CANARY)
    assert "says Modality OT, which is no kind of scan" in notes(Modality="OT")
    assert "SOP class, which is of modality CT" in notes(SOPClassUID=CT)
    assert "a secondary capture" in notes(Modality="US", SOPClassUID=f"{SC}.2")
    assert "a secondary capture" not in notes(Modality="XC", SOPClassUID=f"{STORAGE}77.1.4")
    assert "contradicts itself: Modality US, but the SOP class of modality CT" in notes(Modality="US", SOPClassUID=CT)


def test_no_text_of_a_header_is_quoted():
    header = {"Modality": "ZEPHYR", "BodyPartExamined": "ZEPHYRINE BREAST", "ConversionType": "ZEPHYR"}
    stated, notes = stated_content(header | {"SOPClassUID": f"{CT}.ZEPHYR"})
    assert [one.header for one in stated] == ["BodyPartExamined BREAST"]
    assert "ZEPHYR" not in " ".join(notes)


def test_an_element_that_cannot_be_read_says_nothing():
    class Damaged(dict):
        def get(self, name, default=None):
            raise ValueError("CANARY")

    stated, notes = stated_content(Damaged())
    assert stated == () and len(notes) == 1 and "CANARY" not in notes[0]


@pytest.mark.parametrize(
    ("header", "organ", "decided"),
    [
        ({"Modality": "MR"}, "brain", None),
        ({"Modality": "MR"}, "breast", "Modality MR"),
        ({"Modality": "MR"}, None, None),
        ({"Modality": "CT", "BodyPartExamined": "HEAD"}, "brain", "Modality CT"),
        ({"Modality": "CT"}, None, "Modality CT"),
        ({"Modality": "MR", "BodyPartExamined": "KNEE"}, "brain", "BodyPartExamined KNEE"),
        ({"Modality": "US", "BodyPartExamined": "HEAD"}, None, "Modality US and BodyPartExamined HEAD"),
        ({"Modality": "OT"}, "breast", None),
        ({"Modality": "MR", "SOPClassUID": CT}, "brain", "SOP class of modality CT"),
        ({"Modality": "MR", "SOPClassUID": CT}, None, "SOP class of modality CT"),
        ({"Modality": "CT", "SOPClassUID": MR}, "brain", "Modality CT"),
        ({}, "brain", None),
    ],
)
def test_a_contradiction_names_the_elements_that_decide(header, organ, decided):
    assert contradiction(stated_content(header)[0], organ) == decided


def test_the_tables_agree_with_the_standard_and_with_the_organs():
    names = {"MR": ("MR",), "US": ("Ultrasound", "US"), "CT": ("CT",), "MG": ("Mammography", "Breast"), "PT": ("P",)}
    for end, code in SOP_CLASSES.items():
        name, kind, *_ = UID_dictionary[STORAGE + end]
        assert kind == "SOP Class" and "Storage" in name
        assert any(word in name for word in names.get(code, (" ",))), (name, code)
        assert MODALITIES[code] == code
    for organ in ORGANS:
        assert set(organ.modalities) <= set(MODALITIES.values())
        assert set(organ.parts) <= set(BODY_PARTS.values())
    assert all(term == term.upper() and term.isascii() and term.isalpha() for term in BODY_PARTS)


def test_an_anatomic_region_is_read_in_the_file_and_in_its_functional_groups(tmp_path):
    grey = np.zeros((16, 16), np.uint8)
    write(tmp_path / "a.dcm", grey, AnatomicRegionSequence=items(CodeMeaning="Knee", CodeValue="72696002"))
    (stated,) = [one for one in dicom_reader.read(tmp_path / "a.dcm").stated if one.organs == ()]
    assert stated.header == "AnatomicRegionSequence KNEE"
    made = enhanced([grey, grey])
    for group, part in zip(made.PerFrameFunctionalGroupsSequence, ("Brain", "Breast"), strict=True):
        group.FrameAnatomySequence = items(AnatomicRegionSequence=items(CodeMeaning=part, CodeValue="1"))
    made.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    organs = [[one.organs for one in dicom_reader.read(tmp_path / "b.dcm", frame).stated] for frame in (0, 1)]
    assert organs == [[("brain",), ("brain",)], [("brain",), ("breast",)]]


def test_a_worker_hands_on_what_a_header_states(tmp_path):
    write(tmp_path / "a.dcm", np.zeros((16, 16), np.uint8), Modality="CT", BodyPartExamined="HEAD")
    (loaded,) = read_all([(str(tmp_path / "a.dcm"), None)], ahead=1)
    assert loaded.error is None and loaded.stated == dicom_reader.read(tmp_path / "a.dcm").stated
    assert [(one.header, one.organs) for one in loaded.stated] == [
        ("Modality CT", ()),
        ("BodyPartExamined HEAD", ("brain",)),
    ]


def test_an_organ_without_modalities_and_parts_is_never_contradicted(monkeypatch):
    import dataclasses

    lung = dataclasses.replace(ORGANS[0], name="lung", modalities=(), parts=())
    monkeypatch.setattr(modality, "ORGANS", (*ORGANS, lung))
    stated, _ = stated_content({"Modality": "DX", "BodyPartExamined": "CHEST"})
    assert [one.organs for one in stated] == [("lung",), ("lung",)]


@pytest.mark.parametrize(
    ("text", "term"),
    [
        ("Knee joint", "KNEE"),
        ("Thyroid gland", "THYROID"),
        ("Lower limb", "LIMB"),
        ("ABDOMENPELVIS", "ABDOMENPELVIS"),
        ("RTKNEE", "KNEE"),
        ("LTBREAST", "BREAST"),
        ("RIGHTBREAST", "BREAST"),
        ("Structure of right knee region (body structure)", "KNEE"),
        ("MRI BRAIN W/WO CONTRAST", "BRAIN"),
        ("US thyroid", "THYROID"),
        ("Cervical Spine", "CERVICALSPINE"),
        ("TH\u00d3RAX", "THORAX"),
        ("Knie li.", "KNIE"),
    ],
)
def test_usual_spellings_are_body_parts(text, term):
    assert body_parts_in(text) == ([term], True)


@pytest.mark.parametrize("text", ["Reyes", "Rear", "Seno maxilar"])
def test_words_that_only_look_like_body_parts_say_nothing(text):
    assert body_parts_in(text)[0] == []


def test_codes_of_body_parts_are_those_of_the_standard():
    """Pairs of the two forms of SNOMED; and a code names no other region than its meaning does."""
    for code, term in CODES.items():
        if not code.isdigit():
            (modern,) = [one for one in CODES if one.isdigit() and Code(one, "SCT", "") == Code(code, "SRT", "")]
            assert BODY_PARTS[CODES[modern]] == BODY_PARTS[term], code
    regions = {}
    for keyword in codes.cid4.dir():
        concept = getattr(codes.cid4, keyword)
        terms, _ = body_parts_in(concept.meaning)
        term = body_part_of_code(concept.value, "SCT")
        regions[concept.meaning] = None if term is None else BODY_PARTS[term]
        assert term is None or not terms or BODY_PARTS[term] in {BODY_PARTS[one] for one in terms}, concept
    assert regions["Thyroid"] == "neck" and regions["Prostate"] == "pelvis" and regions["Entire body"] is None
    assert sum(region is not None for region in regions.values()) > 200
    assert not FILLERS & BODY_PARTS.keys()


@pytest.mark.parametrize(
    ("value", "scheme", "meaning", "stated"),
    [
        ("T-A0100", "SRT", "cerveau droit", "BRAIN"),
        ("12738006", "SCT", "", "BRAIN"),
        ("T-04000", "SNM3", "", "BREAST"),
        ("69748006", "SCT", "", "THYROID"),
        ("76752008", "SCT", "Knee", "BREAST"),  # the code counts
        ("76752008", "99LOCAL", "Knee", "KNEE"),
        ("38266002", "SCT", "Entire body", None),
        ("1", "99LOCAL", "ZEPHYRINE", None),
    ],
)
def test_an_anatomic_region_is_known_by_its_code(value, scheme, meaning, stated):
    item = {"CodeValue": value, "CodingSchemeDesignator": scheme, "CodeMeaning": meaning}
    found, _ = stated_content({"Modality": "MR", "AnatomicRegionSequence": [item]})
    expected = ["Modality MR", *([f"AnatomicRegionSequence {stated}"] if stated else [])]
    assert [one.header for one in found] == expected
