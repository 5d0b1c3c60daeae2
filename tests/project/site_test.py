import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_site_is_built_without_a_warning(tmp_path):
  """Skipped where the extra `docs` is not installed."""
  pytest.importorskip('sphinx')
  command = [sys.executable, '-m', 'sphinx', '-q', '-W', '--keep-going', 'docs', str(tmp_path / 'site')]
  built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
  assert built.returncode == 0, built.stderr[-4000:]
  page = (tmp_path / 'site' / 'settings.html').read_text()
  assert 'channel_bits_rate' in page
  assert 'reestimate_batches' in page
  assert 'href="studies.html"' in (tmp_path / 'site' / 'getting_started.html').read_text()
