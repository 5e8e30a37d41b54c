"""How the log-probabilities and completions of a group are computed: its prompt once."""
