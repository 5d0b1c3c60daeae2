"""Random networks, broken files, stopped runs: whether what holds for a few examples holds for many."""
