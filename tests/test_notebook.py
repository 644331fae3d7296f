"""examples/trust_regions.ipynb: what is committed is whole and clean; its cells do what the text says."""

import base64
import io
import json
import os
import re
from pathlib import Path

import matplotlib.image
import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "examples" / "trust_regions.ipynb"
LARGEST_FILE = 600_000
N_FIGURES = 8


@pytest.fixture(scope="module")
def committed():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    return notebook


def outputs(notebook):
    """All outputs with the id of their cell."""
    return [(cell.id, out) for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]


def shown(notebook, kind):
    """What was displayed in a format, with the id of the cell."""
    return [(cell, out.data[kind]) for cell, out in outputs(notebook) if kind in out.get("data", {})]


def printed(notebook):
    return "".join(out.text for _, out in outputs(notebook) if out.output_type == "stream")


def findings(notebook):
    """The rows of the last table, by name."""
    _, table = shown(notebook, "text/markdown")[-1]
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.splitlines()[2:]]
    return {name: value == "True" if value in ("True", "False") else float(value) for name, value in rows}


def check_figures(notebook):
    """Each is a picture with something in it."""
    figures = shown(notebook, "image/png")
    assert len(figures) == N_FIGURES
    for cell, encoded in figures:
        picture = matplotlib.image.imread(io.BytesIO(base64.b64decode(encoded)), format="png")
        assert min(picture.shape[:2]) > 200, cell
        assert picture[..., :3].std() > 0.05, cell


def check_findings(found):
    """What the text claims."""
    assert found["REINFORCE: KL of many steps"] > 10 * found["REINFORCE: KL of one step"] > 0
    assert 0 < found["gain of the gradient's direction, share of the natural one's"] < 0.9
    assert found["NPG: KL of the step"] > 1.5 * found["NPG: KL that was asked for"]
    assert found["all updates saw the same rollout"]
    assert found["cosine of TRPO's step and NPG's"] > 0.999
    assert 0 < found["TRPO: largest KL in units of its limit"] <= 1
    assert 0 < found["TRPO: largest KL of all training"] <= 0.01
    assert found["PPO: KL without"] > 10 * found["PPO: KL with the clip"] > 0
    assert found["PPOPenalty: beta went up after each KL too high"]
    assert found["PPOPenalty: beta went down after each KL too low"]
    assert 0.3 < found["PPOPenalty: mean KL in units of the target"] < 3


def test_the_quick_form_runs_and_shows_what_the_text_claims(committed, tmp_path, monkeypatch):
    monkeypatch.setenv("SB3_TRUST_QUICK", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))  # no kernel of the user's own
    notebook = nbformat.from_dict(json.loads(json.dumps(committed)))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    )
    client.execute()  # raises where a cell does
    assert "5 runs, 10 batches" in printed(notebook)
    check_figures(notebook)
    check_findings(findings(notebook))
    # nothing is shown in one form and not in the other
    assert [cell for cell, _ in shown(notebook, "image/png")] == [
        cell for cell, _ in shown(committed, "image/png")
    ]
    assert findings(notebook).keys() == findings(committed).keys()


def test_what_is_committed_is_one_full_run(committed):
    cells = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert "25 runs" in printed(committed)
    check_figures(committed)
    check_findings(findings(committed))


def test_what_is_committed_names_no_machine_and_has_no_noise(committed):
    assert NOTEBOOK.stat().st_size < LARGEST_FILE
    for cell, out in outputs(committed):
        assert out.output_type in ("display_data", "stream"), cell
        assert out.output_type != "stream" or out.name == "stdout", cell
    assert set(committed.metadata) == {"kernelspec", "language_info"}
    assert not any(cell.metadata for cell in committed.cells)
    text = re.sub(r'"image/png": "[^"]*"', "", NOTEBOOK.read_text())
    paths = ["/home/", "/root", "/tmp/", "/work/", "/usr/", "C:\\", "site-packages"]
    noise = ["it/s", "Warning", "Traceback", "%|"]
    assert not [word for word in [*paths, *noise] if word in text]


def test_links_of_the_text_lead_somewhere(committed):
    text = "\n".join(cell.source for cell in committed.cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(([^)\s#]+)", text)
    assert len(links) >= 3
    assert not [link for link in links if "://" not in link and not (NOTEBOOK.parent / link).exists()]
