"""Where models and tokenizers are found by name: the Hub (by a stand-in for its client), the shipped ones, folders."""

import json
import re
import shutil
import socket
import sys
import threading
import time
import types
from pathlib import Path

import pytest

import jaxcirc as jc
from jaxcirc.interop import _hub, _shipped, check_pretrained, save_pretrained, shipped_folder

from .stored_models import FLOAT, same_arrays, shard, stored_model


@pytest.fixture
def folder(tmp_path) -> Path:
    save_pretrained(stored_model("gpt2"), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder of repositories, served as the client would, and the list of what was asked for."""
    import huggingface_hub
    from huggingface_hub import errors

    asked = []

    def serve(repo_id, filename, *, revision=None):
        asked.append((repo_id, filename, revision))
        repo = tmp_path / "hub" / repo_id
        if not repo.is_dir():
            raise errors.RepositoryNotFoundError.__new__(errors.RepositoryNotFoundError)
        if revision not in (None, "v1"):
            raise errors.RevisionNotFoundError.__new__(errors.RevisionNotFoundError)
        if not (repo / filename).is_file():
            raise errors.EntryNotFoundError(filename)
        cached = tmp_path / "cache" / repo_id / filename
        cached.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(repo / filename, cached)
        return str(cached)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", serve)
    return tmp_path / "hub", asked


def test_hub_downloads_only_configuration_and_weights(hub):
    repositories, asked = hub
    save_pretrained(stored_model("gpt2"), repositories / "gpt2")
    for other in ("pytorch_model.bin", "README.md", "model.onnx"):
        (repositories / "gpt2" / other).write_bytes(b"large")
    model = jc.from_pretrained("gpt2", dtype=FLOAT, revision="v1")
    assert same_arrays(model, stored_model("gpt2"))
    assert model.name == "gpt2"
    assert asked == [("gpt2", "config.json", "v1"), ("gpt2", "model.safetensors", "v1")]


def test_hub_shards(hub):
    repositories, asked = hub
    save_pretrained(stored_model("gpt-neo"), repositories / "EleutherAI" / "neo")
    shard(repositories / "EleutherAI" / "neo")
    assert same_arrays(jc.from_pretrained("EleutherAI/neo", dtype=FLOAT), stored_model("gpt-neo"))
    assert [name for _, name, _ in asked][-2:] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]


def test_hub_falls_back_to_other_formats(hub, monkeypatch):
    repositories, asked = hub
    save_pretrained(stored_model("gpt2"), repositories / "gpt2")
    (repositories / "gpt2" / "model.safetensors").rename(repositories / "gpt2" / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"pytorch_model.bin is a PyTorch file"):
        jc.from_pretrained("gpt2")
    assert [name for _, name, _ in asked] == [
        "config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
    ]


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        (
            "nobody/nothing",
            None,
            r"'nobody/nothing' is neither a folder, nor a shipped model .* nor a repository of the Hub",
        ),
        ("gpt2", "v9", "The Hub's gpt2 has no revision 'v9'"),
        ("empty", None, "empty has no config.json"),
        ("configured", None, "configured holds no weights that can be read"),
    ],
)
def test_hub_errors(hub, name, revision, message):
    repositories, _ = hub
    save_pretrained(stored_model("gpt2"), repositories / "gpt2")
    (repositories / "empty").mkdir()
    (repositories / "configured").mkdir()
    shutil.copy(repositories / "gpt2" / "config.json", repositories / "configured")
    with pytest.raises(ValueError, match=message):
        jc.from_pretrained(name, revision=revision)


def test_without_network_a_cached_checkpoint_of_any_format_loads(hub, monkeypatch):
    import huggingface_hub
    from huggingface_hub import errors

    repositories, _ = hub
    save_pretrained(stored_model("gpt2"), repositories / "cached")
    shard(repositories / "cached")  # of all formats only the last one of safetensors

    def cached(repo_id, filename, *, revision=None):
        path = repositories / repo_id / filename
        if not path.is_file():
            raise errors.LocalEntryNotFoundError("Cannot find the requested files.")
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", cached)
    assert same_arrays(jc.from_pretrained("cached", dtype=FLOAT), stored_model("gpt2"))
    (repositories / "cached" / "model.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match="the Hub cannot be reached"):
        jc.from_pretrained("cached")


def test_without_network_and_cache(monkeypatch):
    import huggingface_hub
    from huggingface_hub import errors

    def offline(*args, **kwargs):
        raise errors.LocalEntryNotFoundError("Cannot find the requested files.\nMore.")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(
        ValueError, match=r"gpt2 is not in the cache of Hub files, and the Hub cannot be reached \(Cannot find"
    ):
        jc.from_pretrained("gpt2")


def test_a_mistyped_path_is_not_asked_of_the_hub(hub):
    _, asked = hub
    for name in ("./nowhere", "/no/where", "a/b/c", "with space", ""):
        with pytest.raises(ValueError, match=r"There is nothing at .*Expected a folder with config.json"):
            jc.from_pretrained(name)
    assert not asked


def test_names_that_differ_on_the_hub():
    assert _hub.repo_id("gpt2-small") == "gpt2"
    assert _hub.repo_id("roneneldan/TinyStories-Instruct-1Layer-21M") == "roneneldan/TinyStories-Instuct-1Layer-21M"
    for name in (
        "distilgpt2",
        "stanford-crfm/alias-gpt2-small-x21",
        "roneneldan/TinyStories-2Layers-33M",
        "EleutherAI/gpt-neo-125m",
    ):
        assert _hub.repo_id(name) == name


def test_shipped_models_in_a_wheel_and_in_a_checkout(tmp_path, monkeypatch):
    package = tmp_path / "jaxcirc"
    monkeypatch.setattr(_shipped, "_PACKAGE", package)
    with pytest.raises(ValueError, match="this installation lacks its weights"):
        shipped_folder("tiny-gpt2")
    save_pretrained(stored_model("gpt2"), tmp_path / "weights" / "tiny-gpt2")
    assert shipped_folder("tiny-gpt2") == tmp_path / "weights" / "tiny-gpt2"
    save_pretrained(stored_model("gpt2"), package / "_shipped" / "tiny-gpt2")
    assert shipped_folder("tiny-gpt2") == package / "_shipped" / "tiny-gpt2"
    model = jc.from_pretrained("tiny-gpt2", dtype=FLOAT)
    assert same_arrays(model, stored_model("gpt2"))
    assert model.name == "tiny-gpt2"


def test_an_unknown_shipped_name():
    with pytest.raises(ValueError, match="No shipped model is called 'tiny-bert'; there are tiny-gpt2, tiny-gpt-neo"):
        shipped_folder("tiny-bert")


@pytest.fixture
def byte_pairs(tmp_path) -> Path:
    """A folder with GPT-2's two tokenizer files, for a vocabulary of a few words."""
    (tmp_path / "vocab.json").write_text(json.dumps({"<|endoftext|>": 0, "h": 1, "i": 2, "hi": 3, "Ġ": 4, "Ġhi": 5}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nh i\nĠ hi\n")
    return tmp_path


def test_a_tokenizer_from_vocabulary_and_merges_alone(byte_pairs):
    tokenizer = jc.load_tokenizer(byte_pairs)
    assert tokenizer("hi hi").input_ids == [3, 5]
    assert tokenizer.eos_token_id == 0


def test_a_tokenizer_travels_with_its_model(byte_pairs, tmp_path):
    save_pretrained(stored_model("gpt2"), tmp_path / "model", jc.load_tokenizer(byte_pairs))
    assert jc.load_tokenizer(tmp_path / "model")("hi hi").input_ids == [3, 5]
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (0, 0)


def test_a_folder_without_tokenizer(folder):
    with pytest.raises(ValueError, match=r"holds no tokenizer: expected tokenizer.json, or vocab.json with merges.txt"):
        jc.load_tokenizer(folder)


def test_tokenizers_of_the_hub(monkeypatch):
    import transformers

    def serve(repo, *, revision):
        if repo != "gpt2":
            raise OSError("Can't load it.\nMore.")
        return types.SimpleNamespace(repo=repo, revision=revision)

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", serve)
    tokenizer = jc.load_tokenizer("gpt2-small", revision="v1")
    assert (tokenizer.repo, tokenizer.revision) == ("gpt2", "v1")
    with pytest.raises(ValueError, match=r"No tokenizer could be loaded for nobody/nothing \(Can't load it.\)"):
        jc.load_tokenizer("nobody/nothing")
    with pytest.raises(ValueError, match=r"There is nothing at './nowhere'"):
        jc.load_tokenizer("./nowhere")


@pytest.fixture
def endpoint(monkeypatch):
    """A Hub that counts what it is asked, and has nothing."""
    from http.server import BaseHTTPRequestHandler, HTTPServer

    from huggingface_hub import constants

    asked = []

    class Empty(BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Empty)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(_hub, "_answers", {})
    yield asked
    server.shutdown()
    server.server_close()


def test_a_hub_that_answers_is_asked_once_whether_it_does(endpoint):
    from huggingface_hub import constants

    for _ in range(3):
        with _hub.patient():
            assert constants.HF_HUB_OFFLINE is False
    assert len(endpoint) == 1


def test_a_hub_that_does_not_answer_is_waited_for_once(endpoint, monkeypatch):
    """It takes the call and says nothing, as behind some firewalls; the client is then offline, and only inside."""
    from huggingface_hub import constants

    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(_hub, "PATIENCE", 0.3)
        begun = time.monotonic()
        for _ in range(3):
            with _hub.patient():
                assert constants.HF_HUB_OFFLINE is True
            assert constants.HF_HUB_OFFLINE is False
        assert 0.25 < time.monotonic() - begun < 5
    assert not endpoint


def test_who_is_offline_does_not_ask(endpoint, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with _hub.patient():
        assert constants.HF_HUB_OFFLINE is True
    assert constants.HF_HUB_OFFLINE is True
    assert not endpoint


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny-gpt2", None),
        ("FOLDER", None),
        ("EMPTY", r"There is no .*config.json"),
        ("UNWEIGHTED", "holds no weights|expected one of"),
        ("nobody/nothing", "nor a repository of the Hub"),
    ],
)
def test_whether_there_is_a_model_is_known_before_it_is_read(name, message, hub, folder, tmp_path, monkeypatch):
    _, asked = hub
    monkeypatch.setattr("jaxcirc.interop._read.FORMATS", {name: ("torch", None) for name in ("model.safetensors",)})
    monkeypatch.chdir(tmp_path)
    folder.rename("FOLDER")
    Path("EMPTY").mkdir()
    Path("UNWEIGHTED").mkdir()
    shutil.copy("FOLDER/config.json", "UNWEIGHTED")
    if message is None:
        check_pretrained(name)
    else:
        with pytest.raises(ValueError, match=message):
            check_pretrained(name)
    assert [file for _, file, _ in asked] == ([] if name != "nobody/nothing" else ["config.json"])


@pytest.mark.parametrize("name", [None, 3, ["tiny-gpt2"], b"tiny-gpt2"])
@pytest.mark.parametrize("verb", [jc.from_pretrained, jc.load_tokenizer, jc.load_sae, jc.load_saes])
@pytest.mark.usefixtures("untyped")
def test_what_is_no_name(verb, name):
    with pytest.raises(TypeError, match=rf"{verb.__name__}.*: expected .*got {re.escape(repr(name))}"):
        verb(name)
