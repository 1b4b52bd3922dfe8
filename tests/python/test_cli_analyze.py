"""``convbasis analyze``: what it finds in heads that are known, its output, and what it refuses."""

import json
import re

import numpy as np
import pytest

import convbasis as cb
from convbasis.cli._analyze_rows import head_errors, strip_logits, sweep_of

N, D = 512, 16


def heads(layers=2, count=2, kv_heads=1, seed=0):
    """Random query, key and value."""
    rng = np.random.default_rng(seed)
    shapes = ((layers, h, N, D) for h in (count, kv_heads, kv_heads))
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


@pytest.fixture
def file(tmp_path):
    """The path of an .npz file with some arrays."""

    def make(**changes):
        query, key, value = heads()
        path = tmp_path / "heads.npz"
        found = {"query": query, "key": key, "value": value, **changes}
        np.savez(path, **{name: array for name, array in found.items() if array is not None})
        return str(path)

    return make


def position_head(seed=0):
    """A head whose logits depend on the lag alone."""
    problem = cb.problems.conv_problem(N, D, 1, seed=seed)
    return problem.query, problem.key, problem.value, problem.scale


def test_one_strip_is_seen():
    *arrays, scale = position_head()
    found = head_errors(*arrays, scale, sweep_of(N), seed=0)
    assert found["strips"][0] < 1e-9
    assert min(found["window"][:2]) > 1e-3


def test_strip_logits_by_hand():
    query, key, _ = (array[0, 0, :7].astype(np.float64) for array in heads())
    got = strip_logits(query, key, 0.5, np.arange(7), 2)
    for i in range(7):
        for j in range(i + 1):
            start = 0 if j < 3 else 3
            want = 0.5 * query[start + i - j] @ key[start]
            assert got[i, j] == pytest.approx(want, rel=1e-12)


def test_a_window_is_seen():
    """Keys rotated by position, far ones orthogonal in all but a few dimensions."""
    *_, value = heads()
    angle = np.arange(N)[:, None] * np.geomspace(0.1, 0.3, D // 2)
    rotary = 12.0 * np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
    found = head_errors(rotary, rotary, value[0, 0], 0.25, sweep_of(N), seed=0)
    assert found["window"][1] < 0.05


def test_heavy_keys_are_seen():
    query, key, value = (array[0, 0] for array in heads(count=1))
    query, key = np.abs(query), 0.1 * key
    key[[70, 133, 201]] = 3.0
    found = head_errors(query, key, value, 0.25, sweep_of(N), seed=0)
    assert found["heavy"][1] < 0.05 < found["heavy"][0]


def test_a_table(run, file):
    code, out, err = run("analyze", file(), "--layers", "1", "--n", "300", "--num-threads", "1")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert "1 layers of 2 query heads on 1 key heads, n = 300" in lines[0]
    assert any(line.startswith("    1  ") for line in lines)
    assert sum("tol " in line and "logits computed" in line for line in lines) == 4
    assert lines[-1] == "heads     2 too short"
    assert "too short: conv_attention computes less than 2,048 positions exactly" in out


def test_a_scale_for_each_layer(run, file):
    query, key, value = heads()
    query[1] = query[0]
    key[1], value[1] = key[0], value[0]
    found = file(query=query, key=key, value=value, scale=np.array([0.25, 1e-3]))
    _, out, _ = run("analyze", found, "--json")
    content = json.loads(out)
    assert content["scales"] == [0.25, 1e-3]
    first, second = np.array(content["errors"]["strips"]["errors"])
    assert (second[:, 0] < 0.1 * first[:, 0]).all()  # hardly any logits
    _, out, _ = run("analyze", found, "--json", "--layers", "1")
    assert json.loads(out)["scales"] == [1e-3]


def test_json_and_pictures(run, file, tmp_path):
    pytest.importorskip("matplotlib")
    folder = tmp_path / "new" / "pictures"
    code, out, _ = run("analyze", file(), "--json", "--plot", str(folder), "--tol", "0.3")
    assert code == 0
    content = json.loads(out)
    assert content["layers"] == [0, 1]
    assert np.shape(content["kinds"]) == (2, 2)
    for curve in content["errors"].values():
        assert np.shape(curve["errors"]) == (2, 2, len(curve["settings"]))
        assert np.min(curve["errors"]) >= 0.0
    assert [entry["tol"] for entry in content["calibrated"]] == [0.05, 0.1, 0.22, 0.3, 0.5]
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["cost.png", "errors.png", "heads.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.iterdir())


BAD = np.full((2, 2, N, D), np.nan, np.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": None}, "no array key"),
        ({"query": BAD}, "query .* has NaN"),
        ({"query": np.ones((2, 2, N, D), int)}, "type int64"),
        ({"query": np.ones(3, np.float32)}, r"shape \(3,\)"),
        ({"key": np.ones((2, 1, N + 1, D), np.float32)}, "do not fit"),
        ({"value": np.ones((2, 2, N, D), np.float32)}, "do not fit"),
        ({"layers": np.array([3, 3])}, "2 distinct whole numbers"),
        ({"layers": np.array(["a", "b"])}, "2 distinct whole numbers"),
        ({"scale": np.ones(3)}, "one for each layer"),
        ({"scale": np.array("a")}, "expected a number"),
        ({"scale": np.array(-1.0)}, "finite positive"),
        ({name: np.ones((9, D)) for name in ("query", "key", "value")}, "at least 64"),
    ],
)
def test_bad_files(run, file, tmp_path, changes, message):
    folder = tmp_path / "pictures"
    code, out, err = run("analyze", file(**changes), "--json", "--plot", str(folder))
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert re.search(message, err)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "either FILE.npz or --model"),
        (("FILE", "--model", "."), "either FILE.npz or --model"),
        (("FILE", "--text", "x"), "--text goes with --model"),
        (("nothing.npz",), "does not exist"),
        (("FILE", "--layers", "5"), "not there"),
        (("FILE", "--layers", "3-1"), "expected layers"),
        (("FILE", "--n", "9999"), "too long"),
        (("FILE", "--tol", "-1"), "above 0"),
        (("--model", "."), "needs --text"),
    ],
)
def test_bad_arguments(run, file, arguments, message):
    path = file()
    code, out, err = run("analyze", *(path if part == "FILE" else part for part in arguments))
    assert (code, out) == (2, "")
    assert message in err


def test_a_file_that_is_no_archive(run, tmp_path):
    path = tmp_path / "heads.npz"
    path.write_bytes(b"something else")
    code, _, err = run("analyze", str(path))
    assert code == 2
    assert "cannot be read" in err
    np.save(tmp_path / "one.npy", np.ones(3))
    code, _, err = run("analyze", str(tmp_path / "one.npy"))
    assert code == 2
    assert "is not an .npz file" in err


def test_a_folder_that_is_a_file(run, file):
    path = file()
    code, out, err = run("analyze", path, "--plot", path)
    assert (code, out) == (2, "")
    assert "cannot make the folder" in err
