import dataclasses
import json
import random

import hypothesis
import hypothesis.strategies as st
import pytest
from mcis_datasets.mcis_scans import audit, splits
from mcis_datasets.mcis_scans.record import Rejection
from mcis_datasets.mcis_scans.splits import History, Member, assign


def member(number, cluster=None, label=1, patient=None, organ="breast"):
    return Member(f"s{number}", f"{number:016x}", organ, label, patient, number if cluster is None else cluster)


def split_of(plan, members):
    return {m.fingerprint: split for m, split in zip(members, plan.splits, strict=True)}


def new_group_in(split, start=0):
    """A scan that forms a group, to which a first build gives `split`."""
    for number in range(start, start + 1000):
        if assign([member(number)], History()).splits == (split,):
            return member(number)
    raise AssertionError(split)


def test_shares_are_near_the_targets():
    plan = assign([member(k) for k in range(4000)], History())
    for split, share in splits.SHARES.items():
        assert plan.splits.count(split) / 4000 == pytest.approx(share, abs=0.02)


def test_splits_in_use_do_not_change():
    assert splits.position(["benign"], "0123456789abcdef") == pytest.approx(0.8564, abs=1e-4)
    plan = assign([member(1, patient="TCGA_CS_4941"), member(2, patient="7", label=2)], History())
    assert plan.splits == ("train", "test")


@st.composite
def member_lists(draw):
    """Scans of few patients, pixels, series and clusters; equal pixels are in one cluster, as `find_clusters` says."""
    clusters = draw(st.lists(st.integers(0, 12), min_size=16, max_size=16))
    pixels, labels = st.integers(0, 15), st.sampled_from([-1, 0, 1, 1, 1, 2])
    patients, series = st.sampled_from([None, None, *"pqrs"]), st.sampled_from([None, None, None, "x", "y"])
    rows = draw(st.lists(st.tuples(pixels, labels, patients, series), min_size=1, max_size=24))
    return [
        Member(f"s{number}", f"{pixels:016x}", "breast", label, patient, clusters[pixels], series)
        for number, (pixels, label, patient, series) in enumerate(rows)
    ]


few = hypothesis.settings(max_examples=60, deadline=None, derandomize=True)


def by_scan(members, plan):
    return {
        member.scan_id: decided for member, *decided in zip(members, plan.groups, plan.splits, plan.labels, strict=True)
    }


@few
@hypothesis.given(member_lists())
def test_every_scan_has_a_split_and_no_group_has_two(members):
    plan = assign(members, History())
    assert len(plan.splits) == len(members) and set(plan.splits) <= set(splits.SPLITS)
    assert len(set(zip(plan.groups, plan.splits, strict=True))) == len(set(plan.groups))
    audit.check_splits(members, plan)  # of patients, equal pixels and clusters


@few
@hypothesis.given(member_lists(), st.randoms(use_true_random=False))
def test_the_order_of_the_scans_does_not_matter(members, random):
    plan, shuffled = assign(members, History()), random.sample(members, len(members))
    again = assign(shuffled, History())
    assert by_scan(shuffled, again) == by_scan(members, plan)
    assert (again.history, again.contradictions) == (plan.history, plan.contradictions)


@few
@hypothesis.given(member_lists(), st.sets(st.sampled_from(splits.SPLITS)))
def test_a_new_group_gets_its_split_whatever_other_groups_there_are(members, kept):
    plan = assign(members, History())
    some = [member for member, split in zip(members, plan.splits, strict=True) if split in kept]
    assert by_scan(some, assign(some, History())).items() <= by_scan(members, plan).items()


@few
@hypothesis.given(member_lists(), st.integers(0, 24))
def test_added_scans_move_no_group_but_those_that_are_listed(members, count):
    before = assign(members[:count], History())
    after = assign(members, before.history)
    moved = {scan_id for entry in after.moved for scan_id in entry["scans"]}
    for member, old, new in zip(members, before.splits, after.splits, strict=False):
        assert new == ("train" if member.scan_id in moved else old)
    assert assign(members, after.history).moved == ()  # once moved, a group stays


def test_another_copy_of_the_same_patients_scans_gets_the_same_splits():
    ours = [member(k, patient=f"p{k % 40}") for k in range(120)]
    resized = [dataclasses.replace(m, fingerprint=f"f{m.fingerprint[1:]}") for m in ours]
    assert assign(ours, History()).splits == assign(resized, History()).splits


def test_splits_are_kept_while_scans_come_and_go():
    rng = random.Random(1)
    known: dict[str, str] = {}
    history = History()
    for _ in range(12):
        # Scans with the same number // 4 form a cluster, whose number changes from build to build.
        numbers = rng.sample(range(200), rng.randint(20, 150))
        clusters = {number // 4: k for k, number in enumerate(numbers)}
        members = [member(number, cluster=clusters[number // 4]) for number in numbers]
        plan = assign(members, history)
        moved = {scan_id for entry in plan.moved for scan_id in entry["scans"]}
        for m, split in zip(members, plan.splits, strict=True):
            assert split == ("train" if m.scan_id in moved else known.get(m.scan_id, split))
            known[m.scan_id] = split
        assert audit.check_splits(members, plan)
        history = plan.history
    assert len(known) == 200


def test_the_history_takes_precedence_over_the_hash(tmp_path):
    scan = new_group_in("train")
    splits.write(tmp_path / splits.FILE, History({scan.fingerprint: "test"}, {}, ()))
    history = splits.read(tmp_path / splits.FILE)
    assert assign([scan], history).splits == ("test",)
    friend = dataclasses.replace(member(5000), cluster=scan.cluster)
    assert assign([friend, scan], history).splits == ("test", "test")
    patient = History({}, {"p1": "validation"}, ())
    assert assign([member(7, patient="p1")], patient).splits == ("validation",)


def test_a_group_that_joins_several_splits_goes_to_train_and_is_listed():
    left, right = new_group_in("test"), new_group_in("validation")
    first = assign([left, right], History())
    bridge = member(9000, cluster=1)
    joined = [dataclasses.replace(m, cluster=1) for m in (left, right)] + [bridge]
    plan = assign(joined, first.history)
    assert plan.splits == ("train",) * 3
    (moved,) = plan.moved
    assert moved["from"] == ["test", "validation"]
    assert moved["to"] == "train"
    assert moved["scans"] == sorted(m.scan_id for m in joined)
    # This lasts when the connecting scan is missing again.
    later = assign([left, right], plan.history)
    assert later.splits == ("train", "train")
    assert later.moved == ()
    assert later.history.moved == plan.moved


def test_groups_that_join_within_one_split_stay_there():
    left = new_group_in("test")
    right = new_group_in("test", start=int(left.scan_id[1:]) + 1)
    first = assign([left, right], History())
    plan = assign([dataclasses.replace(m, cluster=1) for m in (left, right, member(9000))], first.history)
    assert plan.splits == ("test",) * 3
    assert plan.moved == ()


def test_contradicting_near_duplicates_go_to_train_without_label():
    scan = new_group_in("test")
    twin = dataclasses.replace(member(9000, label=2), cluster=scan.cluster)
    other = member(9001)
    plan = assign([scan, twin, other], History())
    assert plan.splits[:2] == ("train", "train")
    assert plan.labels == (-1, -1, 1)
    (entry,) = plan.contradictions
    assert entry["labels"] == ["benign", "malignant"]
    assert entry["scans"] == sorted([scan.scan_id, "s9000"])
    # A group that was in test before is moved.
    plan = assign([scan, twin], assign([scan], History()).history)
    assert plan.splits == ("train", "train")
    assert plan.moved[0]["why"] == "contradicting labels"


def test_an_unknown_label_contradicts_nothing():
    scan = new_group_in("test")
    twin = dataclasses.replace(member(9000, label=-1), cluster=scan.cluster)
    plan = assign([scan, twin], History())
    assert plan.contradictions == ()
    assert plan.labels == (1, -1)
    assert len(set(plan.splits)) == 1


def test_several_classes_of_a_patient_do_not_contradict():
    plan = assign([member(1, patient="p", label=1), member(2, patient="p", label=2)], History())
    assert plan.contradictions == ()
    assert plan.groups == ("p", "p")


def test_the_slices_of_a_series_join_where_a_patient_is_unknown_and_keep_their_labels():
    rows = [dataclasses.replace(member(k, cluster=1, label=k % 2), series="study") for k in range(3)]
    plan = assign(rows, History())
    assert len(set(plan.groups)) == len(set(plan.splits)) == 1
    assert plan.labels == (0, 1, 0) and not plan.contradictions
    later = dataclasses.replace(member(9), series="study")
    assert assign([later], plan.history).splits == plan.splits[:1]
    known = [dataclasses.replace(row, patient=f"p{k}", cluster=None) for k, row in enumerate(rows)]
    assert assign(known, History()).groups == ("p0", "p1", "p2")
    mixed = [*known[:2], dataclasses.replace(rows[2], cluster=None)]
    assert assign(mixed, History()).groups == ("p0 + p1",) * 3


def test_near_duplicates_join_only_where_a_patient_is_unknown():
    known = [member(1, cluster=0, patient="a"), member(2, cluster=0, patient="b")]
    assert assign(known, History()).groups == ("a", "b")
    plan = assign([*known, member(3, cluster=0)], History())
    assert set(plan.groups) == {"a + b"}


def test_equal_pixels_join_patients():
    twins = [member(1, patient="a"), dataclasses.replace(member(1, patient="b"), scan_id="copy")]
    plan = assign([*twins, member(2, patient="b")], History())
    assert set(plan.groups) == {"a + b"}
    assert len(set(plan.splits)) == 1


def test_clusters_are_named_after_their_smallest_fingerprint():
    members = [member(5, cluster=3), member(4, cluster=3)]
    assert assign(members, History()).groups == (f"cluster-{4:016x}",) * 2


@pytest.mark.parametrize(
    "content", ["", "{}", '{"fingerprints": {"a": "tset"}, "groups": {}, "moved": []}', '{"fingerprints": [1]}']
)
def test_a_damaged_history_is_an_error(tmp_path, content):
    (tmp_path / splits.FILE).write_text(content)
    with pytest.raises(ValueError, match=r"splits\.json is damaged"):
        splits.read(tmp_path / splits.FILE)


def test_a_written_history_is_read_back(tmp_path):
    history = assign([member(k) for k in range(9)], History()).history
    splits.write(tmp_path / splits.FILE, history)
    assert splits.read(tmp_path / splits.FILE) == dataclasses.replace(history, moved=())
    assert [p.name for p in tmp_path.iterdir()] == [splits.FILE]


def test_the_audit_counts_checks_and_prints():
    members = [member(k, cluster=k // 2, label=k % 4 // 2) for k in range(40)]
    members += [member(100, cluster=50, label=1), member(101, cluster=50, label=2)]
    plan = assign(members, History())
    found = audit.make_audit("busi", members, [True] * 42, plan, [Rejection("x", "unreadable")])
    assert json.loads(json.dumps(found)) == found
    assert sum(sum(row.values()) for row in found["counts"].values()) == 42
    assert found["counts"]["train"]["unknown"] == 2
    assert found["groups"]["of_several_scans"] == 21
    assert found["groups"]["scans_in_these"] == 42
    assert found["proof"]["groups"] == {"checked": 21, "in_two_splits": 0}
    assert found["proof"]["pictures"] == {"checked": 42, "in_two_splits": 0}
    assert found["deviation"]["train"] == pytest.approx(found["shares"]["train"] - 0.7, abs=1e-3)
    text = audit.summary(found)
    for words in ("42 scans", "x: unreadable", "benign, malignant: s100, s101", "none is in two splits"):
        assert words in text


@pytest.mark.parametrize("name", ["groups", "patients", "pictures", "clusters"])
def test_the_check_notices_a_group_in_two_splits(name):
    members = [member(1, cluster=1), member(2, cluster=2, patient="p"), member(3, cluster=3, patient="q")]
    plan = assign(members, History())
    if name == "groups":
        plan = dataclasses.replace(plan, groups=("g", "g", "h"))
    else:
        field = {"patients": "patient", "pictures": "fingerprint", "clusters": "cluster"}[name]
        members = [dataclasses.replace(m, **{field: 1}) for m in members]
    with pytest.raises(AssertionError, match=f"{name} in more than one split"):
        audit.check_splits(members, dataclasses.replace(plan, splits=("train", "test", "train")))
