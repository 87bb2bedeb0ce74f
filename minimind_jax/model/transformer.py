"""The decoder: pre-norm, RMSNorm, GQA with RoPE, SwiGLU; Llama's layout, or Qwen3's with `qk_norm`.

Flax NNX modules give the structure; all layers are one stacked `Block` that `lax.scan` walks, so
compile time does not grow with depth. Training and inference use it functionally: `init_params`
makes a plain nested dict of arrays, `hidden_states` is a pure function of it. Generation walks a list
of layers instead, `hidden_states_with_cache`: a scan would copy each layer's weights and cache in every step.

Shapes: B batch, T tokens, D dim, H query heads, K key/value heads, h head_dim, F ffn_dim,
V vocabulary, L layers.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from minimind_jax.config import ModelConfig
from minimind_jax.model.attention import AttentionFn
from minimind_jax.model.rope import apply_rope, rope_tables

Params = dict[str, Any]  # nested dicts of arrays

# attend(layer_cache, q, k, v) -> (new_layer_cache, out): how a block uses its keys and values.
AttendFn = Callable[[Any, jax.Array, jax.Array, jax.Array], tuple[Any, jax.Array]]

# gather(layer) -> layer: makes one layer's parameters whole where a device holds only its part of them (FSDP).
GatherFn = Callable[[Params], Params]

_EMBED_STD = 0.02  # GPT-2's and Llama's


def _weight(rngs: nnx.Rngs, shape: tuple[int, ...], std: float, sharding: tuple[str | None, ...]) -> nnx.Param:
    value = jax.random.normal(rngs.params(), shape, jnp.float32) * std
    return nnx.Param(value, out_sharding=sharding)


def _linear(rngs: nnx.Rngs, fan_in: int, fan_out: int, sharding: tuple[str | None, ...]) -> nnx.Param:
    """A (fan_in, fan_out) matrix that keeps its input's scale at any width (LeCun); figures: docs/log.md."""
    return _weight(rngs, (fan_in, fan_out), fan_in**-0.5, sharding)


def _residual_linear(fan_in: int, fan_out: int) -> nnx.Param:
    """A matrix back into the residual stream starts at zero, each block as the identity (Fixup, arXiv:1901.09321)."""
    return nnx.Param(jnp.zeros((fan_in, fan_out), jnp.float32), out_sharding=(None, "fsdp"))


def _scale(size: int) -> nnx.Param:
    return nnx.Param(jnp.ones((size,), jnp.float32), out_sharding=(None,))


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """RMSNorm over the last axis, in at least float32 (Zhang & Sennrich 2019, arXiv:1910.07467)."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return normed.astype(x.dtype) * scale.astype(x.dtype)


class Attention(nnx.Module):
    def __init__(self, c: ModelConfig, rngs: nnx.Rngs):
        q_size, kv_size = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
        self.config = c
        self.q = _linear(rngs, c.dim, q_size, ("fsdp", None))
        self.k = _linear(rngs, c.dim, kv_size, ("fsdp", None))
        self.v = _linear(rngs, c.dim, kv_size, ("fsdp", None))
        self.o = _residual_linear(q_size, c.dim)
        if c.qk_norm:
            self.q_norm, self.k_norm = _scale(c.head_dim), _scale(c.head_dim)

    def __call__(self, x: jax.Array, rope: tuple[jax.Array, jax.Array], cache: Any, attend: AttendFn):
        c, (B, T, _) = self.config, x.shape
        q = (x @ self.q[...].astype(x.dtype)).reshape(B, T, c.n_heads, c.head_dim)
        k = (x @ self.k[...].astype(x.dtype)).reshape(B, T, c.n_kv_heads, c.head_dim)
        v = (x @ self.v[...].astype(x.dtype)).reshape(B, T, c.n_kv_heads, c.head_dim)
        if c.qk_norm:
            q, k = rms_norm(q, self.q_norm[...], c.norm_eps), rms_norm(k, self.k_norm[...], c.norm_eps)
        cache, out = attend(cache, apply_rope(q, *rope), apply_rope(k, *rope), v)
        return cache, out.reshape(B, T, -1) @ self.o[...].astype(x.dtype)


class MLP(nnx.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, c: ModelConfig, rngs: nnx.Rngs):
        self.gate = _linear(rngs, c.dim, c.ffn_dim, ("fsdp", None))
        self.up = _linear(rngs, c.dim, c.ffn_dim, ("fsdp", None))
        self.down = _residual_linear(c.ffn_dim, c.dim)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate, up, down = (w[...].astype(x.dtype) for w in (self.gate, self.up, self.down))
        return (jax.nn.silu(x @ gate) * (x @ up)) @ down


class Block(nnx.Module):
    def __init__(self, c: ModelConfig, rngs: nnx.Rngs):
        self.eps = c.norm_eps
        self.attn_norm, self.attn = _scale(c.dim), Attention(c, rngs)
        self.mlp_norm, self.mlp = _scale(c.dim), MLP(c, rngs)

    def __call__(self, x: jax.Array, rope: tuple[jax.Array, jax.Array], cache: Any, attend: AttendFn):
        cache, out = self.attn(rms_norm(x, self.attn_norm[...], self.eps), rope, cache, attend)
        x = x + out
        return x + self.mlp(rms_norm(x, self.mlp_norm[...], self.eps)), cache


class Transformer(nnx.Module):
    def __init__(self, c: ModelConfig, rngs: nnx.Rngs):
        self.config = c
        self.embed = _weight(rngs, (c.vocab_size, c.dim), _EMBED_STD, (None, "fsdp"))
        stack = nnx.vmap(lambda rngs: Block(c, rngs), transform_metadata={nnx.PARTITION_NAME: None})
        self.blocks = stack(rngs.split(c.n_layers))  # every leaf (L, ...)
        self.final_norm = _scale(c.dim)
        if not c.tie_embeddings:
            self.lm_head = _weight(rngs, (c.dim, c.vocab_size), _EMBED_STD, ("fsdp", None))

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        attend: AttendFn,
        dtype: jnp.dtype,
        remat: str,
        unroll: int,
        gather: GatherFn | None,
    ) -> jax.Array:
        rope = rope_tables(self.config, positions, dtype)
        x = self.embed[...].astype(dtype)[tokens]  # (B, T, D)
        structure, layers = nnx.split(self.blocks)

        def layer(x: jax.Array, params: Params) -> tuple[jax.Array, None]:
            block = nnx.merge(structure, gather(params) if gather else params)
            return block(x, rope, None, attend)

        layer = _rematerialised(layer, remat, gathers=gather is not None)
        x, _ = jax.lax.scan(layer, x, nnx.to_pure_dict(layers), unroll=unroll)
        return rms_norm(x, self.final_norm[...], self.config.norm_eps)


def _rematerialised(layer: Callable, remat: str, gathers: bool) -> Callable:
    """`none` keeps all activations, `dots` keeps the outputs of weight products, `full` only each layer's input.

    Gathered weights are never kept: the backward pass gathers them again, layer by layer.
    """
    if remat == "none" and not gathers:
        return layer
    policies = {"none": _all_but_gathered, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}
    return jax.checkpoint(layer, policy=policies.get(remat), prevent_cse=False)  # inside scan CSE cannot undo it


def _all_but_gathered(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name != "linear_call"


def _build(config: ModelConfig, seed: int | jax.Array) -> Transformer:
    with nnx.use_eager_sharding(False):  # out_sharding is metadata only: training places the arrays itself
        return Transformer(config, nnx.Rngs(jax.random.key(seed)))


@functools.lru_cache(maxsize=8)
def _structure(config: ModelConfig) -> tuple[Any, Any]:
    return nnx.split(jax.eval_shape(lambda: _build(config, 0)))


@functools.lru_cache(maxsize=8)
def _block_structure(config: ModelConfig) -> Any:
    with nnx.use_eager_sharding(False):
        return nnx.graphdef(jax.eval_shape(lambda: Block(config, nnx.Rngs(0))))


def init_params(config: ModelConfig, seed: int | jax.Array) -> Params:
    """Fresh float32 parameters, a pure function of (config, seed)."""
    return nnx.to_pure_dict(nnx.state(_build(config, seed), nnx.Param))


def abstract_params(config: ModelConfig) -> Params:
    """The parameters' shapes and dtypes (`jax.ShapeDtypeStruct`), nothing allocated."""
    return nnx.to_pure_dict(_structure(config)[1])


def param_partition_specs(config: ModelConfig) -> Params:
    """`jax.sharding.PartitionSpec` of every parameter over the mesh axis `fsdp`."""
    return nnx.to_pure_dict(nnx.get_partition_spec(_structure(config)[1]))


def count_params(config: ModelConfig) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))


def hidden_states(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    *,
    attention: AttentionFn,
    dtype: jnp.dtype = jnp.float32,
    remat: str = "none",
    unroll: int = 1,
    gather: GatherFn | None = None,
) -> jax.Array:
    """The final normed hidden states of packed rows.

    Args:
      tokens, positions, segment_ids: int32 (B, T). Tokens attend within equal segment ids only.
      dtype: of activations and of the weights' working copy.
      remat: none | dots | full. unroll: `lax.scan`'s.
      gather: with FSDP, makes a layer's parameters whole; all others of `params` are whole already.

    Returns: (B, T, D) in `dtype`.
    """

    def attend(cache: None, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[None, jax.Array]:
        return cache, attention(q, k, v, segment_ids)

    model = nnx.merge(_structure(config)[0], params)
    return model(tokens, positions, attend, dtype, remat, unroll, gather)


@functools.partial(jax.jit, static_argnames=("dtype",))
def unstack_layers(params: Params, dtype: jnp.dtype) -> Params:
    """The parameters in `dtype`, `blocks` a list with one entry a layer, as `hidden_states_with_cache` takes them."""
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    n_layers = len(params["blocks"]["attn_norm"])
    return params | {"blocks": [jax.tree.map(operator.itemgetter(i), params["blocks"]) for i in range(n_layers)]}


def hidden_states_with_cache(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    positions: jax.Array,
    caches: Sequence[Any],
    attend: AttendFn,
) -> tuple[jax.Array, tuple[Any, ...]]:
    """Like `hidden_states`, but `attend` sees and returns each layer's entry of `caches`.

    Args:
      params: of `unstack_layers`; the activations have their dtype.

    Returns: (B, T, D), and the layers' new caches.
    """
    x = params["embed"][tokens]  # (B, T, D)
    rope = rope_tables(config, positions, x.dtype)
    new_caches = []
    for layer, cache in zip(params["blocks"], caches, strict=True):
        x, cache = nnx.merge(_block_structure(config), layer)(x, rope, cache, attend)
        new_caches.append(cache)
    return rms_norm(x, params["final_norm"], config.norm_eps), tuple(new_caches)


def output_matrix(params: Params) -> jax.Array:
    """The (D, V) matrix that maps hidden states to logits: `lm_head`, or the transposed embedding if tied."""
    return params["lm_head"] if "lm_head" in params else params["embed"].T


def logits(params: Params, hidden: jax.Array) -> jax.Array:
    """Logits in at least float32: hidden (..., D) -> (..., V)."""
    accum = jnp.promote_types(hidden.dtype, jnp.float32)
    return jnp.matmul(hidden, output_matrix(params).astype(hidden.dtype), preferred_element_type=accum)
