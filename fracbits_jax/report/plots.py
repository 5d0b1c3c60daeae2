"""What all figures share: their look, their colours in light and dark, their two widths, and how they are kept.

A figure exists in two widths, because text that is scaled down to a telephone cannot be read: `WIDE` for a page and a
paper, `NARROW` for a telephone, where layers are listed downwards. Every colour has a name, so that a page can
give it another value in the dark.
"""

import contextlib
import io
import os
import pathlib
import re
import warnings
from collections.abc import Iterator
from typing import Any

from fracbits_jax.system import extras

with extras.needed():
  import matplotlib
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.colors import to_hex
  from matplotlib.figure import Figure


WIDE, NARROW = 9.0, 3.7  # inches; the narrow one is as wide as the text on a telephone of 390 pixels

_STEPS = 16  # of the ramp
_LIGHT_RAMP, _DARK_RAMP = (0.0, 0.86), (0.3, 1.0)  # parts of viridis that stand out from white, from black


def _ramp(i: int) -> tuple[str, str]:
  at = lambda least, most: to_hex(matplotlib.colormaps['viridis'](least + (most - least) * i / (_STEPS - 1)))
  return at(*_LIGHT_RAMP), at(*_DARK_RAMP)


# Name: what it is on white, and in the dark. Those on white differ, for they are how a page finds them in an SVG.
PALETTE = {
  'ink': ('#24292f', '#e6e8eb'),
  'muted': ('#6b7280', '#9aa3ae'),
  'grid': ('#e4e6ea', '#30363d'),
  'kernel': ('#2f6db3', '#6cabf0'),
  'kernel-fixed': ('#bacee3', '#2d4867'),
  'input': ('#b45309', '#f2a65a'),
  'input-fixed': ('#eecfb3', '#664829'),
  'cost': ('#2f8f6b', '#56c596'),
  'none': ('#b4b9c1', '#5d6570'),
  'pretrain': ('#f3f4f6', '#1d2229'),
  'search': ('#e8f0fa', '#17263a'),
  'finetune': ('#ecf6ea', '#172b20'),
  **{f'ramp-{i}': _ramp(i) for i in range(_STEPS)},
}
INK, MUTED, GRID, KERNEL, INPUT, COST, NONE = (
  PALETTE[name][0] for name in ('ink', 'muted', 'grid', 'kernel', 'input', 'cost', 'none')
)
PHASE_SHADES = {phase: PALETTE[phase][0] for phase in ('pretrain', 'search', 'finetune')}
FIXED = {'kernel': PALETTE['kernel-fixed'][0], 'input': PALETTE['input-fixed'][0]}
_STYLE = {
  'font.size': 10,
  'text.color': INK,
  'axes.labelcolor': INK,
  'axes.edgecolor': MUTED,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.titlelocation': 'left',
  'axes.titlesize': 11,
  'axes.grid': True,
  'axes.axisbelow': True,
  'grid.color': GRID,
  'xtick.color': MUTED,
  'ytick.color': MUTED,
  'xtick.labelcolor': INK,
  'ytick.labelcolor': INK,
  'legend.frameon': False,
  'svg.hashsalt': 'fracbits',
}


def style(*, math: bool = False) -> contextlib.AbstractContextManager:
  """The look of every figure of the project, while the context is open.

  Args:
    math: whether text between two `$` is a formula, as it is on a logarithmic axis; names may have a `$` as well.
  """
  settings: Any = {**_STYLE, 'text.parse_math': math}
  return matplotlib.rc_context(settings)


def shade(part: float) -> str:
  """A colour for what lies `part` of the way, 0 to 1, along some order."""
  return PALETTE[f'ramp-{round(part * (_STEPS - 1))}'][0]


def new_figure(height: float, rows: int = 1, columns: int = 1, *, width: float = WIDE, **kwargs) -> tuple[Figure, Any]:
  """A figure of a width and a height in inches, and its axes."""
  figure = Figure(figsize=(width, height), layout='constrained')
  FigureCanvasAgg(figure)
  return figure, figure.subplots(rows, columns, **kwargs)


def short(name: str, most: int = 24) -> str:
  """A name of a layer or a run for a figure."""
  name = ''.join(c if c.isprintable() else '\ufffd' for c in name)  # a folder's name can be anything
  for word, letters in (('block', 'b'), ('stage', 's'), ('_depthwise', ' dw'), ('_pointwise', ' pw')):
    name = name.replace(word, letters)
  return name if len(name) <= most else f'{name[: most // 2 - 1]}\u2026{name[-most // 2 :]}'


@contextlib.contextmanager
def _drawing(letters: str) -> Iterator[None]:
  """The look of figures while they are drawn; letters of an SVG as `path` or, `none`, as text."""
  with style(), matplotlib.rc_context({'svg.fonttype': letters}), warnings.catch_warnings():
    # A letter that the font lacks is a box in a PNG, and a page has it from a font of the reader.
    warnings.filterwarnings('ignore', 'Glyph')
    yield


def save(figure: Figure, folder: str | os.PathLike, name: str) -> None:
  """Writes a figure as `name.png` and `name.svg`, on white; letters are drawn, so that they need no font."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  with _drawing('path'):
    figure.savefig(folder / f'{name}.png', dpi=200)
    figure.savefig(folder / f'{name}.svg', metadata={'Date': None})


def inline(figure: Figure, prefix: str) -> str:
  """A figure as SVG for a page: transparent, letters as text in the page's font, colours as CSS variables.

  Args:
    figure: drawn with colours of `PALETTE` only.
    prefix: of the names inside, which have to differ from those of the page's other figures.
  """
  buffer = io.StringIO()
  with _drawing('none'):
    figure.savefig(buffer, format='svg', transparent=True, metadata={'Date': None})
  text = buffer.getvalue()
  text = text[text.index('<svg') :]
  text = re.sub(r'<style.*?</style>|<metadata>.*?</metadata>|<!--.*?-->', '', text, flags=re.S)
  used = set(re.findall(r'(?:href="|url\()#([^")]+)', ''.join(re.findall('<[^>]+>', text))))
  variables = {light: f'var(--{name})' for name, (light, _) in PALETTE.items()}

  def for_page(found: re.Match) -> str:
    """A tag as the page needs it; what the figure says stays as it is."""
    tag = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in used else '', found[0])
    tag = re.sub(r'(href="|url\()#', rf'\g<1>#{prefix}-', tag)
    tag = re.sub(r'font-family: [^;"]*;? ?', '', tag)
    tag = re.sub(r'\d+\.\d{3,}', lambda m: f'{float(m[0]):.2f}', tag)
    return re.sub(r'#[0-9a-fA-F]{6}', lambda m: variables.get(m[0].lower(), m[0]), tag)

  return re.sub(r'\s*\n\s*', ' ', re.sub('<[^>]+>', for_page, text))
