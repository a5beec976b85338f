"""The words and sentence forms of the prompt sets, and which combinations of words are held out.

The shipped models are trained on text made of the same words (`weights/train`), with the held-out combinations left out. Every word
that is a blank in a prompt is one token after a space, in GPT-2's vocabulary and in the shipped one.
"""

import zlib


NAMES = tuple(
    """Mary John Tom James Dan Martin Amy Sarah Michael Jessica Matthew Ashley Jennifer Joshua Amanda Daniel David Robert Joseph Andrew
    Ryan Jason William Stephanie Brian Nicole Anthony Heather Eric Elizabeth Adam Megan Kevin Steven Thomas Timothy Kyle Rachel Laura
    Amber Richard Emily Erin Jeremy Benjamin Mark Charles Patrick Jacob Alice Peter Paul Simon Anna Kate Lucy Jack Sam""".split()
)
PLACES = (
    "store",
    "school",
    "park",
    "garden",
    "office",
    "station",
    "hospital",
    "market",
    "beach",
    "library",
    "church",
    "museum",
)
OBJECTS = (
    "ring",
    "drink",
    "snack",
    "book",
    "letter",
    "ball",
    "cup",
    "flower",
    "hat",
    "key",
    "lamp",
    "map",
    "pen",
    "ticket",
    "watch",
    "basketball",
)

# "Then, A and B went to the store. B gave a drink to": every choice is one token, so all sentences have one length.
OPENERS = ("Then", "Today", "Later", "Yesterday")
ARRIVALS = ("went to", "walked to", "came to", "met at")
GIVING = ("gave", "handed", "passed", "offered")
IOI = {
    "ABBA": "{opener}, {IO} and {S1} {arrival} the {place}. {S2} {giving} a {object} to",
    "BABA": "{opener}, {S1} and {IO} {arrival} the {place}. {S2} {giving} a {object} to",
}

# (singular, plural)
NOUNS = tuple(
    (word, word + "s")
    for word in """teacher doctor parent manager officer farmer singer writer driver student lawyer author artist pilot player leader
    worker dancer actor nurse guard king boy girl friend brother sister soldier judge captain customer""".split()
)
THINGS = tuple(
    (word, word + "s")
    for word in "desk car tree table chair door window wall boat bridge truck building statue clock gate tower".split()
)
PREPOSITIONS = ("near", "behind", "beside", "by")

# (third person singular, plural): what ends a sentence, and what ends a relative clause.
MAIN_VERBS = (
    ("is", "are"),
    ("was", "were"),
    ("has", "have"),
    ("wants", "want"),
    ("needs", "need"),
    ("walks", "walk"),
    ("runs", "run"),
    ("works", "work"),
    ("plays", "play"),
    ("sings", "sing"),
    ("waits", "wait"),
    ("smiles", "smile"),
)
CLAUSE_VERBS = (
    ("likes", "like"),
    ("knows", "know"),
    ("sees", "see"),
    ("helps", "help"),
    ("loves", "love"),
    ("hates", "hate"),
    ("meets", "meet"),
    ("follows", "follow"),
    ("trusts", "trust"),
    ("fears", "fear"),
)
AGREEMENT = {
    "simple": "The {subject}",
    "nounpp": "The {subject} {preposition} the {distractor}",
    "rc": "The {subject} that the {distractor} {clause}",
    "within_rc": "The {distractor} that the {subject}",
}


def held_out(*words: str) -> bool:
    """Whether this combination is kept out of the shipped models' training text: one in ten, by a checksum of the words.

    The order of the words does not count. For the indirect-object sentences the combination is the pair of names. For agreement it is
    the kind of sentence, the subject, the verb that agrees with it and the distractor if there is one, all in the singular.

    >>> from jaxcirc.data import held_out
    >>> held_out("Mary", "John") == held_out("John", "Mary")
    True
    """
    return zlib.crc32(" ".join(sorted(words)).encode()) % 10 == 0
