"""The library speaks Python, and whoever types a command reads of options.

Every message passes here on its way to the screen, and nowhere else is anything translated.
"""

import argparse
import re


# What stands for a Python phrase, or for a whole sentence of them. The rest, arguments of the options' names, goes by rule.
_PHRASES = {
    r"aggregate='none' keeps positions apart": "--by-position keeps positions apart",
    r"Use aggregate='sum'\.": "Leave --by-position out.",
    r"Find it with aggregate='none'\.": "Find it with --by-position.",
    r"Use method=jc\.IntegratedGradients\(steps\)\.": "Use --method integrated.",
    r"and (Gradient|ExactPatching)\(.*?\) has none": "and this method has none",
    r"AtPStar\(grad_drop=True\) drops": "AtP* with GradDrop drops",
    r"Use jc\.AtPStar\(grad_drop=False\)\.": "Choose another --method.",
    r"or leave the head out by heads=\[\(layer, head\), …\]\.": "or name other heads by --only.",
    r"Pass saes=\{…\} with one there\.": "Name a folder with one there by --saes.",
    r"Load some: saes = jc\.load_saes\(folder_or_name\)\.": "Name some by --saes.",
    r"Choose with include=…, a pattern of paths\.": "Name a folder by --saes that holds one for each site.",
    r"Load it alone: jc\.load_sae\(path, site=…\)\.": "Commands take dictionaries that say it.",
    r"and load_saes reads a folder\. Use jc\.load_sae\.": "and --saes names a folder.",
    r"jc\.load_saes reads a whole tree\.": "--saes names the folder of a whole tree.",
    r"Compute them with jc\.node_effects of the same arguments\.": "",
    r"name the tokenizer apart": "name the tokenizer apart by --tokenizer",
    r"for jc\.data\.load_prompts": "for jaxcirc discover",
    r"`?jc\.save_jacobian`? wrote": "jaxcirc jacobian --out wrote",
    r"Circuit\.save\(folder\) writes one": "jaxcirc discover writes one",
    r"The circuit that it gives can be saved, Circuit\.save\(folder\), and loaded without\.": "What is saved can be read without.",
    r"or pass the limit that you accept": "or compute in float64",
    r"on accelerators raise jax_default_matmul_precision": "on accelerators set JAX_DEFAULT_MATMUL_PRECISION=highest",
    r"Look at the value there with jc\.run\(…, record=\[…\]\), and at": "Look at",
    r"Restrict the positions \(source_pos, target_pos\)": "Restrict the positions (--source-positions, --target-positions)",
    r"Pass center_writing=False\.": "Take the weights as they are, --raw.",
    r"See jc\.process_weights\.": "",
    r"; use J\.as_matrix\(\) for others\.": ".",
    r"Load it by its k\.": "",
    r"Find it with lower thresholds than node_threshold=": "Find it with lower thresholds than --node-threshold ",
    r"(?<=[\d.]) and edge_threshold=": " and --edge-threshold ",
    r"lower thresholds than edge_threshold=": "lower thresholds than --edge-threshold ",
    r"and for edges with an edge_threshold": "and for edges with an --edge-threshold",
}
_VERBS = re.compile(
    r"(?:^|(?<=: ))(?:jc(?:\.\w+)+|[a-z]+(?:_[a-z]+)+|discover|evaluate|steer|prune|edge|minimality|roc|stability|generate|compare"
    r"|feature|decode|spectra|intervene|jacobian\.mean|features\.mean_edges)(?:\(\w+=…\))?: "
)
# What is left of Python after that: a sentence with it is of no use at a terminal.
PYTHON = re.compile(
    r"\bjc\.\w|\bjaxcirc\.\w+\.\w|\b[a-z_]+=(?:['\"\[({…]|True|False|None|\d|jc\.)|\b[A-Za-z_]\w*\([\w=,. '…]*\)(?!\w)"
)
# Arguments that a command calls otherwise.
_OTHERS = {
    "heads": "only",
    "strength": "strengths",
    "most_edges": "top",
    "rank": "top",
    "engine": "method",
    "positions": "pairs",
    "source_pos": "source_positions",
    "target_pos": "target_positions",
    "node_threshold": "node_influence",
    "edge_threshold": "edge_influence",
}


def in_options(message: str, arguments: argparse.Namespace) -> str:
    """Rewords `message` as the command that has these arguments says it: options in place of keywords, and no Python."""
    for phrase, wording in _PHRASES.items():
        message = re.sub(phrase, wording, message)
    message = _VERBS.sub("", message, count=1)
    known = vars(arguments)
    for name in sorted({*known, *(name for name, ours in _OTHERS.items() if ours in known)}, key=len, reverse=True):
        message = _named(message, name, _OTHERS.get(name, name) if name not in known else name)
    sentences = re.split(r"(?<=[.?!)])\s+(?=[A-Z`'\"(])", " ".join(message.split()))
    kept = [sentence for sentence in sentences if not PYTHON.search(sentence)]
    return " ".join(kept or sentences)


def _named(message: str, name: str, ours: str) -> str:
    """Rewords an argument `name` as the option that it is: `name='x'`, `name=3`, and where it is no word of English, `name` alone."""
    option, begins = "--" + ours.replace("_", "-"), rf"(?<![\w./-]){name}"
    message = re.sub(rf"{begins}=True\b", option, message)
    message = re.sub(rf"{begins}='([^']*)'", rf"{option} \1", message)
    message = re.sub(rf"{begins}=(?=[\w.+-])", rf"{option} ", message)
    alone = begins if "_" in name else f"^{name}(?= (?:is|must be|names) )"
    return re.sub(rf"{alone}(?![\w./=-])", option, message)
