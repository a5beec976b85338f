"""The formats that there are, and which of them a file is in."""

from collections.abc import Callable, Iterable

from ..._sites import did_you_mean
from ...saes import AbstractDictionary
from . import (
    _circuit_tracer,
    _dictionary_learning,
    _gemma_scope,
    _layer_files,
    _llama_scope,
    _openai,
    _plain,
    _refused,
    _saelens,
    _sparsify,
)
from ._reader import Reader
from ._source import OPENERS, Source, SUFFIXES
from ._tensors import listed


_BUILT_IN: tuple[Reader, ...] = (
    *_saelens.READERS,
    *_dictionary_learning.READERS,
    *_sparsify.READERS,
    *_openai.READERS,
    *_plain.READERS,
    *_gemma_scope.READERS,
    *_circuit_tracer.READERS,
    *_llama_scope.READERS,
    *_layer_files.READERS,
)
READERS: dict[str, Reader] = {reader.name: reader for reader in _BUILT_IN}
_own: list[str] = []  # names of those that were registered, which are asked first


def register_reader(
    name: str,
    read: Callable[..., AbstractDictionary],
    *,
    fits: Callable[[Source], bool],
    suffixes: Iterable[str] = (),
) -> None:
    """Makes `jc.load_sae` and `jc.load_saes` read a format of your own.

    `read(source, **options)` makes a dictionary of one file. `source.path` is the file, `source.state` its named tensors (of
    `.safetensors`, `.npz` and PyTorch's files), `source.json("cfg.json")` and `source.yaml(…)` what lies beside it, `None` where there is
    nothing, and `source.site` the site that the caller asked for. Keyword arguments of `read` are the format's options.

    **Arguments:**

    - `name`: what `format=…` calls it.
    - `read`: see above. `source.leaf(array)` makes a leaf in the dtype that the caller asked for.
    - `fits`: whether a file is of this format. It is asked before the formats that are built in, and a format that fits is taken.
    - `suffixes`: of its files, if they are others than `.safetensors`, `.npz`, `.pt`, `.pth` and `.bin`: `(".h5",)`. `read` opens them.

    **Raises:** `ValueError` if there is a format of this name.

    >>> import json, pathlib, tempfile
    >>> def read(source):
    ...     tensors = {name: source.leaf(np.asarray(array)) for name, array in source.state.items()}
    ...     site = source.site or jc.Site.parse(source.json("about.json")["where"])
    ...     return jc.saes.SAE(tensors["E"], tensors["e"], tensors["D"], tensors["d"], jc.saes.ReLU(), site, origin=source.name)
    >>> jc.interop.register_reader("mine", read, fits=lambda source: set(source.state) == {"E", "e", "D", "d"})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/sae.npz", E=np.eye(4, 8), e=np.zeros(8), D=np.eye(8, 4), d=np.zeros(4))
    ...     about = json.dumps({"where": "blocks.2.hook_mlp_out"})
    ...     _ = pathlib.Path(folder, "about.json").write_text(about, encoding="utf-8")
    ...     str(jc.load_sae(folder).site)
    'blocks.2.hook_mlp_out'
    >>> jc.interop.unregister_reader("mine")
    """
    if name in READERS or name == "auto":
        raise ValueError(f"register_reader: there is a format called {name!r} already. Choose another name.")
    added = (suffixes,) if isinstance(suffixes, str) else tuple(suffixes)
    if wrong := [suffix for suffix in added if not suffix.startswith(".")]:
        raise ValueError(f"register_reader: a suffix begins with a dot, got {wrong[0]!r}.")
    READERS[name] = Reader(name, read, fits, suffixes=added)
    _own.append(name)
    _gather_suffixes()


def unregister_reader(name: str) -> None:
    """Forgets a format that `register_reader` made known. **Raises:** `ValueError` if there is none of this name."""
    if name not in _own:
        raise ValueError(f"unregister_reader: no format called {name!r} was registered. {did_you_mean(name, _own)}")
    _own.remove(name)
    del READERS[name]
    _gather_suffixes()


def _gather_suffixes() -> None:
    """Sets the suffixes of files that may be dictionaries: those that every format may have, and those of registered ones."""
    SUFFIXES[:] = dict.fromkeys([*OPENERS, *(suffix for reader in READERS.values() for suffix in reader.suffixes)])


def check_format(format: str) -> None:
    """ValueError unless it is the name of a format."""
    if format != "auto" and format not in READERS:
        raise ValueError(
            f"No format is called {format!r}. {did_you_mean(format, READERS)} There are auto, {', '.join(READERS)}."
        )


def detect(source: Source) -> str:
    """Tells the format of a file, by what lies beside it and the names of its tensors.

    **Raises:** `ValueError` if it is none, could be more than one, or is one that cannot be read.
    """
    if own := [name for name in _own if READERS[name].fits(source)]:
        return _only(own, source)
    for refused in _refused.REFUSED:
        if refused.fits(source):
            raise ValueError(f"{source.name} is {refused.name}, which load_sae does not read: {refused.why}")
    named = [reader for reader in _BUILT_IN if source.path.name in reader.files]
    if len(named) == 1:
        return named[0].name
    return _only([reader.name for reader in named or _BUILT_IN if reader.fits(source)], source)


def _only(fitting: list[str], source: Source) -> str:
    if len(fitting) == 1:
        return fitting[0]
    what = (
        f"fit the formats {' and '.join(fitting)}"
        if fitting
        else f"are of no known format; those are {', '.join(READERS)}"
    )
    names = sorted(map(str, source.state))
    held = f"{listed(names[:12])}{' …' if len(names) > 12 else ''}" if names else "no named tensors"
    raise ValueError(f"{source.name} holds {held}, which {what}. Say which it is: format=….")
