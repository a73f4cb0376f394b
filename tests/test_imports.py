"""The house: no import cycle, imports run downwards, files of readable length, functions of few parameters, and
settings that know nothing of torch.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HOMES = {"fz": ROOT / "fz", "fz.kernels": ROOT / "kernels", "fz.weights": ROOT / "weights"}
# from the bottom to the top; a module stands where its longest name here does, and imports nothing from above; 'x.*'
# are the modules within x but not x itself
FLOORS = (
    (
        "fz.words",
        "fz.errors",
    ),
    ("fz.frames", "fz.shell", "fz.records", "fz.whole", "fz.locks"),
    ("fz.settings",),
    ("fz.kernels", "fz.memory.free", "fz.tensors"),
    ("fz.clips", "fz.ranks"),
    ("fz.model",),
    ("fz.prompts",),
    ("fz.weights",),
    ("fz.mini", "fz.mini.world", "fz.mini.things", "fz.mini.scenes", "fz.mini.styles", "fz.mini.words"),
    (
        "fz.ddim",
        "fz.solver",
        "fz.attention",
        "fz.denoiser",
        "fz.chunks",
        "fz.crossing",
        "fz.shard",
        "fz.masks",
        "fz.source",
        "fz.guidance",
        "fz.fusion",
        "fz.graphs",
    ),
    ("fz.edit", "fz.prompts.plan", "fz.prompts.describe", "fz.prompts.explain"),
    ("fz.baselines",),
    ("fz.memory", "fz.progress", "fz.clips.arrays"),
    ("fz.metrics", "fz.checkpoint", "fz.mini.data", "fz.mini.eye", "fz.mini.judged"),
    ("fz.results",),
    ("fz.loaded",),
    ("fz.stages", "fz.agreement", "fz.arguments", "fz.control", "fz.keys", "fz.program", "fz.saved", "fz.tuning"),
    ("fz.forecast",),
    ("fz.inverted",),
    ("fz.editor",),
    (
        "fz.pipeline",
        "fz.preflight",
    ),
    ("fz.queue",),
    ("fz.web.*",),
    ("fz.run", "fz.web", "fz.batch", "fz.tune", "fz.prompt", "fz.evaluate", "fz.report"),
    ("fz.sweep", "fz.completion", "fz.web.__main__", "fz.mini.*"),
    ("fz.__main__", "fz"),
)
# what a command line means without a checkpoint is the miniature's; a removal's words are compared as prompts' are
UPWARD = {
    ("fz.settings.parse", "fz.mini"),
}
MOST_LINES, MOST_PARAMETERS = 350, 7
MODULES = {
    ".".join([package, *path.relative_to(home).with_suffix("").parts]).removesuffix(".__init__"): path
    for package, home in HOMES.items()
    for path in home.rglob("*.py")
}


def imports(path, types=False):
    """The modules of the project that a file imports, inside functions too; what only type checkers see, if types."""
    found = set()

    def visit(node):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) and not types:
            return
        names = []
        if isinstance(node, ast.Import):
            names = [(alias.name, alias.name) for alias in node.names]
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [(f"{node.module}.{alias.name}", node.module) for alias in node.names]
        for full, module in names:
            found.update([full] if full in MODULES else [module] if module in MODULES else [])
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


@pytest.fixture(scope="module")
def graph():
    # fz/__init__ has names, its version and the way to the others: its own imports are lazy
    return {name: imports(path) - {"fz"} for name, path in MODULES.items()}


def floor(module):
    known = {name: number for number, names in enumerate(FLOORS) for name in names}
    parts = module.split(".")
    longest = [
        name for i in range(len(parts), 0, -1) for name in (".".join(parts[:i]), ".".join([*parts[: i - 1], "*"]))
    ]
    return next(known[name] for name in longest if name in known)


def cycle(graph):
    """The modules of some cycle, or nothing: what is left when modules that import none of the rest are taken away."""
    left = dict(graph)
    while free := [name for name, targets in left.items() if not targets & (left.keys() - {name})]:
        for name in free:
            del left[name]
    return sorted(left)


def test_no_cycle(graph):
    assert len(graph) > 90 and sum(map(len, graph.values())) > 300
    assert cycle(graph) == []
    # and one would be seen
    assert cycle(graph | {"fz.errors": {"fz.pipeline"}})


def test_what_type_checkers_import_makes_no_cycle_either():
    graph = {name: imports(path, types=True) - {"fz"} for name, path in MODULES.items()}
    assert cycle(graph) == []


def test_imports_run_downwards(graph):
    upward = {(name, target) for name, targets in graph.items() for target in targets if floor(target) > floor(name)}
    assert upward == UPWARD


def test_files_are_readable():
    paths = [path for home in ("fz", "kernels", "weights", "bench") for path in (ROOT / home).rglob("*.py")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    assert len(lengths) > 230 and {name: n for name, n in lengths.items() if n > MOST_LINES} == {}
    assert lengths["fz/edit.py"] < 200


def parameters(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            yield node.name, len([name for name in names if name not in ("self", "cls")])


def test_functions_have_few_parameters():
    many = {
        f"{name}.{function}": count
        for name, path in MODULES.items()
        if not name.startswith("fz.kernels")
        for function, count in parameters(path)
        if count > MOST_PARAMETERS
    }
    assert many == {}


def run_python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_run_imports_no_more_than_it_needs(tmp_path):
    """What takes longest to import of what transformers and torch bring is in no run."""
    heavy = ("torch._dynamo", "torch.distributed.tensor", "sympy", "transformers.models.clip.modeling_clip")
    run = f"main(['--dry-run', '--frames', '2', '--size', '64', '--threads', '1', '--out', {str(tmp_path / 'o')!r}])"
    code = f"import sys; from fz.run import main; assert {run} == 0"
    assert run_python(f"{code}; print([m for m in {heavy} if m in sys.modules])").strip().endswith("[]")


def test_settings_and_doors_know_nothing_of_torch():
    doors = [m for m in MODULES if floor(m) >= floor("fz.run") and not m.startswith("fz.mini")]
    light = [*doors, *(m for m in MODULES if m.startswith("fz.settings")), "fz.tuning.settings"]
    assert len(light) > 15
    names = [name for name in light if name != "fz.__main__"]
    out = run_python(
        f"import sys, {', '.join(names)}; print([m for m in ('torch', 'numpy', 'av') if m in sys.modules])"
    )
    assert out.strip() == "[]"


def test_importing_fz_takes_no_time():
    """In process time, the best of three: other programs can only make it longer."""
    code = "import time; start = time.process_time(); import fz; print(time.process_time() - start)"
    assert min(float(run_python(code)) for _ in range(3)) < 0.05


def test_help_takes_no_time():
    code = (
        "import contextlib, io, time; start = time.process_time()\n"
        "with contextlib.redirect_stdout(io.StringIO()) as said:\n"
        "    from fz.__main__ import main; code = main(['--help'])\n"
        "assert code == 0 and 'evaluate' in said.getvalue(); print(time.process_time() - start)"
    )
    assert min(float(run_python(code)) for _ in range(3)) < 0.3
