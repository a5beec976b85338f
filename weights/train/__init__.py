"""How the shipped models and their dictionaries were made: `python -m weights.train.make` from the repository root."""
