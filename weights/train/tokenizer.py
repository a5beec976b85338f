"""A byte-level BPE of the training text, in which every word is one token."""

import itertools as it

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from weights.train.text import documents, LIST_WORDS, SEQ


END = "<|endoftext|>"
SIZE = 1400
# The tokenizer's own text: it stays the same when the models' mixtures change.
TEXT = {"ioi": 0.29, "simple": 0.06, "nounpp": 0.15, "relative": 0.19, "repeated": 0.18, "story": 0.13}


def said_twice(rng: np.random.Generator, split: str) -> str:
    """A list of random words, and the same again."""
    return 2 * (" " + " ".join(LIST_WORDS[i] for i in rng.integers(len(LIST_WORDS), size=int(rng.integers(4, 26)))))


def train_tokenizer(size: int = SIZE, n_documents: int = 60_000) -> PreTrainedTokenizerFast:
    """**Arguments:** - `size`: the largest vocabulary; training ends early when every word is one token."""
    rng = np.random.default_rng(0)
    texts = [
        text
        for _, text in it.islice(documents(rng, TEXT, "all", repeated=said_twice), n_documents)
        if isinstance(text, str)
    ]
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False, min_frequency=2
    )
    bpe.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END,
        eos_token=END,
        unk_token=END,
        model_max_length=SEQ,
        clean_up_tokenization_spaces=False,
    )
    words = {word for text in texts for word, _ in bpe.pre_tokenizer.pre_tokenize_str(text)}
    split = words - set(bpe.get_vocab())
    if split:
        raise ValueError(f"{size} entries are too few: these words are more than one token: {sorted(split)[:10]}")
    return wrapped
