"""FLOPs, memory, records and budgets."""
