"""A run: from a configuration to checked objects, phases, checkpoints, and what is read back of them.

Public: `runner.run`, all of it; `finished.load`, the network of a finished run.
"""
