"""Imports run one way, and importing does nothing else."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gridjax"
# What a module (or folder) of gridjax may import from gridjax; everything else may import anything below it.
ALLOWED = {
    "feeder": set(),
    "namespace": set(),
    "extremes": set(),
    "line_constants": {"namespace"},
    "partition": set(),
    "description": {"feeder", "line_constants"},
    "admittance": {"description", "line_constants", "feeder", "namespace"},
    "generation": {"feeder", "namespace"},
    "graph": {"feeder"},
    "consistency": {"feeder", "graph"},
    "validate": {"feeder", "graph", "consistency"},
    "profiles": {"grid"},
    "io": {"feeder", "admittance", "description", "generation", "grid", "io", "profiles", "validate"},
    "feeders": {"feeder", "io"},
    "powerflow.injections": {"feeder", "namespace"},
    "layout": {"feeder", "admittance", "generation", "partition", "powerflow.injections"},
    "branches": {"feeder", "admittance", "layout", "namespace"},
    "junctions": {"branches", "layout", "namespace"},
    "tree": {"layout", "namespace", "partition"},
    "grid": {"branches", "junctions", "layout", "powerflow.injections", "tree"},
    "native": {"grid", "powerflow", "powerflow.injections"},
    "powerflow": {"extremes", "grid", "native", "powerflow", "powerflow.injections", "branches", "namespace"},
    "assembly": {
        *("feeder", "admittance", "branches", "grid", "junctions", "layout", "namespace", "tree", "validate"),
        *("powerflow", "powerflow.injections"),
    },
    "control": {
        *("feeder", "admittance", "branches", "control", "description", "generation", "grid", "layout", "namespace"),
        "powerflow",
    },
    "variation": {"namespace"},
    "weather": {"variation"},
    "customers": {"control", "variation", "weather"},
    "days": {"customers", "feeder", "generation", "graph", "grid", "profiles", "variation", "weather"},
    "series": {"control", "extremes", "grid", "powerflow", "profiles"},
    "env": {
        *("assembly", "control", "customers", "days", "env", "extremes", "feeder", "feeders", "graph", "grid"),
        *("namespace", "powerflow", "profiles"),
    },
}
# What agents see of gridjax: the environment contract and data sets (all of `env`), and what commands are made of.
SEEN = {"env", "feeder", "commands", "dataset_commands", "drawing"}
ROOTS = ("gridjax", "algorithms", "federated")


def imported(path, package="gridjax"):
    """Names of a package's modules that a file imports, and the other packages."""
    inside, outside = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{a.name}" for a in node.names] if node.module == package else [node.module]
        for name in names:
            head, _, rest = name.partition(".")
            (inside if head == package else outside).add(rest if head == package else head)
    return inside, outside


def place(module):
    """The entry of ALLOWED that a module's dotted name falls under."""
    return next((m for m in (module, module.split(".")[0]) if m in ALLOWED), None)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows(path):
    module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
    inside, outside = imported(path)
    if module != "__main__":
        assert not outside & {"algorithms", "federated"}
    mine = place(module)
    if mine is not None and module != "__init__":
        for name in inside:
            assert place(name) in ALLOWED[mine] | {mine}, f"{module} imports gridjax.{name}"


@pytest.mark.parametrize("path", sorted((ROOT / "algorithms").rglob("*.py")), ids=lambda p: p.stem)
def test_agents_see_data_sets_and_the_environment_contract(path):
    inside, outside = imported(path)
    assert {name.split(".")[0] for name in inside} <= SEEN
    assert "federated" not in outside


@pytest.mark.parametrize("path", sorted((ROOT / "federated").rglob("*.py")), ids=lambda p: p.stem)
def test_the_federation_knows_no_agent(path):
    """An agent is a module with a `Config` and an `update`; `agents` has them all."""
    names = {name.split(".")[0] for name in imported(path, "algorithms")[0]}
    files = {p.stem: p.read_text() for p in (ROOT / "algorithms").glob("*.py")}
    agents = {name for name, text in files.items() if "\nclass Config" in text and "\ndef update(" in text}
    assert "iql" in agents and not names & (agents | {"agents"})


@pytest.mark.parametrize("root", ROOTS)
def test_packages_import_no_benchmark_and_no_test(root):
    for path in (ROOT / root).rglob("*.py"):
        assert not imported(path)[1] & {"benchmarks", "tests", "examples"}, path


def test_importing_sets_no_flag_and_loads_no_plotting():
    code = (
        "import sys, jax, gridjax, gridjax.plot\n"
        "assert not jax.config.jax_enable_x64\n"
        "assert 'matplotlib' not in sys.modules and 'dss' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
