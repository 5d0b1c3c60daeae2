"""How the documentation is built: `sphinx-build -W docs BUILD`, with nothing from the network."""

import inspect
import pathlib
import sys

import optax
from docutils import nodes
from docutils.utils.math import latex2mathml
from flax import linen as nn
from sphinx.domains.python import PyObject
from sphinx.util.typing import stringify_annotation

DOCS = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent), str(DOCS)]

import docstrings  # noqa: E402

import fracbits_jax  # noqa: E402
from fracbits_jax.run import usage  # noqa: E402

project = 'fracbits_jax'
author = project_copyright = 'the authors of fracbits_jax'
release = version = fracbits_jax.__version__

extensions = ['myst_nb', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx_copybutton']
exclude_patterns = ['_build', 'BUILD', '**.ipynb_checkpoints']
highlight_language = 'text'  # formulas, tables and command lines; Python says that it is Python
smartquotes_action = 'D'  # dashes; quotes stay as they are

myst_enable_extensions = ['dollarmath', 'colon_fence']
myst_heading_anchors = 3
nb_execution_mode = 'off'  # notebooks are run by the tests and come with their output

autodoc_default_options = {'members': True, 'member-order': 'bysource', 'special-members': '__call__'}
autodoc_typehints_format = 'short'
autodoc_preserve_defaults = True
add_module_names = False
python_maximum_signature_line_length = 88
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_attr_annotations = False  # signatures have them

html_theme = 'sphinx_book_theme'
html_title = 'fracbits_jax'
html_static_path = ['_static']
html_css_files = ['custom.css']
html_math_renderer = 'mathml'
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
  'use_download_button': False,
  'use_fullscreen_button': False,
  'show_toc_level': 2,
  'show_navbar_depth': 2,
  'navbar_persistent': [],  # the search field is in the side bar already
}


SCHEDULE = stringify_annotation(optax.Schedule, 'smart')  # a name says more


def _on_docstring(app, what, name, obj, options, lines) -> None:
  module = getattr(inspect.getmodule(obj), '__name__', '')
  module = module if module.startswith(docstrings.PACKAGE) else docstrings.PACKAGE
  lines[:] = docstrings.to_rst(lines, lambda code: docstrings.full_name(code, module))
  if what == 'property':
    lines[0] = lines[0].replace(':', docstrings.COLON)


def _after_napoleon(app, what, name, obj, options, lines) -> None:
  lines[:] = [line.replace(docstrings.COLON, ':') for line in lines]


def _on_signature(app, what, name, obj, options, signature, returns):
  if inspect.isclass(obj) and issubclass(obj, nn.Module):
    return docstrings.plain_signature(obj), None
  return tuple(text and text.replace(SCHEDULE, 'optax.Schedule') for text in (signature, returns))


def _skip_member(app, what, name, obj, skip, options) -> bool | None:
  borrowed = what == 'class' and inspect.isfunction(obj) and '.' not in obj.__qualname__
  return True if borrowed or (what == 'class' and name == 'setup') else None


def _on_include(app, path, parent, content) -> None:
  content[0] = content[0].replace('](benchmarks/README.md', '](docs/studies.md')  # the page that it is here


def _on_source(app, name, content) -> None:
  content[0] = content[0].replace('<!-- fields -->', _fields())


def _fields() -> str:
  """A table for each section of the configuration, read from `configs/base.py` as `--help` has it; phases come last."""
  rows: dict[str, list[str]] = {'The run': []}
  for name, default, meaning in usage.fields(DOCS.parent / 'configs'):
    section = f'`{name.split(".")[0]}`' if '.' in name else 'The run'
    cells = (f'`{name}`', default and f'`{default}`', meaning.replace('|', r'\|'))
    rows.setdefault(section, []).append(f'| {" | ".join(cells)} |')
  rows['`PHASE`'] = rows.pop('`PHASE`')
  head = ['| field | default | meaning |', '|---|---|---|']
  return '\n\n'.join('\n'.join([f'## {section}', '', *head, *found]) for section, found in rows.items())


def _visit_inline_math(translator, node) -> None:
  translator.body.append(latex2mathml.tex2mathml(node.astext()))
  raise nodes.SkipNode


def _visit_block_math(translator, node) -> None:
  formula = latex2mathml.tex2mathml(node.astext(), as_block=True)
  translator.body.append(f'<div class="formula">{formula}</div>')
  raise nodes.SkipNode


def setup(app) -> None:
  """Connects all of it; docstrings are turned before napoleon, at 500, reads their sections."""
  app.connect('autodoc-process-docstring', _on_docstring, priority=400)
  app.connect('autodoc-process-docstring', _after_napoleon, priority=600)
  app.connect('autodoc-process-signature', _on_signature)
  app.connect('autodoc-skip-member', _skip_member)
  app.connect('include-read', _on_include)
  app.connect('source-read', _on_source)
  for field in PyObject.doc_field_types:
    if field.name == 'variable':
      field.label = 'Attributes'  # as the docstrings say
  app.add_html_math_renderer('mathml', (_visit_inline_math, None), (_visit_block_math, None))
