"""The tutorial runs from top to bottom, and shows what its text speaks of."""

import ast
import os
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from ipykernel.kernelspec import write_kernel_spec
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tutorial.ipynb"
PROBE = """
import sys
found = {"seeds": seeds, "costs": costs, "results": results, "folded": pd.DataFrame(folded)}
print({"python": sys.executable} | {name: frame.to_dict("list") for name, frame in found.items()})
"""


def read():
    return nbformat.read(NOTEBOOK, as_version=nbformat.NO_CONVERT)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """What each code cell gave, by its id, and the cell `probe` after them.

    The kernel is the interpreter that runs the tests, whatever kernels the user has; it works in an empty folder.
    """
    notebook = read()
    notebook.cells.append(nbformat.v4.new_code_cell(PROBE, id="probe"))
    jupyter, place = tmp_path_factory.mktemp("jupyter"), tmp_path_factory.mktemp("place")
    write_kernel_spec(jupyter / "kernels" / "python3")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("JUPYTER_PATH", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "TMPDIR"):
            patch.setenv(name, str(jupyter))
        patch.delenv("MPLBACKEND", raising=False)
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(place)}}).execute()
    assert not list(place.iterdir())
    return {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


@pytest.fixture(scope="module")
def found(outputs):
    """The tables of the notebook, and its interpreter."""
    return ast.literal_eval(text(outputs["probe"]))


def text(outputs):
    """What a cell printed; the kernel sends it in as many pieces as its load has it."""
    return "".join(output.get("text", "") for output in outputs)


def kinds(outputs):
    """MIME types of what a cell shows."""
    return {kind for output in outputs for kind in output.get("data", {})}


def test_it_is_kept_without_outputs():
    notebook = read()
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}
    }
    for cell in notebook.cells:
        assert cell.metadata == {}
        assert cell.cell_type == "markdown" or (cell.outputs, cell.execution_count) == ([], None)


def test_every_cell_runs_without_a_warning(outputs, found):
    assert Path(found["python"]) == Path(sys.executable)
    said = [output for cell in outputs.values() for output in cell if output.output_type == "stream"]
    assert not [output.text for output in said if "Warning" in output.text]


def test_the_tables_and_the_pictures_are_there(outputs):
    for cell in ("seed-table", "costs", "compare", "compare-means", "cross-validation"):
        assert "text/html" in kinds(outputs[cell]), cell
    assert "image/png" in kinds(outputs["extremes"])
    assert "untrained" in text(outputs["run"])
    assert "metrics.json" in text(outputs["folder"])
    assert "AUROC on digits" in text(outputs["report"])


def test_the_detector_is_above_its_control_on_one_digit_and_below_on_another(found):
    gains = pd.DataFrame(found["seeds"]).groupby("digit")["gain"]
    assert gains.min()[3] > 0.1
    assert gains.max()[1] < -0.1


def test_a_control_has_learned_nothing_that_it_is_compared_with(found):
    results = pd.DataFrame(found["results"])
    assert len(results) == 12
    gains = results.groupby("method")["gain"].mean()
    assert gains[["knn", "ae_dense"]].min() > 0.1
    assert (results["AUROC"] != results["untrained"]).all()


def test_folds_are_scored_with_the_right_sign(found):
    folds = pd.DataFrame(found["folded"])
    assert folds.shape == (3, 3)
    assert folds["knn"].min() > 0.8
    assert (folds["ae_dense"] != folds["ae_dense, untrained"]).all()


def test_a_higher_threshold_has_fewer_false_alarms_and_more_misses(found):
    costs = pd.DataFrame(found["costs"])
    assert costs["false alarms"].is_monotonic_decreasing
    assert costs["misses"].is_monotonic_increasing
    assert costs["misses"].between(0, 1, inclusive="neither").any()
