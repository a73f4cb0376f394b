"""docs/tutorial.ipynb: its cells run in their order, and it carries no outputs."""

import ast
import json

import pytest
import torch

import fz


@pytest.fixture(scope="module")
def notebook(root):
    return json.loads((root / "docs" / "tutorial.ipynb").read_text(encoding="utf-8"))


def test_it_carries_no_outputs(notebook):
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(code) >= 8 and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert notebook["nbformat"] == 4 and len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])


def test_its_cells_run(notebook, monkeypatch, tmp_path):
    """As a kernel does it: in one namespace, the last expression of a cell is shown. Smaller than in the notebook."""
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    names, shown = {}, []
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        source = "".join(cell["source"]).replace("frames=4", "frames=2").replace("steps=10", "steps=4")
        tree = ast.parse(source)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "tutorial", "exec"), names)
        shown.append(eval(compile(ast.Expression(last.value), "tutorial", "eval"), names) if last else None)
    html = [value._repr_html_() for value in shown if hasattr(value, "_repr_html_")]
    assert len(html) == 3 and all("data:image/gif;base64," in text for text in html)
    assert isinstance(names["inversion"], fz.InvertedClip) and names["where"].shape[0] == 2 and len(names["seen"]) == 4
    assert names["mask"].any() and not names["mask"].all()
    assert list(tmp_path.iterdir()) == []
