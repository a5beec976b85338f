"""How the shipped models and their dictionaries were made. From the repository root, for each of `tiny-gpt2` and `tiny-gpt-neo`:

`python -m weights.train.language_model NAME`, `python -m weights.train.dictionaries NAME`, `python -m weights.train.evaluate NAME`, and
then for both `python -m weights.train.golden` (with PyTorch) and `python -m weights.train.card`.
"""
