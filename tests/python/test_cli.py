"""The command: exit codes, output, pictures, and that `check` and `demo` can fail."""

import io
import json
import os
import struct
import subprocess
import sys

import numpy as np
import pytest

from convbasis import __version__, _core
from convbasis.cli import _cases, _files, _plain, _progress, _timing, check, demo

SMALL = ["demo", "--n", "512", "--head-dim", "16", "--num-bases", "3"]
PNG = b"\x89PNG\r\n\x1a\n"


def raising(error):
    """A function that only raises."""

    def function(*_):
        raise error

    return function


def strict(text):
    """JSON without NaN and infinity."""
    return json.loads(text, parse_constant=raising(AssertionError("not JSON")))


@pytest.fixture
def tamper(monkeypatch):
    """Multiply what a function of the core writes into its argument number `index`."""

    def spoil(name, index, factor):
        right = getattr(_core, name)

        def wrong(*arguments):
            result = right(*arguments)
            arguments[index][...] *= factor
            return result

        monkeypatch.setattr(_core, name, wrong)

    return spoil


@pytest.fixture
def only(monkeypatch):
    """Reduce `check` to some topics."""

    def choose(*titles):
        topics = [topic for topic in check.TOPICS if topic.title in titles]
        assert len(topics) == len(titles)
        monkeypatch.setattr(check, "TOPICS", topics)

    return choose


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(_timing, "PAUSE", 0.0)
    monkeypatch.setattr(_timing, "TURN", 0.0)


@pytest.fixture
def missing(monkeypatch):
    """Make imports of a package fail."""

    def remove(package):
        for name in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
            monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, "convbasis.cli._plot", raising=False)
        monkeypatch.delitem(sys.modules, "convbasis.cli._plot_panels", raising=False)

    return remove


class Terminal(io.StringIO):
    def isatty(self):
        return True


# --- the command itself ---------------------------------------------------------------------------
@pytest.mark.parametrize("command", [[], ["info"], ["check"], ["demo"]])
def test_help_has_examples(run, command):
    code, out, err = run(*command, "--help")
    assert (code, err) == (0, "")
    assert "examples:\n  convbasis " in out
    assert "usage: convbasis" in out


def test_no_command_prints_the_help_and_fails(run):
    code, out, err = run()
    assert (code, out) == (2, "")
    assert "usage: convbasis" in err
    assert "demo" in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["demonstrate"], "invalid choice: 'demonstrate'"),
        (["demo", "--n", "63"], "--n: expected an integer of at least 64, got '63'"),
        (["demo", "--n", "many"], "--n: expected an integer of at least 64, got 'many'"),
        (["demo", "--num-threads", "0"], "--num-threads: expected an integer of at least 1"),
        (["demo", "--seed", "-1"], "--seed: expected an integer of at least 0"),
        (["demo", "--dtype", "float16"], "invalid choice: 'float16'"),
        (["demo", "--n", "512", "--num-bases", "33"], "give at most 32, or a larger --n"),
        (["check", "--n", "3"], "unrecognized arguments: --n 3"),
        (["info", "--json=1"], "--json: ignored explicit argument '1'"),
    ],
)
def test_errors_are_one_line(run, arguments, told):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("convbasis: error: ")
    assert err.count("\n") == 1
    assert told in err


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (KeyboardInterrupt(), 130, ""),
        (MemoryError(), 2, "convbasis: error: there is not enough memory"),
        (OSError(28, "No space left on device"), 2, "No space left"),
    ],
)
def test_interruptions(run, monkeypatch, error, code, told):
    monkeypatch.setattr(demo, "solve", raising(error))
    got, out, err = run(*SMALL, "--no-plot")
    assert (got, out) == (code, "")
    assert told in err
    assert bool(err) == bool(told)


def test_a_reader_that_leaves_is_no_error():
    command = [sys.executable, "-m", "convbasis", "info"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


# --- info -----------------------------------------------------------------------------------------
def test_info_for_people(run):
    code, out, err = run("info")
    assert (code, err) == (0, "")
    assert out.startswith(f"convbasis {__version__}\n")
    for text in ("SIMD", "BLAS", "FFT", "CUDA", "cores", "C++20", np.__version__, "matplotlib"):
        assert text in out


def test_info_for_programs(run):
    code, out, _ = run("info", "--json")
    content = strict(out)
    assert code == 0
    assert content["version"] == __version__
    assert content["build"]["simd"] in content["build"]["simd_available"]
    assert content["cores"] == len(os.sched_getaffinity(0))
    assert {"matplotlib", "rich", "torch"} <= set(content["packages"])


# --- check ----------------------------------------------------------------------------------------
def test_check_passes(run):
    code, out, err = run("check")
    assert (code, err) == (0, ""), out
    lines = out.splitlines()
    assert len(lines) >= 13
    assert all(line.startswith("ok  ") for line in lines[:-1])
    assert lines[-1].startswith("all well: ")


def test_check_for_programs(run):
    code, out, _ = run("check", "--json", "--num-threads", "1")
    content = strict(out)
    assert (code, content["passed"], content["num_threads"]) == (0, True, 1)
    cases = [case for topic in content["topics"] for case in topic["cases"]]
    assert len(cases) > 100
    assert all(case["error"] <= case["budget"] <= 5e-4 for case in cases)


@pytest.mark.parametrize(
    ("name", "index", "factor", "topic"),
    [
        ("exact_attention", 3, 1 + 1e-6, "exact attention"),
        ("exact_attention", 3, 0.0, "half precision"),
        ("conv_attention", 3, 1 + 1e-6, "attention by strips"),
        ("conv_attention", 3, np.nan, "heavy logits"),
        ("attention_rows", 4, 1 + 1e-6, "error known"),
        ("recover_kernels", 4, 1 + 1e-6, "recovery"),
        ("conv_matmul", 5, 1 + 1e-6, "toeplitz_matmul"),
        ("row_sums", 4, 0.0, "row sums, deviation"),
    ],
)
def test_check_fails_on_a_wrong_core(run, only, tamper, name, index, factor, topic):
    only(topic, "decompose")
    tamper(name, index, factor)
    code, out, _ = run("check")
    assert code == 1
    assert f"FAIL  {topic}" in out
    assert "ok    decompose" in out
    assert "1 of 2 topics FAILED" in out


def test_check_survives_a_core_that_raises(run, only, monkeypatch):
    only("toeplitz_matmul", "decompose")
    monkeypatch.setattr(_core, "conv_matmul", raising(RuntimeError("out of order")))
    code, out, _ = run("check", "--json")
    topics = {topic["title"]: topic for topic in strict(out)["topics"]}
    assert code == 1
    assert topics["toeplitz_matmul"]["failure"] == "RuntimeError: out of order"
    assert topics["decompose"]["passed"]


@pytest.mark.parametrize("error", [np.nan, np.inf, 2e-11])
def test_a_case_fails_above_its_budget(error):
    assert not _cases.Case("", error, 1e-11).passed
    assert _cases.Case("", error, 1e-11).share > 1.0
    assert not _cases.Case("", 1.0, 0.0).passed


def test_relative_error_takes_the_worst_head():
    want = np.ones((3, 4, 2))
    got = want.copy()
    got[1] *= 1.5
    assert _plain.relative_error(got, want) == pytest.approx(0.5, rel=1e-15)
    assert _plain.relative_error(0 * want, want) == 1.0
    assert _plain.relative_error(got[:2], want) == np.inf
    assert _plain.relative_error(got * np.nan, want) == np.inf
    assert _plain.relative_error(got[:0], want[:0]) == 0.0


# --- demo -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("more", [[], ["--dtype", "float64", "--num-bases", "1", "--seed", "3"]])
def test_demo_writes_a_picture(run, tmp_path, more):
    pytest.importorskip("matplotlib")
    path = tmp_path / "picture.png"
    path.write_text("something older")
    code, out, err = run(*SMALL, *more, "--output", str(path))
    assert (code, err) == (0, ""), out
    picture = path.read_bytes()
    width, height = struct.unpack(">II", picture[16:24])
    assert picture.startswith(PNG)
    assert picture.endswith(b"IEND\xaeB`\x82")
    assert width > height > 1000
    assert [entry.name for entry in tmp_path.iterdir()] == ["picture.png"]
    assert "recovered, at the planted columns" in out
    assert "exact_attention" in out
    assert str(path) in out


def test_demo_for_programs(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(*SMALL, "--json", "--no-plot", "--num-threads", "2")
    content = strict(out)
    assert (code, content["passed"], content["picture"]) == (0, True, None)
    assert list(tmp_path.iterdir()) == []
    strips = content["strips"]
    assert strips["starts"] == strips["planted_starts"]
    assert strips["recovered"] == strips["planted"] == 3
    assert 0.0 < content["error"]["relative"]["conv_attention"] <= content["error"]["budget"] < 2e-6
    assert content["problem"]["num_threads"] == 2
    assert content["times_as_fast_as"]["exact_attention"] > 0.0
    assert content["report"]["num_bases"] == 3


@pytest.mark.parametrize(
    ("name", "factor", "told"),
    [
        ("conv_attention", 1 + 1e-5, "the error 1.0e-05 is above"),
        ("exact_attention", 1 + 1e-8, "exact_attention is off by 1.0e-08 in float64"),
    ],
)
def test_demo_fails_on_a_wrong_output(run, tamper, name, factor, told):
    tamper(name, 3, factor)
    code, out, _ = run(*SMALL, "--no-plot")
    assert code == 1
    assert f"FAILED    {told}" in out


def test_demo_fails_on_wrong_strips(run, monkeypatch):
    right = _core.recover_starts

    def wrong(*arguments):
        starts, *others = right(*arguments)
        starts[..., 1] += 1
        return starts, *others

    monkeypatch.setattr(_core, "recover_starts", wrong)
    code, out, _ = run(*SMALL, "--no-plot")
    assert code == 1
    assert "NOT at the planted columns" in out
    assert "FAILED    the recovered strips are not the planted ones" in out


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("missing/picture.png", "cannot write"),
        ("folder.png", "is not a file"),
        ("picture.jpg", "ends in .png"),
    ],
)
def test_demo_refuses_the_output_before_the_work(run, tmp_path, monkeypatch, name, told):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(demo, "solve", raising(AssertionError("the work has begun")))
    (tmp_path / "folder.png").mkdir()
    code, out, err = run(*SMALL, "--output", str(tmp_path / name))
    assert (code, out) == (2, "")
    assert err.startswith("convbasis: error: ")
    assert err.count("\n") == 1
    assert told in err
    assert "--output" in err


def test_a_failed_write_keeps_the_older_file(tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    path.write_text("something older")
    monkeypatch.setattr(os, "replace", raising(OSError(28, "No space left on device")))
    with pytest.raises(_files.CommandError, match="No space left on device; choose another"):
        _files.write(path, PNG)
    assert path.read_text() == "something older"
    assert [entry.name for entry in tmp_path.iterdir()] == ["picture.png"]


def test_a_link_stays_a_link(tmp_path):
    link = tmp_path / "link.png"
    link.symlink_to(tmp_path / "target.png")
    _files.write(_files.destination(str(link), ".png"), PNG)
    assert link.is_symlink()
    assert (tmp_path / "target.png").read_bytes() == PNG


def test_demo_goes_on_without_matplotlib(run, missing, tmp_path):
    missing("matplotlib")
    path = tmp_path / "picture.png"
    code, out, err = run(*SMALL, "--output", str(path))
    assert code == 0
    assert "result    all strips found" in out
    assert "pip install 'convbasis[cli]'" in err
    assert not path.exists()


def test_demo_times_torch_where_it_is_installed(run):
    pytest.importorskip("torch")
    content = strict(run(*SMALL, "--no-plot", "--json")[1])
    assert content["seconds"]["torch SDPA"]["runs"] >= 1
    assert 0.0 < content["error"]["relative"]["torch SDPA"] < 2e-6
    assert content["times_as_fast_as"]["torch SDPA"] > 0.0


# --- progress -------------------------------------------------------------------------------------
def test_progress_without_a_terminal_is_silent(capsys):
    with _progress.progress(2) as shown:
        shown.step("first")
        shown.line("a result")
    assert capsys.readouterr() == ("a result\n", "")


def test_progress_without_rich_is_a_line_a_stage(run, missing, monkeypatch):
    missing("rich")
    monkeypatch.setattr(sys, "stderr", Terminal())
    code, out, _ = run(*SMALL, "--no-plot", "--json")
    lines = sys.stderr.getvalue().splitlines()
    assert code == 0
    assert strict(out)["passed"]
    assert lines[0] == f"[1/{len(lines)}] building the problem"
    assert lines[-1].startswith(f"[{len(lines)}/{len(lines)}] timing, round")


def test_progress_with_rich_is_a_bar_that_leaves_results_alone(capsys, monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with _progress.progress(2) as shown:
        shown.step("first stage")
        shown.line("a result")
        shown.step("second stage")
    assert capsys.readouterr().out == "a result\n"
    drawn = sys.stderr.getvalue()
    assert "first stage" in drawn
    assert "second stage" in drawn
    assert "a result" not in drawn
