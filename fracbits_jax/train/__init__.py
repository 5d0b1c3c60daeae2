"""Training: the optimizer, the penalty, distillation, the step, the loop over it, on one host or several.

Public: `optim`, `penalty`, `distill`, `step`, which serve a loop of your own; `loop.run_phase`, ours.
"""
