"""What the documents promise: each row of the table of tools names tests that are there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = ROOT / "docs" / "scikit_learn.md"
LINKS = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", TOOLS.read_text())


@pytest.mark.parametrize(("path", "name"), LINKS)
def test_each_tool_has_the_test_that_the_table_names(path, name):
    tests = [node.name for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.FunctionDef)]
    assert any(test.startswith(name or "test_") for test in tests)


def test_each_row_of_the_table_names_a_test():
    rows = [line for line in TOOLS.read_text().splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 35
    assert all("`tests/" in row for row in rows)
