"""Near-duplicates in other sources: which groups follow which, which scans are left out, and prepared sets of two."""

import dataclasses
import json
import shutil

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from mcis_datasets.mcis_scans import audit, other_sources, splits
from mcis_datasets.mcis_scans.duplicates_test import encode, texture
from mcis_datasets.mcis_scans.mcis_scans_dataset_builder import Builder
from mcis_datasets.mcis_scans.other_sources import Match, decide
from mcis_datasets.mcis_scans.splits import History, Member, assign

from mcis.data import dataset


def member(number, cluster=None, label=1, patient=None):
    return Member(f"s{number}", f"{number:016x}", "breast", label, patient, number if cluster is None else cluster)


def a_kin(group="a", split="test", label="benign", scan="1"):
    return Match(f"other/{scan}", f"other/{group}", split, label)


def names(decision):
    return {index: reason.scan_id for index, reason in decision.left_out.items()}


def test_a_group_follows_the_group_of_its_near_duplicate():
    members = [member(1, cluster=1), member(2, cluster=1), member(3)]
    decision = decide(members, [(a_kin(),), (), ()], History(), "busi")
    (group,) = decision.follows
    assert group == splits.groups_of(members)[0] and decision.follows[group] == a_kin() and not decision.left_out
    for split in splits.SPLITS:
        plan = assign(members, History(), {group: split})
        assert plan.splits[:2] == (split, split)
        assert plan.splits[2] == assign(members, History()).splits[2] and not plan.moved
        assert assign(members, plan.history).splits == plan.splits  # also when the other source is gone


def test_of_several_groups_the_one_with_most_images_is_followed_and_scans_near_others_are_left_out():
    members = [member(k, patient="p") for k in range(4)]
    own = [(a_kin("a"), a_kin("b")), (a_kin("b"),), (a_kin("c", "train"),), ()]
    decision = decide(members, own, History(), "busi")
    assert {group: leader.group for group, leader in decision.follows.items()} == {"p": "other/b"}
    assert names(decision) == {0: "s0", 2: "s2"}
    assert decision.left_out[2].reason == "a near-duplicate of other/1; its own group follows that of other/1"
    assert names(decide(members[2:], own[2:], History(), "busi")) == {}


def test_a_scan_that_is_left_out_joins_no_groups():
    members = [member(1, cluster=1, patient="p"), member(2, cluster=1), member(3, cluster=1, patient="q")]
    own = [(a_kin("a", scan="1"),), (a_kin("a", scan="2"), a_kin("b", scan="3")), (a_kin("b", scan="4"),)]
    decision = decide(members, own, History(), "busi")
    assert names(decision) == {1: "s2"}  # without which the two patients are two groups
    assert {group: leader.group for group, leader in decision.follows.items()} == {"p": "other/a", "q": "other/b"}


def test_a_near_duplicate_of_another_class_is_left_out():
    members = [member(1), member(2, label=-1), member(3), member(4)]
    own = [(a_kin(label="malignant"),), (a_kin(label="malignant"),), (a_kin(label="unknown"),), (a_kin(),)]
    decision = decide(members, own, History(), "busi")
    assert names(decision) == {0: "s1"}
    assert (
        decision.left_out[0].reason == "labelled benign, yet a near-duplicate of other/1, which is labelled malignant"
    )


@pytest.mark.parametrize(
    ("before", "split", "left_out"),
    [
        ("train", "train", False),
        ("train", "test", True),
        ("train", "validation", True),
        ("test", "test", False),
        ("test", "train", False),
        ("test", "validation", True),
    ],
)
def test_a_group_that_has_a_split_follows_to_train_only(before, split, left_out):
    members = [member(1, patient="p"), member(2, patient="p")]
    history = History(groups={"p": before})
    decision = decide(members, [(a_kin(split=split),), ()], history, "busi")
    assert names(decision) == ({0: "s1"} if left_out else {})
    kept = members[1:] if left_out else members
    plan = assign(kept, history, {group: leader.split for group, leader in decision.follows.items()})
    assert set(plan.splits) == {before if left_out else split}
    if before == "test" and split == "train":
        assert plan.moved[0]["why"] == "near-duplicates in another source" and plan.moved[0]["from"] == ["test"]


def test_a_group_that_others_follow_stays_itself():
    members = [member(1, patient="p")]
    decision = decide(
        members, [(Match("other/1", "busi/p", "train", "benign"),)], History(groups={"p": "train"}), "busi"
    )
    assert not decision.follows and not decision.left_out


def test_the_audit_lists_pairs_and_notices_one_in_two_splits():
    members = [member(1), member(2)]
    plan = dataclasses.replace(assign(members, History()), splits=("test", "train"))
    follows = {plan.groups[0]: a_kin()}
    found = audit.cross_source_report(members, plan, [(a_kin(),), ()], follows, {"other": 9, "third": 4})
    assert found["compared_with"] == {"other": 9, "third": 4} and found["scans_near"] == {"other": 1, "third": 0}
    assert found["near_duplicates"] == [
        {"scan": "s1", "near": "other/1", "group": plan.groups[0], "split": "test"},
    ]
    assert found["groups_that_follow"] == {plan.groups[0]: "other/a"}
    report = audit.make_audit("busi", members, [True, True], plan, []) | {"other_sources": found}
    text = audit.summary(report)
    assert "near-duplicates in other sources: other 1, third 0; 1 groups follow theirs" in text
    assert "s1 = other/1 (test)" in text
    with pytest.raises(AssertionError, match="s2 is in train, other/1 in test; this is a bug"):
        audit.cross_source_report(members, plan, [(), (a_kin(),)], {}, {"other": 9})


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def build(name, manual, data, others=None):
    tfds.disable_progress_bar()
    builder = Builder(config=name, data_dir=data, others=others)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual))
    rows = {}
    for split in builder.info.splits:
        for row in builder.as_data_source(split):
            stored = row["group"].decode()
            rows[row["scan_id"].decode()] = (split, dataset.group_name(name, stored), stored)
    return rows, json.loads((tfds.core.Path(builder.data_path) / "audit.json").read_text())["other_sources"]


def test_a_source_built_later_follows_the_one_that_is_there(tmp_path):
    """Healthy subjects, then tumor-free pictures, of which three show slices of one subject and two of two."""
    healthy, notumor = tmp_path / "healthy", tmp_path / "notumor"
    subjects = {"a0": "h1", "a1": "h1", "b0": "h2", "c0": "h3"}
    for k, name in enumerate(subjects):
        save(healthy / "images" / f"{name}.png", texture(k))
    (healthy / "healthy.csv").write_text("file,subject\n" + "".join(f"{n}.png,{s}\n" for n, s in subjects.items()))
    pictures = {
        "x": (encode(texture(0)), 1),  # h1
        "y": (texture(1), 1),  # h1
        "z": (texture(20), 1),  # nobody, but of their group
        "v": (encode(texture(2)), 1),  # h2, whom that group does not follow
        "w": (texture(21), 2),
    }
    for name, (picture, _) in pictures.items():
        save(notumor / "images" / f"{name}.png", picture)
    rows = "".join(f"{name}.png,{group}\n" for name, (_, group) in pictures.items())
    (notumor / "notumor.csv").write_text("file,group\n" + rows)

    alone, about = build("notumor", notumor, tmp_path / "alone")
    assert about["compared_with"] == {} and len(alone) == 5 and alone["x"][1].startswith("notumor/cluster-")
    before, _ = build("healthy", healthy, tmp_path / "data")
    after, about = build("notumor", notumor, tmp_path / "data")
    assert set(after) == {"x", "y", "z", "w"}
    for name in "xyz":
        assert after[name][:2] == (before["a0"][0], "healthy/h1") and after[name][2] == "@healthy/h1"
    assert after["w"][:2] == alone["w"][:2]
    assert about["compared_with"] == {"healthy": 4} and about["scans_near"] == {"healthy": 2}
    assert {(entry["scan"], entry["near"]) for entry in about["near_duplicates"]} == {
        ("x", "healthy/a0"),
        ("y", "healthy/a1"),
    }
    shutil.rmtree(tmp_path / "data" / "mcis_scans" / "healthy" / str(Builder.VERSION))
    again, about = build("healthy", healthy, tmp_path / "data")  # which others follow
    assert again == before and about["groups_that_follow"] == {} and about["scans_near"] == {"notumor": 2}


def test_too_many_scans_for_the_memory_are_an_error(tmp_path, monkeypatch):
    save(tmp_path / "healthy" / "images" / "a.png", np.zeros((9, 9, 3), np.uint8))
    (tmp_path / "healthy" / "healthy.csv").write_text("file,subject\na.png,h1\n")
    build("healthy", tmp_path / "healthy", tmp_path / "data")
    monkeypatch.setattr(other_sources, "free_memory", lambda: 1000)
    with pytest.raises(ValueError, match="1 scans and 1 of healthy: the search for near-duplicates takes"):
        other_sources.find([b""], "brain", ["healthy"], tmp_path / "data", 0.65)
