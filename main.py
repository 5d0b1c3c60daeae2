"""Trains a float network, searches its bit-widths under a budget, makes them integers and finetunes: a recipe's run.

python main.py --help lists the recipes and their fields. An installed package has the same as `fracbits-jax train`.
"""

from fracbits_jax.system import process

if __name__ == '__main__':
  process.settle()  # before packages that look for a home folder are imported

  from fracbits_jax.commands import train

  train.main(program='python main.py')
