"""What an installation may lack: the packages of the extras, and the sentence that names the extra to install.

`pip install fracbits_jax` brings what quantizers, layers, costs and policies need. Everything else imports its packages
within `needed`, so that whoever lacks one is told what to install, and every command shows its `--help` without them.
"""

import contextlib
from collections.abc import Iterator

# Extra of setup.cfg -> the names by which its packages are imported. One that two extras share belongs to the first.
EXTRAS = {
  'train': (
    'absl', 'ml_collections', 'orbax', 'safetensors', 'tensorflow_datasets', 'importlib_resources', 'grain', 'cv2',
    'PIL', 'sklearn', 'tensorboardX', 'matplotlib', 'fontTools',
  ),
  'onnx': ('onnx', 'onnxruntime'),
  'qonnx': ('qonnx',),
  'stablehlo': ('flatbuffers',),
  'litert': ('ai_edge_litert', 'tflite_micro'),
  'qwix': ('qwix',),
}  # fmt: skip
PACKAGES = {package: extra for extra, packages in EXTRAS.items() for package in packages}


class MissingExtra(ModuleNotFoundError, ValueError):
  """A package of an extra is missing: one sentence, which commands print as they print any other mistake."""


@contextlib.contextmanager
def needed(extra: str | None = None) -> Iterator[None]:
  """Makes of a package that is not there one sentence that names the extra to install.

      with extras.needed():
        import matplotlib

  Args:
    extra: where what is imported can be had; `None` for the extra of the package that is missing, as in `PACKAGES`.

  Raises:
    MissingExtra: in the place of the `ModuleNotFoundError` of a package.
  """
  try:
    yield
  except MissingExtra:
    raise
  except ModuleNotFoundError as error:
    package = (error.name or '').split('.')[0]
    found = extra or PACKAGES.get(package)
    if found is None or package in ('', 'fracbits_jax'):
      raise
    text = f"this needs the package {package}, which is not installed: pip install 'fracbits_jax[{found}]'"
    raise MissingExtra(text, name=error.name, path=error.path) from None
