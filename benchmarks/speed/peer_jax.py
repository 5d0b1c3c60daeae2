"""What the peers on JAX have in common: a step that is compiled, and its state that goes from step to step."""

from collections.abc import Callable
from typing import Any

import jax

from benchmarks.speed.peers_measure import Step
from benchmarks.speed.speed import plan


def compiled_step(step: Callable[[Any, Any, Any], tuple[Any, Any]], state: Any, images: Any, labels: Any) -> Step:
  """`step(state, images, labels) -> (state, loss)`, made again and again on the same images."""
  compiled = jax.jit(step, donate_argnums=0).lower(state, images, labels).compile()
  held = [state]

  def run(steps: int) -> float:
    for _ in range(steps):
      held[0], loss = compiled(held[0], images, labels)
    return float(jax.block_until_ready(loss))

  return Step(run=run, facts={'temp_bytes': plan(compiled)['temp_bytes']})
