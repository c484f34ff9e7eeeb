"""Facts of stored scans."""

from mcis.inference.rows import scan_facts


def test_a_near_duplicate_of_another_sources_scan_has_that_sources_group():
    record = {"source": b"notumor", "scan_id": b"1", "fingerprint": b"f", "has_mask": 1}
    assert scan_facts(record | {"group": b"cluster-1"})["group"] == "notumor/cluster-1"
    assert scan_facts(record | {"group": b"@br35h/cluster-1"})["group"] == "br35h/cluster-1"
