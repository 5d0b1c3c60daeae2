"""Time and memory: of a step, of the input pipeline, of checkpoints."""
