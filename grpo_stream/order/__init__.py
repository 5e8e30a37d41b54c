"""The order of samples, computed from integers: permutation, plans, blend, cursor."""
