"""Makes notebooks/NAME.ipynb from the example scripts in percent format.

    python examples/make_notebooks.py                       # all of them, outputs kept where the code is unchanged
    python examples/make_notebooks.py --execute NAME ...    # run as well; needs the extra `notebook`

Comment cells (`# %% [markdown]`) become Markdown, code cells stay as they are. The last cell, which calls `main` when
the script is run, becomes a call with the small settings of `SMALL` into a temporary folder, and a cell that shows
the pictures written there.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from pathlib import Path
from typing import NamedTuple

import nbformat

EXAMPLES = Path(__file__).parent
NOTEBOOKS = EXAMPLES / "notebooks"
LARGEST_BYTES = 300_000
# Arguments with which a notebook calls the example's `main`, beside --out: a minute or two on a laptop.
SMALL = {
    "volt_var_dispatch": ["--feeder", "ieee123", "--scenarios", "64", "--checked", "4", "--scipy", "0"],
    "droop_tuning": ["--train-days", "1", "--test-days", "1", "--steps", "10", "--batch", "24", "--chunk", "288"],
    "line_estimation": ["--feeder", "ieee13", "--steps", "24", "--scenarios", "20"],
    "state_estimation": ["--feeder", "ieee13", "--scenarios", "25"],
    "hosting_capacity": ["--feeder", "ieee123", "--placements", "500", "--chunk", "250", "--check", "3"],
}
SIBLINGS = 'sys.path.insert(0, "..")  # modules that lie beside the examples'
SHOW = """\
from IPython.display import Image, display

for picture in sorted(Path(out).glob("*.png")):
    display(Image(filename=str(picture)))"""


class Cell(NamedTuple):
    """One cell of a script: "markdown" or "code", and its text."""

    kind: str
    source: str


def split_cells(text: str, name: str) -> list[Cell]:
    """The cells of a script in percent format; text before the first marker is a cell as well.

    Raises:
      ValueError: a line of a Markdown cell is no comment.
    """
    cells = []
    parts = re.split(r"^# %%(.*)\n", "# %%\n" + text, flags=re.MULTILINE)
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        body = body.strip("\n")
        if not body.strip():
            continue
        if "[markdown]" in title:
            lines = body.split("\n")
            wrong = next((line for line in lines if line.strip() and not line.startswith("#")), None)
            if wrong is not None:
                raise ValueError(f"{name}: {wrong!r} stands in a Markdown cell: begin it with '# ' or with '# %%'")
            cells.append(Cell("markdown", "\n".join(re.sub(r"^# ?", "", line) for line in lines).strip("\n")))
        else:
            cells.append(Cell("code", body))
    return cells


def only_docstring(source: str) -> str | None:
    """The text of a cell that is nothing but a string, else None."""
    body = ast.parse(source).body
    if len(body) == 1 and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        value = body[0].value.value
        return value.strip() if isinstance(value, str) else None
    return None


def imports_sibling(cells: list[Cell]) -> bool:
    """Whether the code imports a module or folder that lies beside the examples."""
    beside = {p.stem for p in EXAMPLES.iterdir() if p.suffix == ".py" or (p.is_dir() and any(p.glob("*.py")))}
    for cell in cells:
        for node in ast.walk(ast.parse(cell.source)) if cell.kind == "code" else ():
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            if beside & {n.partition(".")[0] for n in names}:
                return True
    return False


def notebook_cells(name: str) -> list[Cell]:
    """The cells of an example's notebook.

    Raises:
      ValueError: the example is unknown or does not end with `if __name__ == "__main__":`.
    """
    path = EXAMPLES / f"{name}.py"
    if name not in SMALL or not path.exists():
        raise ValueError(f"no notebook is made of {name!r}: choose from {', '.join(SMALL)}")
    cells = split_cells(path.read_text(), path.name)
    text = only_docstring(cells[0].source) if cells[0].kind == "code" else None
    if text is not None:
        cells[0] = Cell("markdown", text)
    *cells, last = cells
    before, found, _ = last.source.partition('if __name__ == "__main__":')
    if not found:
        raise ValueError(f'{path.name}: its last cell must be the one with `if __name__ == "__main__":`')
    if before.strip():
        cells.append(Cell("code", before.strip("\n")))
    # A notebook has no __file__, and lies one folder below its script.
    cells = [
        c._replace(source=re.sub(r"^sys\.path\.insert\(0, .*__file__.*$", SIBLINGS, c.source, flags=re.M))
        for c in cells
    ]
    for cell in cells:
        if cell.kind == "code" and re.search(r"\b__file__\b", cell.source):
            raise ValueError(f"{path.name}: a notebook has no __file__: use it in sys.path.insert(0, ...) only")
    if imports_sibling(cells) and not any(SIBLINGS in c.source for c in cells):
        cells.insert(
            next(i for i, c in enumerate(cells) if c.kind == "code"),
            Cell("code", f"import sys\n\n{SIBLINGS}"),
        )
    arguments = ", ".join(f'"{a}"' for a in SMALL[name])
    call = f'import tempfile\nfrom pathlib import Path\n\nout = tempfile.mkdtemp()\nmain([{arguments}, "--out", out])'
    settings = "## Run it\n\nSmall settings; the script's defaults are larger."
    return [*cells, Cell("markdown", settings), Cell("code", call), Cell("code", SHOW)]


def make(name: str) -> nbformat.NotebookNode:
    """The notebook of an example, without outputs."""
    new = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    cells = [new[c.kind](c.source, id=f"{name}-{i}".replace("_", "-")) for i, c in enumerate(notebook_cells(name))]
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)


def keep_outputs(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Takes the outputs of the notebook at `path`, if all code is the same."""
    if not path.exists():
        return
    old = nbformat.read(path, as_version=4)
    code, was = ([c for c in n.cells if c.cell_type == "code"] for n in (notebook, old))
    if [c.source for c in code] == [c.source for c in was]:
        for cell, other in zip(code, was, strict=True):
            cell.outputs, cell.execution_count = other.outputs, other.execution_count


def execute(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Runs the notebook in a kernel; keeps results, tables and pictures, but not progress or timestamps."""
    import nbclient

    metadata = dict(notebook.metadata)
    client = nbclient.NotebookClient(
        notebook, timeout=1800, record_timing=False, resources={"metadata": {"path": str(NOTEBOOKS)}}
    )
    client.execute()
    notebook.metadata = nbformat.from_dict(metadata)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            for output in cell.outputs:
                if output.output_type == "stream":
                    output.text = re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", output.text)  # a terminal's colours
    return notebook


def main(argv: list[str] | None = None) -> int:
    """Writes the notebooks; 1 if one cannot be made, fails, or is too large."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help=f"examples (default: {', '.join(SMALL)})")
    parser.add_argument("--execute", action="store_true", help="run them and keep the outputs")
    options = parser.parse_args(argv)
    NOTEBOOKS.mkdir(exist_ok=True)
    for name in options.names or SMALL:
        path = NOTEBOOKS / f"{name}.ipynb"
        try:
            notebook = make(name)
        except ValueError as problem:
            print(problem, file=sys.stderr)
            return 1
        if options.execute:
            print(f"running {name} ...", flush=True)
            try:
                execute(notebook)
            except Exception as problem:  # the kernel's errors have no common base
                print(f"{name}: {problem}", file=sys.stderr)
                return 1
        else:
            keep_outputs(notebook, path)
        nbformat.validate(notebook)
        text = nbformat.writes(notebook) + "\n"
        if len(text.encode()) > LARGEST_BYTES:
            print(f"{name}: {len(text)} bytes: make its pictures smaller or its settings in SMALL", file=sys.stderr)
            return 1
        path.write_text(text)
        print(f"{path}: {len(notebook.cells)} cells, {len(text.encode()) / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
