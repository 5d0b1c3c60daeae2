"""Policies: the integer bit-widths of a network under a budget, searched or not, and what can be made of them.

Public: `discretize`, from fractional bits to a `Policy`; `from_bits`, `load`, `Entry`; `assignment` and `sensitivity`,
policies without a search; `compact`, a pruned network without its pruned channels.
"""

from fracbits_jax.policy.discretization import METHODS, discretize_bits
from fracbits_jax.policy.policies import Entry, Policy, discretize, from_bits, load

__all__ = ['METHODS', 'Entry', 'Policy', 'discretize', 'discretize_bits', 'from_bits', 'load']
