"""What a run reached, in words, figures and pages, and comparisons of several.

Public: `summary.write` and `summary.summary` of one run; `compare.write` of several.
"""
