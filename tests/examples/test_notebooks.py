"""The committed notebooks are what make_notebooks.py makes of the examples, and their code runs."""

import codeop
import sys
import types
from pathlib import Path

import nbformat
import pytest

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

import make_notebooks


@pytest.mark.parametrize("name", make_notebooks.SMALL)
def test_a_notebook_is_its_example(name):
    path = make_notebooks.NOTEBOOKS / f"{name}.ipynb"
    committed = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(committed)
    assert committed.nbformat == 4
    assert path.stat().st_size < make_notebooks.LARGEST_BYTES
    have = [(c.cell_type, c.source) for c in committed.cells]
    assert have == [tuple(c) for c in make_notebooks.notebook_cells(name)], "run examples/make_notebooks.py --execute"


@pytest.mark.parametrize("name", make_notebooks.SMALL)
def test_a_notebook_shows_what_it_printed_and_drew(name):
    committed = nbformat.read(make_notebooks.NOTEBOOKS / f"{name}.ipynb", as_version=4)
    outputs = [o for c in committed.cells if c.cell_type == "code" for o in c.outputs]
    assert not [o for o in outputs if o.output_type == "error"]
    assert [o for o in outputs if "image/png" in o.get("data", {})]
    assert "".join(o.text for o in outputs if o.output_type == "stream").strip()


def test_no_notebook_is_left_without_an_example():
    assert {p.stem for p in make_notebooks.NOTEBOOKS.glob("*.ipynb")} == set(make_notebooks.SMALL)


def test_the_code_of_a_notebook_runs(capsys, monkeypatch):
    """Cell by cell as a kernel does, but for the last one, which displays; `main` is called with fewer placements."""
    monkeypatch.setitem(
        make_notebooks.SMALL, "hosting_capacity", ["--feeder", "ieee123", "--placements", "8", "--check", "1"]
    )
    module = types.ModuleType("notebook_under_test")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(sys, "path", list(sys.path))
    compiler = codeop.Compile()  # remembers `from __future__` from one cell to the next
    code = [c.source for c in make_notebooks.notebook_cells("hosting_capacity") if c.kind == "code"]
    for i, source in enumerate(code[:-1]):
        exec(compiler(source, f"cell {i}", "exec"), module.__dict__)
    assert "1 of 1 the same limit" in capsys.readouterr().out
    assert (Path(module.out) / "hosting_capacity_ieee123.png").exists()


SCRIPT = '''\
"""What it does.

More words.
"""

# %% [markdown]
# # Title
# A formula: $x_1$
#
# - a list

# %% imports
import math


# %%
def main(argv):
    return math.prod(map(int, argv[:2]))


if __name__ == "__main__":
    raise SystemExit(main(None))
'''


def test_cells_of_a_script(tmp_path, monkeypatch):
    (tmp_path / "tiny.py").write_text(SCRIPT)
    monkeypatch.setattr(make_notebooks, "EXAMPLES", tmp_path)
    monkeypatch.setattr(make_notebooks, "SMALL", {"tiny": ["6", "7"]})
    cells = make_notebooks.notebook_cells("tiny")
    assert [c.kind for c in cells] == ["markdown", "markdown", "code", "code", "markdown", "code", "code"]
    assert cells[0].source == "What it does.\n\nMore words."
    assert cells[1].source == "# Title\nA formula: $x_1$\n\n- a list"
    assert cells[2].source == "import math"
    assert cells[3].source.startswith("def main(argv):") and "__main__" not in cells[3].source
    assert cells[5].source.endswith('main(["6", "7", "--out", out])')


def test_a_script_that_imports_what_lies_beside_it_finds_it(tmp_path, monkeypatch):
    (tmp_path / "tiny.py").write_text(SCRIPT.replace("import math", "import math\n\nfrom parts import pi"))
    (tmp_path / "parts.py").write_text("pi = 3\n")
    monkeypatch.setattr(make_notebooks, "EXAMPLES", tmp_path)
    monkeypatch.setattr(make_notebooks, "SMALL", {"tiny": []})
    code = [c.source for c in make_notebooks.notebook_cells("tiny") if c.kind == "code"]
    assert make_notebooks.SIBLINGS in code[0]
    own = (
        "import sys\nfrom pathlib import Path\n\nsys.path.insert(0, str(Path(__file__).resolve().parent))\nimport parts"
    )
    (tmp_path / "tiny.py").write_text(SCRIPT.replace("import math", own))
    code = [c.source for c in make_notebooks.notebook_cells("tiny") if c.kind == "code"]
    assert code[0].split("\n")[3] == make_notebooks.SIBLINGS and "__file__" not in "".join(code)


def test_what_cannot_become_a_notebook_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(make_notebooks, "EXAMPLES", tmp_path)
    monkeypatch.setattr(make_notebooks, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(make_notebooks, "SMALL", {"tiny": []})
    assert make_notebooks.main(["nothing"]) == 1
    assert "'nothing'" in capsys.readouterr().err
    (tmp_path / "tiny.py").write_text("# %%\nx = 1\n")
    assert make_notebooks.main([]) == 1
    assert "tiny.py: its last cell" in capsys.readouterr().err
    (tmp_path / "tiny.py").write_text("# %% [markdown]\n# a\nb = 1\n")
    assert make_notebooks.main([]) == 1
    assert "'b = 1'" in capsys.readouterr().err
    (tmp_path / "tiny.py").write_text(SCRIPT.replace("math.prod", "__file__ + "))
    assert make_notebooks.main([]) == 1
    assert "no __file__" in capsys.readouterr().err
    assert not list((tmp_path / "notebooks").iterdir())


def test_outputs_stay_where_the_code_is_unchanged(tmp_path, monkeypatch):
    (tmp_path / "tiny.py").write_text(SCRIPT)
    monkeypatch.setattr(make_notebooks, "EXAMPLES", tmp_path)
    monkeypatch.setattr(make_notebooks, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(make_notebooks, "SMALL", {"tiny": ["6", "7"]})
    path = tmp_path / "tiny.ipynb"

    def results():
        cells = nbformat.read(path, as_version=4).cells
        return [o.data["text/plain"] for c in cells if c.cell_type == "code" for o in c.outputs]

    assert make_notebooks.main([]) == 0
    made = nbformat.read(path, as_version=4)
    result = nbformat.v4.new_output("execute_result", {"text/plain": "42"}, execution_count=1)
    made.cells[5].outputs, made.cells[5].execution_count = [result], 1
    nbformat.write(made, path)
    (tmp_path / "tiny.py").write_text(SCRIPT.replace("More words.", "Other words."))
    assert make_notebooks.main([]) == 0 and results() == ["42"]
    (tmp_path / "tiny.py").write_text(SCRIPT.replace("argv[:2]", "argv[:1]"))
    assert make_notebooks.main([]) == 0 and results() == []
