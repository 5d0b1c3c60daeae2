"""Studies: what searches, quantizers and budgets reach."""
