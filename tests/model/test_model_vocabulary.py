"""Every row of a resized vocabulary."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimind_jax.config import ModelConfig
from minimind_jax.model import init_params, resize_vocabulary


@pytest.mark.parametrize("tied", [True, False])
@given(data=st.data())
def test_kept_rows_are_equal_and_new_ones_the_mean_of_the_known(tied, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    n_old, n_new, dim = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 12)), 5
    params = {
        "embed": rng.standard_normal((n_old, dim)).astype(np.float32),
        "final_norm": np.ones(dim, np.float32),
        **({} if tied else {"lm_head": rng.standard_normal((dim, n_old)).astype(np.float32)}),
    }
    rows = np.array(data.draw(st.lists(st.integers(-1, n_old - 1), min_size=n_new, max_size=n_new)))
    known = np.array(sorted(data.draw(st.sets(st.integers(0, n_old - 1), min_size=1))))
    before = {name: leaf.copy() for name, leaf in params.items()}
    resized = resize_vocabulary(params, rows, known)
    assert resized.keys() == params.keys() and resized["final_norm"] is params["final_norm"]
    pairs = [(before["embed"], resized["embed"])]
    pairs += [] if tied else [(before["lm_head"].T, resized["lm_head"].T)]
    for old, new in pairs:
        assert new.shape == (n_new, dim) and new.dtype == np.float32
        for i, row in enumerate(rows):
            if row >= 0:
                np.testing.assert_array_equal(new[i], old[row])
            else:
                np.testing.assert_allclose(new[i], old[known].mean(0), rtol=1e-5, atol=1e-6)
    for name, leaf in before.items():
        np.testing.assert_array_equal(params[name], leaf)


@pytest.mark.parametrize("tied", [True, False])
def test_shapes_are_those_of_the_resized_model(tied):
    def params(vocab_size):
        model = ModelConfig(dim=8, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=vocab_size, tie_embeddings=tied)
        return {name: np.asarray(leaf) for name, leaf in init_params(model, 0).items() if name != "blocks"}

    resized = resize_vocabulary(params(7), np.arange(11) - 4, np.arange(7))
    expected = params(11)
    assert {name: leaf.shape for name, leaf in resized.items()} == {name: leaf.shape for name, leaf in expected.items()}
