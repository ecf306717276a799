"""Exact answers on tables: named preference games, duality gaps, equilibria and population optima, in float64 torch tensors."""
