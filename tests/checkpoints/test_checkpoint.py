"""Weights folders: round trips to the bit, damage, replacement, limits."""

import ast
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mcis
from mcis.checkpoints import checkpoint
from mcis.checkpoints.checkpoint import MANIFEST, CheckpointError, flatten, unflatten

ROOT = pathlib.Path(mcis.__file__).parent


def variables(seed=0, width=4):
    """Arrays of every type that a network's variables have, of magnitudes that half precision cannot represent."""
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=(3, 3, 2, width)).astype(np.float32)
    kernel[0, 0, 0, :2] = [1e-6, -0.0]
    return {
        "params": {
            "level1": {"conv": {"kernel": kernel}, "norm": {"scale": rng.normal(size=width).astype(np.float32)}},
            "label": {"bias": rng.normal(size=3).astype(np.float32)},
        },
        "batch_stats": {"level1": {"norm": {"mean": np.float32([1e-9, 3.0, 1e20, -1e5])}}},
        "novelty": {"limit": np.float32(np.inf), "count": np.arange(3, dtype=np.int32), "on": np.array([True, False])},
        "coarse": {"bf16": np.asarray(jnp.linspace(-3, 3, 5, dtype=jnp.bfloat16)), "key": np.uint32([0, 2**32 - 1])},
    }


def assert_same(found, wanted):
    found, wanted = flatten(found), flatten(wanted)
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key].dtype == value.dtype, key
        assert found[key].shape == value.shape, key
        assert found[key].tobytes() == np.asarray(value).tobytes(), key


@pytest.fixture
def saved(tmp_path):
    checkpoint.save(tmp_path / "weights", variables(), {"task": "a task", "figures": [1, 2.5, None]})
    return tmp_path / "weights"


def test_flatten_and_unflatten():
    tree = {"b": {"y": 2, "x": {"z": 1}}, "a": 0}
    assert list(flatten(tree).items()) == [("a", 0), ("b/x/z", 1), ("b/y", 2)]
    assert unflatten(flatten(tree)) == tree
    # level by level: as strings, "a-b/c" would come before "a/c"
    assert list(flatten({"a-b": {"c": 1}, "a": {"d": 2, "c": 3}})) == ["a/c", "a/d", "a-b/c"]
    assert flatten({"a": {}, "b": 1}) == {"b": 1}


def test_round_trip_is_exact_to_the_bit(saved):
    found, manifest = checkpoint.load(saved)
    assert_same(found, variables())
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(found))
    assert manifest["task"] == "a task"
    assert manifest["figures"] == [1, 2.5, None]
    assert manifest == checkpoint.read_manifest(saved) == json.loads((saved / MANIFEST).read_text())
    assert manifest["format"] == checkpoint.FORMAT
    assert manifest["versions"]["mcis"] == mcis.__version__
    assert manifest["arrays"]["params/level1/conv/kernel"] == ["float32", [3, 3, 2, 4]]


def test_arrays_on_a_device_are_saved_as_well(tmp_path):
    checkpoint.save(tmp_path / "w", jax.tree.map(jnp.asarray, variables()), {})
    assert_same(checkpoint.load(tmp_path / "w")[0], variables())


def test_a_saved_folder_can_be_moved_and_copied(saved, tmp_path):
    moved = saved.rename(tmp_path / "elsewhere")
    assert_same(checkpoint.load(moved)[0], variables())
    assert_same(checkpoint.load(os.path.relpath(moved))[0], variables())


def test_no_file_holds_the_path_of_its_folder(tmp_path):
    checkpoint.save(tmp_path / "weights", variables(), {})
    files = [path for path in (tmp_path / "weights").rglob("*") if path.is_file()]
    assert files and not [path for path in files if os.fsencode(tmp_path) in path.read_bytes()]


def test_half_precision_rounds_parameters_and_nothing_else(tmp_path):
    checkpoint.save(tmp_path / "half", variables(), {}, half=True)
    found, manifest = checkpoint.load(tmp_path / "half")
    assert manifest["arrays"]["params/label/bias"] == ["float16", [3]]
    assert manifest["arrays"]["batch_stats/level1/norm/mean"] == ["float32", [4]]
    wanted = flatten(variables())
    for key, value in flatten(found).items():
        if key.startswith("params/"):
            assert value.dtype == np.float32
            np.testing.assert_array_equal(value, wanted[key].astype(np.float16).astype(np.float32))
            np.testing.assert_allclose(value, wanted[key], rtol=2**-11, atol=2**-25)
            del wanted[key]
    rest = {key: value for key, value in flatten(found).items() if not key.startswith("params/")}
    assert_same(unflatten(rest), unflatten(wanted))


@pytest.mark.parametrize("value", [1e5, -7e4, np.nan])
def test_parameters_beyond_half_precision_are_an_error_and_nothing_is_written(tmp_path, value):
    too_large = variables()
    too_large["params"]["label"]["bias"][1] = value
    with pytest.raises(CheckpointError, match="params/label/bias"):
        checkpoint.save(tmp_path / "half", too_large, {}, half=True)
    assert list(tmp_path.iterdir()) == []
    checkpoint.save(tmp_path / "full", too_large, {})
    assert_same(checkpoint.load(tmp_path / "full")[0], too_large)


# Damage


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def delete(path):
    path.unlink()


@pytest.mark.parametrize("damage", [flip, truncate, delete])
def test_damage_to_any_file_is_an_error_that_names_it(saved, damage):
    files = files_of(saved)
    assert len(files) > 3
    for path in files:
        before = path.read_bytes()
        damage(path)
        for read in (checkpoint.load, checkpoint.read_manifest):
            with pytest.raises(CheckpointError) as caught:
                read(saved)
            assert str(path.relative_to(saved)) in str(caught.value)
        path.write_bytes(before)
    assert_same(checkpoint.load(saved)[0], variables())


@pytest.mark.parametrize("name", ["extra.txt", "variables/extra", ".hidden"])
def test_an_additional_file_is_an_error_that_names_it(saved, name):
    (saved / name).write_text("x")
    with pytest.raises(CheckpointError, match=rf"{name}.*does not belong"):
        checkpoint.load(saved)


def changed(manifest, **changes):
    return json.dumps(manifest | changes)


def without(manifest, key):
    return json.dumps({k: v for k, v in manifest.items() if k != key})


def arrays(manifest, name, *entry):
    """The manifest's text with the type and shape of one array replaced, or its entry removed."""
    entries = {k: v for k, v in manifest["arrays"].items() if k != name} | ({name: list(entry)} if entry else {})
    return changed(manifest, arrays=entries)


DAMAGED = {
    "cut off": lambda m: json.dumps(m)[:100],
    "empty": lambda m: "",
    "not text": lambda m: b"\xff\xfe\x00",
    "a list": lambda m: "[]",
    "null": lambda m: "null",
    "no files": lambda m: without(m, "files"),
    "files are null": lambda m: changed(m, files=None),
    "files are a list": lambda m: changed(m, files=[]),
    "no format": lambda m: without(m, "format"),
    "another format": lambda m: changed(m, format=checkpoint.FORMAT + 1),
    "no arrays": lambda m: without(m, "arrays"),
    "arrays are a list": lambda m: changed(m, arrays=[1]),
    "an array of another type": lambda m: arrays(m, "params/label/bias", "float16", [3]),
    "an array of no type": lambda m: arrays(m, "params/label/bias", "gloat32", [3]),
    "an array of no shape": lambda m: arrays(m, "params/label/bias", "float32", 3),
    "an array of another shape": lambda m: arrays(m, "params/label/bias", "float32", [2]),
    "an array too few": lambda m: arrays(m, "params/label/bias"),
    "an array too many": lambda m: arrays(m, "params/label/bios", "float32", [3]),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_manifest_is_an_error_that_names_a_file(saved, damage):
    text = DAMAGED[damage](json.loads((saved / MANIFEST).read_text()))
    (saved / MANIFEST).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(saved)
    assert str(saved) in str(caught.value)
    assert MANIFEST in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_folder_is_an_error(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "nowhere", tmp_path, tmp_path / "file"):
        with pytest.raises(CheckpointError, match=f"{path}: no such folder|{path} is not a weights folder"):
            checkpoint.load(path)


def test_check_shapes_names_the_array_that_differs():
    found = {"params": variables()["params"]}
    checkpoint.check_shapes(found, jax.eval_shape(lambda: found), "here")
    with pytest.raises(CheckpointError, match=r"here: array params/level1/conv/kernel.*\(3, 3, 2, 4\).*\(3, 3, 2, 8\)"):
        checkpoint.check_shapes(found, {"params": variables(width=8)["params"]}, "here")
    more = {"params": found["params"] | {"extra": {"bias": np.zeros(2)}}}
    with pytest.raises(CheckpointError, match="params/extra/bias is missing"):
        checkpoint.check_shapes(found, more, "here")
    with pytest.raises(CheckpointError, match=r"params/extra/bias is .*none"):
        checkpoint.check_shapes(more, found, "here")


# Replacing


def test_saving_again_replaces_the_folder_and_leaves_no_other_file(saved):
    checkpoint.save(saved, variables(seed=1, width=4), {"task": "another"})
    found, manifest = checkpoint.load(saved)
    assert_same(found, variables(seed=1))
    assert manifest["task"] == "another"
    assert "figures" not in manifest
    assert list(saved.parent.iterdir()) == [saved]


class Killed(BaseException):
    pass


def one(value):
    return {"params": {"kernel": np.full(4, value, np.float32)}}, {"which": value}


def assert_old_or_new(path):
    """The folder is complete, the old one or the new one, and the next save works. Returns which it was."""
    found, manifest = checkpoint.load(path)
    assert_same(found, one(manifest["which"])[0])
    checkpoint.save(path, *one(3))
    assert checkpoint.load(path)[1]["which"] == 3
    assert os.listdir(path.parent) == [path.name]
    return manifest["which"]


def test_a_save_that_dies_at_any_moment_leaves_the_old_or_the_new(tmp_path, monkeypatch):
    """It dies before its n-th operation on the folder or on one next to it; for every n."""
    checkpoint.save(tmp_path / "origin", *one(1))
    left = 0

    def deadly(function):
        def call(target, *args, **kwargs):
            nonlocal left
            if pathlib.Path(target).parent == path.parent or pathlib.Path(target).name == MANIFEST:
                if left == 0:
                    raise Killed
                left -= 1
            return function(target, *args, **kwargs)

        return call

    seen, died, step = [], True, 0
    while died:
        path = tmp_path / f"step{step}" / "weights"
        shutil.copytree(tmp_path / "origin", path)
        left, died = step, False
        with monkeypatch.context() as patch:
            patch.setattr(pathlib.Path, "rename", deadly(pathlib.Path.rename))
            patch.setattr(pathlib.Path, "write_text", deadly(pathlib.Path.write_text))
            patch.setattr(shutil, "rmtree", deadly(shutil.rmtree))
            try:
                checkpoint.save(path, *one(2))
            except Killed:
                died = True
        seen.append(assert_old_or_new(path))
        step += 1
    assert seen == sorted(seen)
    assert set(seen) == {1, 2}
    assert len(seen) >= 5  # the manifest, two renames and the removals


def test_a_process_killed_between_the_two_renames_loses_nothing(tmp_path):
    path = tmp_path / "weights"
    checkpoint.save(path, *one(1))
    script = """
        import os, pathlib, signal, sys
        import numpy as np
        from mcis.checkpoints import checkpoint

        path, rename = pathlib.Path(sys.argv[1]), pathlib.Path.rename

        def deadly(source, target):
            if target == path:
                os.kill(os.getpid(), signal.SIGKILL)
            return rename(source, target)

        pathlib.Path.rename = deadly
        checkpoint.save(path, {"params": {"kernel": np.full(4, 2, np.float32)}}, {"which": 2})
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert not path.exists()
    assert assert_old_or_new(path) == 1


# Promises


def test_nothing_unpickles():
    """No file of the package imports a module that unpickles or allows NumPy to unpickle."""
    forbidden = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    files = sorted(ROOT.rglob("*.py"))
    assert len(files) > 20
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant), f"{file}:{node.value.lineno}"
                assert node.value.value is False, f"{file}:{node.value.lineno}"
            assert not {name.split(".")[0] for name in names} & forbidden, f"{file}: {names}"


def test_a_full_disk_is_an_error_before_anything_is_written_and_older_weights_stay(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "best", variables(), {})
    free = checkpoint.SPARE + 10
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=free))
    with pytest.raises(OSError, match=r"4 MiB are free, 4 MiB are needed to save.*free some space"):
        checkpoint.save(tmp_path / "best", variables(seed=1), {})
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert_same(checkpoint.load(tmp_path / "best")[0], variables())


def test_a_full_disk_that_orbax_meets_is_an_oserror(tmp_path):
    with pytest.raises(OSError, match="No space left on device; earlier saves are intact") as full:  # noqa: SIM117
        with checkpoint.disk_errors(tmp_path):
            raise ValueError("RESOURCE_EXHAUSTED: Failed to write 1 bytes [os_error_code='28']")
    assert full.value.errno == 28 and full.value.filename == str(tmp_path)
    with pytest.raises(ValueError, match="shapes differ"), checkpoint.disk_errors(tmp_path):
        raise ValueError("shapes differ")


def rehashed(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | {"files": checkpoint.hashes(folder)}))


@pytest.mark.parametrize("content", ["", "{}", '{"tree_metadata": 5}', "[" * 9999])
def test_malformed_files_of_orbax_are_a_checkpoint_error_even_with_matching_hashes(content, saved):
    (saved / "variables" / "_METADATA").write_text(content)
    rehashed(saved)
    with pytest.raises(CheckpointError, match=r"variables is damaged|lists other arrays"):
        checkpoint.load(saved)


def test_a_huge_or_deeply_nested_manifest_is_damaged(saved):
    (saved / MANIFEST).write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="nested too deeply"):
        checkpoint.load(saved)
    with open(saved / MANIFEST, "wb") as file:
        file.truncate(1 << 34)
    with pytest.raises(CheckpointError, match="more than 32 MiB"):
        checkpoint.load(saved)


def test_files_that_are_not_listed_are_not_read(saved):
    with open(saved / "variables" / "extra", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="does not belong there"):
        checkpoint.load(saved)


def test_arrays_that_are_too_large_are_an_error(saved, monkeypatch):
    monkeypatch.setattr(checkpoint, "MAX_BYTES", 100)
    with pytest.raises(CheckpointError, match="MiB of arrays; at most"):
        checkpoint.load(saved)


def test_an_error_quotes_only_the_beginning_of_a_long_entry(saved):
    manifest = json.loads((saved / MANIFEST).read_text())
    (saved / MANIFEST).write_text(json.dumps(manifest | {"format": [0] * 10_000}))
    with pytest.raises(CheckpointError, match="has format") as caught:
        checkpoint.load(saved)
    assert len(str(caught.value)) < 1000
