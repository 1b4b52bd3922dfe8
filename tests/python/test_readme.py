"""The README's examples do what the README says."""

import contextlib
import io
import re
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


EXAMPLES = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("example", range(3))
def test_examples_print_what_is_shown(example):
    code, text = EXAMPLES[example]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    assert printed.getvalue() == text != ""


def test_no_example_is_left_out():
    assert len(EXAMPLES) == README.count("```text") == 3


def test_both_commands_are_there():
    assert 'pip install ".[cli]" && .venv/bin/convbasis demo' in README
    assert 'pip install ".[test]" && .venv/bin/python -m pytest' in README


def test_local_links_lead_somewhere():
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert targets
    root = Path(__file__).resolve().parents[2]
    assert [target for target in targets if not (root / target).exists()] == []


def test_the_table_is_that_of_the_benchmark():
    rows = [line for line in README.splitlines() if line.startswith("| ")]
    assert any("conv_attention" in row for row in rows)
    assert any("SDPA" in row for row in rows)
    assert re.search(r"@[A-Z]+@", README) is None
