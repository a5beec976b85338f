"""What results look like at a prompt and in a notebook."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Part, Site
from jaxcirc._shown import described, Shown
from tests.helpers import make_model, MODELS, tokens_for
from tests.test_public_api import public_names


@pytest.fixture(scope="module")
def model():
    return make_model(jax.random.key(0))


def test_an_array_has_axes_and_ends():
    effects = jc.components.Decoded(jnp.asarray([[-2.0, 0.5, 1.5]]))
    assert described(np.arange(6.0).reshape(2, 3)) == "float64[2, 3], 0 to 5"
    assert described(np.asarray([np.nan, -0.0])) == "float64[2], 0"
    assert described(np.asarray([np.nan])) == "float64[1], nothing but NaN"
    assert described(np.asarray([True, False])) == "bool[2], 1 of 2 true"
    assert described(jax.random.key(0)) == "key<fry>[]"
    assert "-2 to 1.5" in repr(effects)


def test_axes_have_the_names_of_the_annotation(model):
    tokens = tokens_for(model, 5)[None]
    shown = repr(jc.direct_effects(model, tokens))
    assert "heads" in shown
    assert "[batch 1, layer 2, head 2, seq 5]" in shown
    assert "neurons" not in shown  # none was asked for
    assert len(shown.splitlines()) < 10


def test_a_model_in_ten_lines():
    for name, make in MODELS.items():
        model = make(jax.random.key(0))
        shown = repr(model)
        assert f"{model.n_layers}, d_model {model.d_model}" in shown, name
        assert len(shown.splitlines()) < 15
        assert f"{sum(leaf.size for leaf in jax.tree.leaves(model)):,}" in shown
        assert repr(jax.tree.map(lambda x: None, model))  # a tree of anything


def test_sites_are_written_as_they_are_made():
    for site in (Site(3, Kind.MLP_OUT), Site(0, Kind.RESID_PRE).acts, Site(None, Kind.LOGITS)):
        assert eval(repr(site), {"Site": Site, "Kind": Kind, "Part": Part}) == site


def test_while_a_program_is_traced(model):
    """An array that has no numbers yet is shown by its shape."""
    seen = []

    @jax.jit
    def traced(model):
        seen.extend([repr(model), repr(jc.components.Decoded(model.W_U))])
        return model.W_U

    traced(model)
    assert all(seen)
    assert "to" not in seen[1].splitlines()[1]


def test_a_notebook_gets_tables_and_no_html_of_the_names():
    import pandas as pd

    class Named(Shown):
        def _facts(self):
            return {"<script>": "<b>bold</b>"}

        def _tables(self):
            return {"<i>rows</i>": pd.DataFrame({"token": ["<img src=x>"] * 12})}

    html = Named()._repr_html_()
    assert "<script>" not in html
    assert "<b>" not in html
    assert "<i>" not in html
    assert "<img" not in html
    assert "the first 10 of 12" in html
    assert html.count("<tr") == 1 + 11


def test_results_show_their_tables(model):
    circuit = jc.Circuit(
        pd_frame(
            node=["a", "b"], site=["hook_embed"] * 2, unit=[1, 2], kind=["latent"] * 2, pos=[0, 1], effect=[0.5, -2.0]
        ),
        pd_frame(source=["a"], target=["metric"], weight=[0.25]),
        {"model": "m"},
    )
    html = circuit._repr_html_()
    assert "Circuit(2 nodes, 1 edges" in html or "Circuit(2 nodes" in html
    assert html.index("-2.0") < html.index("0.5") < html.index("0.25")
    J = jc.edge(model, tokens_for(model, 4), "blocks.0.hook_resid_pre", "blocks.1.hook_resid_post")
    assert "EdgeJacobian(blocks.0.hook_resid_pre [4, 16] -&gt;" in J._repr_html_()


def pd_frame(**columns):
    import pandas as pd

    return pd.DataFrame(columns)


def test_public_results_are_shown():
    """Whatever a verb returns at the top level; what is passed to verbs is written as it is made."""
    modules = {name: value for name, value in public_names().items() if isinstance(value, type) and "." not in name}
    results = {name for name, value in modules.items() if issubclass(value, Shown)}
    assert {
        "Circuit",
        "Transformer",
        "EdgeJacobian",
        "NodeEffects",
        "SelfRepair",
        "LensReadout",
        "Evaluation",
    } <= results
    given = (jc.AbstractEdit, jc.AbstractMetric, jc.AbstractAblation, jc.components.AbstractFit)
    nodes = {"Neuron", "Latent", "Error", "Head", "Token", "Position", "Bias", "Direction", "Final"}
    others = {
        name
        for name, value in modules.items()
        if name not in results | nodes and not issubclass(value, given) and not name.startswith("Abstract")
    }
    assert others <= {"AtPStar", "Claim", "Conditional", "Exact", "ExactPatching", "Gradient", "IntegratedGradients", "Kind", "Part",
                      "Site", "Unconditional"}  # fmt: skip
