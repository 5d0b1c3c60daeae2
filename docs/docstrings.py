"""Docstrings as they are written here, in the reStructuredText that Sphinx reads; signatures of Flax modules."""

import functools
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator

PACKAGE = 'fracbits_jax'
COLON = '\ue000'  # stands for a colon that napoleon would take for the end of a type
_CODE = re.compile(r'(`[^`]+`)')
_MARKUP = re.compile(r'(^ *\* )|\\|\*|\||_(?!\w)', re.M)  # bullets, and what would be markup
_SECTION = re.compile(r'(Args|Attributes|Raises|Returns|Yields):$')


def to_rst(lines: Iterable[str], link: Callable[[str], str | None] = lambda name: None) -> list[str]:
  """A docstring in reStructuredText.

  Docstrings here are plain text: code between single backticks, tables with bars, formulas indented by four spaces
  more than the text before them. All else means what it says, `*`, `|` and `_` too.

  Args:
    lines: of the docstring, without its indentation.
    link: the full name of the object that a code span names, or `None`.
  """
  result: list[str] = []
  section = ''
  for kind, block in _blocks(lines):
    if kind == 'formula':
      margin = ' ' * (_indent(block[0]) - 4)
      result += [f'{margin}::', '', *block]
    elif kind == 'table':
      result += _table(block, link)
    else:
      for line in _inline('\n'.join(block), link).split('\n'):
        section = line if _SECTION.match(line) else section if not line or line.startswith(' ') else ''
        result.append(line.replace(':', COLON) if section == 'Returns:' and line != section else line)
  return result


def _indent(line: str) -> int:
  return len(line) - len(line.lstrip())


def _blocks(lines: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
  """The docstring in pieces, each `text`, `table` or `formula`; blank lines are text of their own."""
  lines, margin, after_blank = list(lines), 0, True
  while lines:
    if not lines[0].strip():
      kind, count = 'text', 1
      after_blank = True
    elif after_blank and _indent(lines[0]) >= margin + 4:
      inside = [not line.strip() or _indent(line) >= margin + 4 for line in lines]
      kind, count = 'formula', (*inside, False).index(False)
      while not lines[count - 1].strip():
        count -= 1
    else:
      is_row = [line.strip().startswith('|') and line.strip().endswith('|') for line in lines]
      is_text = [bool(line.strip()) and not row for line, row in zip(lines, is_row, strict=True)]
      kind, found = ('table', is_row) if is_row[0] else ('text', is_text)
      count, after_blank = (*found, False).index(False), False
      margin = min(map(_indent, lines[:count]))
    yield kind, lines[:count]
    del lines[:count]


def _table(rows: list[str], link: Callable[[str], str | None]) -> list[str]:
  margin = ' ' * _indent(rows[0])
  cells = [[cell.strip() for cell in re.split(r'(?<!\\)\|', row.strip().strip('|'))] for row in rows]
  has_header = len(cells) > 1 and all(set(cell) <= set('-: ') for cell in cells[1])
  if has_header:
    del cells[1]
  result = [f'{margin}.. list-table::', f'{margin}   :header-rows: {int(has_header)}', '']
  for row in cells:
    for i, cell in enumerate(row):
      result.append(f'{margin}   {"  " if i else "* "}- {_inline(cell, link)}')
  return result


def _inline(text: str, link: Callable[[str], str | None]) -> str:
  parts = _CODE.split(text)
  for i, part in enumerate(parts):
    if i % 2:
      code = part[1:-1]
      target = link(code)
      # What touches a word would be no markup: a backslash and a space part them, and leave nothing.
      before = '\\ ' if parts[i - 1][-1:].isalnum() else ''
      after = '\\ ' if parts[i + 1][:1].isalnum() else ''
      parts[i] = before + (f':py:obj:`{code} <{target}>`' if target else f'``{code}``') + after
    else:
      parts[i] = _MARKUP.sub(lambda found: found[1] or f'\\{found[0]}', part)
  return ''.join(parts)


def full_name(code: str, module: str) -> str | None:
  """The full name of the public object that a code span in a module's docstring names; `None` if it names none.

  Args:
    code: such as `quantize.fractional`, or `fractional` for a function of the module itself.
    module: such as `fracbits_jax.quantize`.
  """
  if not re.fullmatch(r'[A-Za-z]\w*(\.[A-Za-z]\w*)*', code):
    return None
  names = code.removeprefix(f'{PACKAGE}.').split('.')
  owners = [(module, names)]
  if '.' in code:  # a single word may be anything else
    room = '.'.join(module.split('.')[:2])
    # A module of the same room or of the package, the longest name first.
    for parent in dict.fromkeys((room, PACKAGE)):
      owners += [('.'.join((parent, *names[:i])), names[i:]) for i in range(len(names), 0, -1)]
  for owner, path in owners:
    try:
      found = functools.reduce(getattr, path, importlib.import_module(owner))
    except (ImportError, AttributeError):
      continue
    if not path:
      return owner
    home, name = getattr(found, '__module__', None), getattr(found, '__qualname__', None)
    if home and name and home.startswith(PACKAGE):
      return f'{home}.{name}'
  return None


def plain_signature(cls: type) -> str:
  """The signature of a Flax module, without what Flax adds and without what does not print in a line."""

  def shown(parameter: inspect.Parameter) -> str:
    default = parameter.default
    if default is parameter.empty:
      return parameter.name
    plain = default is None or isinstance(default, bool | int | float | str | tuple)
    return f'{parameter.name}={default!r}' if plain else f'{parameter.name}=...'

  parameters = inspect.signature(cls).parameters.values()
  return f'({", ".join(shown(p) for p in parameters if p.name not in ("parent", "name"))})'
