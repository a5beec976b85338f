"""The study of indirect objects: that its commands run, and find what their page says."""

import numpy as np
import pytest

import jaxcirc as jc

from .helpers import example
from .real import needs_smollm2, SMOLLM2


@pytest.fixture(scope="module")
def study():
    return example("indirect_objects")


def test_the_shipped_model(study, tmp_path):
    study.main("tiny-gpt2", tmp_path)
    page = (tmp_path / "indirect-objects.md").read_text("utf-8")
    assert {path.name for path in tmp_path.glob("*.svg")} == {
        f"indirect-objects-tiny-gpt2-{what}.svg" for what in ("logits", "inputs", "patterns", "weighted")
    }
    assert page.count("## tiny-gpt2\n") == 1
    assert all(f"### {number}. " in page for number in (1, 2, 3, 4))
    model, tokenizer = jc.from_pretrained("tiny-gpt2"), jc.load_tokenizer("tiny-gpt2")
    prompts = jc.data.ioi(tokenizer, study.PROMPTS, template="mixed", flip=("IO",), seed=0)
    pairs = model, prompts.clean, prompts.corrupt, prompts.metric()
    found = jc.path_patch(*pairs, receivers=["logits"], senders=["a3.h1"], positions=-1, receiver_positions=-1)
    change = np.asarray(found)[0] - study.metrics(model, prompts)
    # The strongest name mover, and one that looks at the names.
    assert f"| a3.h1 | {study.plus_minus(change)} |" in page
    assert "| a3.h1 | name mover | end |" in page
    assert "| a1.h3 | name mover | end | IO 0.30 / 0.31, S1 0.68 / 0.68, S2 0.00 / 0.00, end 0.00 / 0.00 |" in page
    assert "through them: something moves them" in page.replace("\n", " ")
    assert "| 2 | name movers' keys do not tell which name IO is | **holds** |" in page


def test_sections_of_models_stand_together(study, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "study", lambda case, folder, stem: ["what was found"])
    page = tmp_path / "indirect-objects.md"
    page.write_text("# Before\n\n## Another\n\nkept\n\n## tiny-gpt2\n\nold\n", encoding="utf-8")
    for _ in range(2):
        study.main("tiny-gpt2", tmp_path, count=4)
        text = page.read_text("utf-8")
        assert text.startswith(study.HEAD)
        assert text.endswith("## Another\n\nkept\n\n## tiny-gpt2\n\nwhat was found\n")
        assert "old" not in text


@needs_smollm2
def test_name_movers_of_smollm2(study):
    case = study.case_of(jc.from_pretrained(SMOLLM2), jc.load_tokenizer(SMOLLM2), 6)
    changes = case.sent("IO", ["logits"], ["a23.h0", "a23.h1", "a29.h1", "a24.h4", "a29.h0"], at=["end"], read=["end"])
    assert changes[:3].mean(1).max() < -0.5
    assert changes[3:].mean(1).min() > 0.5
