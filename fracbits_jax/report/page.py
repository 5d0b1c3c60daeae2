"""Pages that need nothing else: one HTML file with its style and its figures, for light and dark, screen and paper."""

import html
import pathlib
from collections.abc import Callable, Mapping, Sequence

from fracbits_jax.system import extras

with extras.needed():
  from matplotlib.figure import Figure

from fracbits_jax.report import plots
from fracbits_jax.system.files import readable, write_whole

_PAPER = {'paper': ('#ffffff', '#14181d'), 'card': ('#f8f9fb', '#1b2026')}
_SAFE = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"  # so a browser makes sure that nothing is loaded


def _style() -> str:
  colors = {**_PAPER, **plots.PALETTE}
  light, dark = (''.join(f'--{name}:{both[i]};' for name, both in colors.items()) for i in (0, 1))
  rules = (pathlib.Path(__file__).parent / 'page.css').read_text()
  return f':root{{{light}}}\n@media screen and (prefers-color-scheme: dark){{:root{{{dark}}}}}\n{rules}'


def write(path: pathlib.Path, title: str, parts: Sequence[str]) -> None:
  """Writes a page of `parts`, which are HTML, whole or not at all; the title is text."""
  body = '\n'.join(parts)
  write_whole(
    path,
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f'<meta http-equiv="Content-Security-Policy" content="{_SAFE}">\n'
    f'<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
    f'<title>{text(title)}</title>\n<style>\n{_style()}</style>\n</head>\n'
    f'<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n',
  )


def text(plain: str) -> str:
  """Text as HTML; what is no Unicode, as in the name of a folder, is a question mark."""
  return html.escape(readable(plain))


def header(title: str, about: str, verdict: str) -> str:
  """What a page begins with; the arguments are text."""
  return (
    f'<header>\n<h1>{text(title)}</h1>\n<p class="about">{text(about)}</p>\n'
    f'<p class="verdict">{text(verdict)}</p>\n</header>\n'
  )


def section(heading: str, *parts: str) -> str:
  """A part of the page under its heading, which is text; the parts are HTML."""
  return f'<section>\n<h2>{text(heading)}</h2>\n{"".join(parts)}</section>\n'


def paragraph(plain: str) -> str:
  """A paragraph of text."""
  return f'<p>{text(plain)}</p>\n'


def note(plain: str) -> str:
  """A paragraph of text that explains what stands before it."""
  return f'<p class="note">{text(plain)}</p>\n'


def details(plain: str, part: str) -> str:
  """HTML that is shown when its summary, which is text, is clicked."""
  return f'<details>\n<summary>{text(plain)}</summary>\n{part}</details>\n'


def _scroll(part: str, label: str) -> str:
  """A box in which its content scrolls sideways, so that the page need not."""
  return f'<div class="scroll" role="region" tabindex="0" aria-label="{text(label)}">\n{part}</div>\n'


def code(plain: str, label: str) -> str:
  """What is to be copied word for word."""
  return _scroll(f'<pre>{text(plain)}</pre>\n', label)


def figure(draw: Callable[[bool], Figure | None], folder: pathlib.Path, name: str, label: str, caption: str) -> str:
  """A figure in both widths, of which the page shows one; it is also kept as PNG and SVG.

  Args:
    draw: makes it, `draw(narrow)`; `None` where there is nothing to draw.
    folder: where its files go.
    name: of these files.
    label: what it shows, for those who cannot see it.
    caption: what a reader has to know.

  Returns:
    HTML, empty where there is nothing to draw.
  """
  wide = draw(False)
  if wide is None:
    return ''
  plots.save(wide, folder, name)
  shown = ''
  for width, drawn in (('wide', wide), ('narrow', draw(True))):
    assert drawn is not None  # there is something to draw, at any width
    svg = plots.inline(drawn, f'{name}-{width}').replace('<svg ', '<svg aria-hidden="true" ', 1)
    shown += f'<div class="{width}">{svg}</div>\n'
  return (
    f'<figure id="{name}">\n<div role="img" aria-label="{text(label)}">\n{shown}</div>\n'
    f'<figcaption>{text(caption)}</figcaption>\n</figure>\n'
  )


def _cell(plain: str, pale: bool) -> str:
  marked = pale and plain.startswith('~')
  return f'<td class="pale">{text(plain[1:])}</td>' if marked else f'<td>{text(plain)}</td>'


def table(
  head: Sequence[str],
  rows: Sequence[Sequence[str]],
  label: str,
  strong: Sequence[int] = (),
  *,
  pale: bool = True,
) -> str:
  """A table that scrolls in a box of its own where it is too wide.

  Args:
    head: the names of the columns.
    rows: text; a cell that begins with `~` is pale, where `pale` says so.
    label: what the table shows.
    strong: numbers of the rows that stand out.
    pale: false for cells that may hold anything.
  """
  name = lambda plain: text(plain).replace('_', '_<wbr>').replace('/', '/<wbr>')  # where it may break on a telephone
  heads = ''.join(f'<th scope="col">{text(title)}</th>' for title in head)
  lines = ''
  for i, (first, *rest) in enumerate(rows):
    cells = f'<th scope="row">{name(first)}</th>{"".join(_cell(cell, pale) for cell in rest)}'
    lines += f'<tr class="strong">{cells}</tr>\n' if i in strong else f'<tr>{cells}</tr>\n'
  return _scroll(f'<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{lines}</tbody>\n</table>\n', label)


def pairs(values: Mapping[str, str], label: str) -> str:
  """Names and what they stand for, as a table of text."""
  rows = ''.join(f'<tr><th scope="row">{text(k)}</th><td>{text(v)}</td></tr>\n' for k, v in values.items())
  return _scroll(f'<table class="text">\n<tbody>\n{rows}</tbody>\n</table>\n', label)


def tiles(values: Sequence[tuple[str, str, str]]) -> str:
  """The figures that matter most: what each is, its value, and a word on it, all text."""
  items = ''.join(
    f'<div><dt>{text(name)}</dt><dd>{text(value)}</dd><dd>{text(word)}</dd></div>\n' for name, value, word in values
  )
  return f'<dl class="tiles">\n{items}</dl>\n'
