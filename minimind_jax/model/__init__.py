"""The network: pure functions of (config, parameters, tokens). No mesh, no data, no I/O."""

from minimind_jax.model.attention import AttentionFn, pick_attention, xla_attention
from minimind_jax.model.transformer import (
    GatherFn,
    Params,
    abstract_params,
    count_params,
    hidden_states,
    hidden_states_with_cache,
    init_params,
    logits,
    output_matrix,
    param_partition_specs,
    unstack_layers,
)
from minimind_jax.model.vocabulary import resize_vocabulary

__all__ = [
    "AttentionFn",
    "GatherFn",
    "Params",
    "abstract_params",
    "count_params",
    "hidden_states",
    "hidden_states_with_cache",
    "init_params",
    "logits",
    "output_matrix",
    "param_partition_specs",
    "pick_attention",
    "resize_vocabulary",
    "unstack_layers",
    "xla_attention",
]
