import pathlib

import pytest

NOTEBOOKS = sorted((pathlib.Path(__file__).resolve().parents[1] / 'notebooks').glob('*.ipynb'))


# The cells run in a process of their own, so only what Jupyter's packages warn about each other is passed over here.
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
  import nbclient
  import nbformat
  from ipykernel import kernelspec

  # This interpreter under the name in the notebook, whatever kernels the user has installed.
  kernelspec.write_kernel_spec(tmp_path / 'jupyter' / 'kernels' / 'python3')
  monkeypatch.setenv('JUPYTER_PATH', str(tmp_path / 'jupyter'))
  monkeypatch.setenv('IPYTHONDIR', str(tmp_path / 'ipython'))
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  monkeypatch.setenv('PYTHONPATH', str(path.parents[1]))
  notebook = nbformat.read(path, as_version=4)
  assert all(not cell.get('outputs') for cell in notebook.cells), 'outputs are not kept in the repository'
  nbclient.NotebookClient(notebook, timeout=300, resources={'metadata': {'path': str(tmp_path)}}).execute()
  said = '\n'.join(o.get('text', '') for cell in notebook.cells for o in cell.get('outputs', []))
  percent = {
    line.split(':')[0]: float(line.split(': ')[1].rstrip('%'))
    for line in said.splitlines()
    if line.endswith('%') and line.split(':')[0] in ('float', 'with integers')
  }
  assert percent['float'] > 90
  assert percent['with integers'] > percent['float'] - 5
  ratio = float(said.split('cost / target ')[1].split()[0])
  assert 0.9 < ratio <= 1
  assert (tmp_path / 'digits.fracbits').stat().st_size < 40_000
