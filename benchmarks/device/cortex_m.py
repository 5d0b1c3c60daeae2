"""A network's C code on an emulated Cortex-M4: equal answers, flash, memory, instructions an image.

    fracbits-jax export --workdir=runs/digits --format=c
    python benchmarks/device/cortex_m.py --code=runs/digits/digits_c

It needs `arm-none-eabi-gcc` with newlib and `qemu-system-arm`. The folder's test vectors are run by semihosting. Flash
and memory are those of a program that does nothing but run the network, by `arm-none-eabi-size`; instructions are
counted by QEMU (`-icount shift=0`), so they are no cycles of a real board.
"""

import argparse
import dataclasses
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
TOOLS = ('arm-none-eabi-gcc', 'arm-none-eabi-size', 'qemu-system-arm')
CPU = ('-mcpu=cortex-m4', '-mthumb', '-ffunction-sections', '-fdata-sections')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
  """What a board needs for a network, and does.

  Attributes:
    vectors: test vectors that were run.
    right: those answered as by integer inference.
    flash: bytes of code and constants of the linked program.
    ram: bytes of its static data.
    stack: bytes of stack while the network runs.
    instructions: an image.
  """

  vectors: int
  right: int
  flash: int
  ram: int
  stack: int
  instructions: int


def missing() -> str:
  """The tools that are not installed, or nothing."""
  return ', '.join(tool for tool in TOOLS if shutil.which(tool) is None)


def measure(code: pathlib.Path, optimize: str = '-O2') -> Measured:
  """Builds the code of a folder for a Cortex-M4 and runs its test vectors."""
  name = next(path.stem for path in code.glob('*.c') if path.stem not in ('main', 'fracbits'))
  with tempfile.TemporaryDirectory() as folder:
    test, bare = pathlib.Path(folder) / 'test.elf', pathlib.Path(folder) / 'bare.elf'
    _build(code, name, test, optimize)
    _build(code, name, bare, optimize, '-DSIZE')
    sizes = subprocess.run([TOOLS[1], str(bare)], check=True, capture_output=True, text=True).stdout.split('\n')[1]
    text, data, bss = map(int, sizes.split()[:3])
    command = [TOOLS[2], '-M', 'mps2-an386', '-nographic', '-semihosting', '-icount', 'shift=0', '-kernel', str(test)]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL)
  found = re.search(r'vectors (\d+) right (\d+) instructions (\d+) stack (\d+)', said.stdout + said.stderr)
  if not found:
    raise RuntimeError(f'the board says nothing of its vectors: {said.stdout} {said.stderr}')
  vectors, right, instructions, stack = map(int, found.groups())
  return Measured(
    vectors=vectors, right=right, flash=text + data, ram=data + bss, stack=stack, instructions=instructions
  )


def _build(code: pathlib.Path, name: str, out: pathlib.Path, optimize: str, *more: str) -> None:
  calls = {'RUN': 'run', 'INPUT': 'input', 'OUTPUT': 'output'}
  defines = [f'-DMODEL_{key}={name}_{call}' for key, call in calls.items()]
  subprocess.run(
    [
      TOOLS[0], *CPU, optimize, *more, *defines, f'-DMODEL_HEADER="{name}.h"', f'-I{code}', '-nostartfiles',
      '-Wl,--gc-sections', f'-T{HERE / "mps2.ld"}', '-o', str(out),
      str(HERE / 'board.c'), str(code / f'{name}.c'), str(code / 'fracbits.c'), '-lc', '-lgcc',
    ],
    check=True,
  )  # fmt: skip


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--code', required=True, type=pathlib.Path, help='a folder of fracbits-jax export --format=c')
  parser.add_argument('--optimize', default='-O2', help='-Os for less flash')
  args = parser.parse_args()
  if missing():
    print(f'error: {missing()} not found: install Debian\'s gcc-arm-none-eabi, libnewlib-arm-none-eabi, '
          'qemu-system-arm', file=sys.stderr)  # fmt: skip
    return 2
  m = measure(args.code, args.optimize)
  print(
    f'{m.right} of {m.vectors} test vectors as by integer inference; flash {m.flash:,} bytes, memory {m.ram:,} bytes '
    f'and {m.stack:,} of stack; {m.instructions:,} instructions an image'
  )
  return m.right != m.vectors


if __name__ == '__main__':
  sys.exit(main())
