import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / 'notebooks').glob('*.ipynb'))


def _bare_python(folder: pathlib.Path) -> str:
  """A Python that has what is installed here but for the project itself, which is not on its path either."""
  subprocess.run([sys.executable, '-m', 'venv', '--without-pip', folder], check=True)
  scheme = {'base': str(folder), 'platbase': str(folder)}
  own = pathlib.Path(sysconfig.get_path('purelib', vars=scheme))
  # Folders alone: what is installed as editable is a file of such lines, which is not followed from here.
  shared = {sysconfig.get_path(which) for which in ('purelib', 'platlib')}
  (own / 'shared.pth').write_text('\n'.join(shared))
  return sysconfig.get_path('scripts', vars=scheme) + '/python'


def _clone(folder: pathlib.Path) -> None:
  """What is installed from, as `git clone` leaves it in a folder."""
  kept = folder / 'fracbits_jax'
  kept.mkdir(parents=True)
  shutil.copytree(ROOT / 'fracbits_jax', kept / 'fracbits_jax', ignore=shutil.ignore_patterns('__pycache__'))
  shutil.copytree(ROOT / 'configs', kept / 'configs', ignore=shutil.ignore_patterns('__pycache__'))
  for name in ('setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE'):
    shutil.copy(ROOT / name, kept)


# The cells run in a process of their own, so only what Jupyter's packages warn about each other is passed over here.
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_from_top_to_bottom_in_an_empty_folder_with_a_clone(path, tmp_path, monkeypatch):
  import nbclient
  import nbformat
  from ipykernel import kernelspec

  # A kernel that knows nothing of this checkout, under the name in the notebook, whatever kernels the user has.
  spec = kernelspec.write_kernel_spec(tmp_path / 'jupyter' / 'kernels' / 'python3')
  kernel = pathlib.Path(spec, 'kernel.json')
  kernel.write_text(kernel.read_text().replace(sys.executable, _bare_python(tmp_path / 'python')))
  monkeypatch.setenv('JUPYTER_PATH', str(tmp_path / 'jupyter'))
  monkeypatch.setenv('IPYTHONDIR', str(tmp_path / 'ipython'))
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  # It computes more than it compiles: what the other tests run without any optimization takes it twice as long.
  flags = os.environ['XLA_FLAGS'].replace('backend_optimization_level=0', 'backend_optimization_level=1')
  monkeypatch.setenv('XLA_FLAGS', flags)
  monkeypatch.delenv('PYTHONPATH', raising=False)
  folder = tmp_path / 'content'
  _clone(folder)
  notebook = nbformat.read(path, as_version=4)
  assert all(not cell.get('outputs') for cell in notebook.cells), 'outputs are not kept in the repository'
  where = 'import fracbits_jax; print("installed in", fracbits_jax.__file__)'
  notebook.cells.append(nbformat.v4.new_code_cell(where))
  nbclient.NotebookClient(notebook, timeout=300, resources={'metadata': {'path': str(folder)}}).execute()
  said = '\n'.join(o.get('text', '') for cell in notebook.cells for o in cell.get('outputs', []))
  assert str(tmp_path / 'python') in said.split('installed in ')[1]
  percent = {
    line.split(':')[0]: float(line.split(': ')[1].rstrip('%'))
    for line in said.splitlines()
    if line.endswith('%') and line.split(':')[0] in ('float', 'with integers')
  }
  assert percent['float'] > 90
  assert percent['with integers'] > percent['float'] - 5
  ratio = float(said.split('cost / target ')[1].split()[0])
  assert 0.9 < ratio <= 1
  assert (folder / 'digits.fracbits').stat().st_size < 40_000
