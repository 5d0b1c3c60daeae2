"""Makes a policy for the float network of a run, without a search."""

import argparse
import sys
from collections.abc import Sequence

from fracbits_jax.policy.sensitivity import SCORES
from fracbits_jax.system import extras


def main(argv: Sequence[str] | None = None, *, program: str = 'fracbits-jax sensitivity') -> int:
  """Makes a policy for the float network of a run, without a search; prints what it costs."""
  parser = argparse.ArgumentParser(prog=program, description=main.__doc__)
  parser.add_argument('--workdir', required=True, help='folder of a run with a float network')
  parser.add_argument(
    '--bits', type=float, help="the budget, as the cost of these bits everywhere; the run's otherwise"
  )
  parser.add_argument('--scores', default='hessian', help=', '.join(SCORES))
  parser.add_argument('--out', required=True, help='the policy file to write')
  args = parser.parse_args(argv)
  try:
    with extras.needed():
      from ml_collections import ConfigDict

    from fracbits_jax.run import begin, records, scored, settings
    from fracbits_jax.run.experiment import prepare

    config = ConfigDict(settings.completed(records.read_finished(args.workdir)[0]))
    config.phases, config.init_from, config.policy = ('search', 'finetune'), args.workdir, None
    if args.bits is not None:
      config.budget.target = config.budget.bits_per_weight = None
      config.budget.equivalent_bits = args.bits
    experiment = prepare(config)
    found = scored.find(experiment, begin.float_variables(experiment), args.scores, seed=config.seed)
    found.save(args.out)
  except (ValueError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  print(f'{args.out}: {found.cost:.6g} of {found.target:.6g} {found.unit}')
  return 0
