"""MoEUT's encoder and decoder: layers with expert banks between fairseq's embeddings and output projection."""

from __future__ import annotations

import torch
from fairseq.models.transformer.transformer_decoder import TransformerDecoderBase
from fairseq.models.transformer.transformer_encoder import TransformerEncoderBase
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fairseq_sharing.errors import SharingError
from fairseq_sharing.models.shared_stack import SharedStack
from fairseq_sharing.models.sharing_options import stack_sharing
from fairseq_sharing.moeut.dense_layer import DenseLayer, DenseSizes
from fairseq_sharing.moeut.options import expert_options, layer_sizes
from fairseq_sharing.moeut.peri_layer import PeriLayer, Step
from fairseq_sharing.moeut.rotary import rotation
from fairseq_sharing.moeut.switch_head import Attended


class MoEUTStack(SharedStack):
    """Base class of both stacks."""

    def _build(self, stack: str, cross_attention: bool) -> nn.Module:
        """Build the next layer and tie it to its owner."""
        cfg = self.cfg
        depth = len(self.sharing.layer_map)

        def build() -> nn.Module:
            if getattr(cfg, "layer_type", "moeut") == "dense":
                sizes = dense_sizes(cfg)
                return DenseLayer(sizes, depth, cfg.dropout, cfg.attention_dropout)
            sizes, banks = layer_sizes(cfg, stack), expert_options(cfg)
            return PeriLayer(sizes, depth, cfg.dropout, cfg.attention_dropout, cross_attention, banks)

        return self.build_tied(build)

    def describe_depth_steps(self) -> str:
        """Return an empty description: nothing is added to the stack's layers."""
        return ""

    def _run(self, layer: nn.Module, *inputs):
        """Apply a layer, with activation checkpointing if enabled."""
        if self.cfg.checkpoint_activations and self.training and torch.is_grad_enabled():
            return checkpoint(layer, *inputs, use_reentrant=False)
        return layer(*inputs)


def dense_sizes(cfg) -> DenseSizes:
    """Return the layer sizes of the dense baseline."""
    return DenseSizes(
        cfg.decoder_embed_dim, cfg.decoder_attention_heads, cfg.head_dim, cfg.decoder_ffn_embed_dim, cfg.rotary_dim
    )


class MoEUTEncoder(MoEUTStack, TransformerEncoderBase):
    """Bidirectional stack; only its output is normalized, never the residual stream."""

    def __init__(self, cfg, dictionary, embed_tokens):
        self.begin_sharing(stack_sharing(cfg, "encoder"))
        super().__init__(cfg, dictionary, embed_tokens)

    def build_encoder_layer(self, cfg):
        """Build the next layer and tie it to its owner."""
        return self._build("encoder", cross_attention=False)

    def forward(
        self, src_tokens, src_lengths=None, return_all_hiddens=False, token_embeddings=None, return_usage=False
    ):
        """Encode sentences.

        Args:
            src_tokens: (B, S).
            src_lengths: unused; fairseq passes it.
            return_all_hiddens: also return the residual stream before and after each layer.
            token_embeddings: embeddings to use instead of those of the tokens, (B, S, C).
            return_usage: return the usage of the routers' experts.

        Returns:
            fairseq's encoder output, with the usage of each layer as ``usage``.
        """
        padding = src_tokens.eq(self.padding_idx)
        x, embedded = self.forward_embedding(src_tokens, token_embeddings)
        x = x.masked_fill(padding[..., None], 0).transpose(0, 1).contiguous()  # B x S x C -> S x B x C
        turn = rotation(0, len(x), self.cfg.rotary_dim, x.device)
        mask = ~padding[:, None, None] if padding.any() else None
        step = Step(turn, ~padding.t(), mask, count=return_usage)
        states, usage = [x], []
        with self.only_active():
            for layer in self.layers:
                x, _, used = self._run(layer, x, step)
                states.append(x)
                usage.append(used)
        return {
            "encoder_out": [self.layer_norm(x)],
            "encoder_padding_mask": [padding],
            "encoder_embedding": [embedded],
            "encoder_states": states if return_all_hiddens else [],
            "src_tokens": [],
            "src_lengths": [padding.logical_not().sum(1, dtype=torch.int32, keepdim=True)],
            "usage": usage,
        }

    def upgrade_state_dict_named(self, state_dict, name):
        """Return the state dict unchanged: there are no old checkpoint formats."""
        return state_dict


class MoEUTDecoder(MoEUTStack, TransformerDecoderBase):
    """Causal stack, with cross-attention if there is an encoder.

    The decoding cache stores keys and values of self-attention per depth, never per parameter set. Keys and values of
    cross-attention depend only on the parameter set: they are computed once per sentence for all layers that share it.
    """

    def __init__(self, cfg, dictionary, embed_tokens, no_encoder_attn=False):
        self.begin_sharing(stack_sharing(cfg, "decoder"))
        super().__init__(cfg, dictionary, embed_tokens, no_encoder_attn)

    def build_decoder_layer(self, cfg, no_encoder_attn=False):
        """Build the next layer and tie it to its owner."""
        return self._build("decoder", cross_attention=not no_encoder_attn)

    def build_output_projection(self, cfg, dictionary, embed_tokens):
        """Build fairseq's output projection; if not tied to the embeddings, it is a torch linear layer with a bias."""
        super().build_output_projection(cfg, dictionary, embed_tokens)
        if self.output_projection is not None and not self.share_input_output_embed:
            self.output_projection = nn.Linear(self.output_embed_dim, len(dictionary))

    def forward(
        self,
        prev_output_tokens,
        encoder_out=None,
        incremental_state=None,
        features_only=False,
        return_usage=False,
        **unused,
    ):
        """Return scores of the next tokens. Arguments and results are as in ``extract_features`` and in fairseq."""
        x, extra = self.extract_features(prev_output_tokens, encoder_out, incremental_state, return_usage=return_usage)
        return (x if features_only else self.output_layer(x)), extra

    def extract_features(self, *args, **kwargs):
        """Run the active layers; the arguments and results are those of ``_run_layers``."""
        with self.only_active():
            return self._run_layers(*args, **kwargs)

    def _run_layers(self, prev_output_tokens, encoder_out=None, incremental_state=None, return_usage=False, **unused):
        """Run the layers.

        Args:
            prev_output_tokens: (B, T).
            incremental_state: fairseq's decoding cache; only positions that are not cached are computed.
            unused: other arguments of fairseq, for attention weights, which these layers do not return.

        Returns:
            Features, (B, new positions, C), and the dict that fairseq expects, with ``usage`` for each stack's layers.
        """
        past = [self._cached(incremental_state, f"self_attn.{depth}") for depth in range(self.num_layers)]
        start = past[0].keys.size(2) if past and past[0] is not None else 0
        keep = prev_output_tokens.ne(self.padding_idx)
        x = self.embed_scale * self.embed_tokens(prev_output_tokens[:, start:])
        if self.project_in_dim is not None:
            x = self.project_in_dim(x)
        x = self.dropout_module(x).transpose(0, 1).contiguous()  # B x T x C -> T x B x C
        step = self._step(keep, start, encoder_out, return_usage)
        memories = self._memories(encoder_out, incremental_state, step)
        states, usage = [x], []
        for depth, layer in enumerate(self.layers):
            memory, used_by_memory = memories[depth] if memories else (None, [])
            x, attended, used = self._run(layer, x, step, past[depth], memory)
            self._cache(incremental_state, f"self_attn.{depth}", attended)
            states.append(x)
            usage.append([*used, *used_by_memory])
        x = self.layer_norm(x).transpose(0, 1)  # T x B x C -> B x T x C
        if self.project_out_dim is not None:
            x = self.project_out_dim(x)
        usage_by_stack = {"encoder": encoder_out["usage"]} if encoder_out and return_usage else {}
        return x, {"attn": [None], "inner_states": states, "usage": {**usage_by_stack, "decoder": usage}}

    def make_generation_fast_(self, need_attn=False, **unused):
        """Refuse --print-alignment.

        Raises:
            SharingError: attention weights are requested.
        """
        if need_attn:
            raise SharingError(
                f"--print-alignment {need_attn}: MoEUT's attention returns no weights; allowed: leave it out"
            )

    def _step(self, keep: Tensor, start: int, encoder_out, count: bool) -> Step:
        """Return the layers' common inputs for the positions from ``start`` on."""
        total = keep.size(1)
        turn = rotation(start, total - start, self.cfg.rotary_dim, keep.device)
        memory_mask = None
        if encoder_out and encoder_out["encoder_padding_mask"]:
            padding = encoder_out["encoder_padding_mask"][0]
            memory_mask = ~padding[:, None, None] if padding.any() else None
        new = keep[:, start:].t()
        if keep.all():
            if start == 0:
                return Step(turn, new, None, total > 1, memory_mask, count)
            if total - start == 1:
                return Step(turn, new, None, False, memory_mask, count)
        positions = torch.arange(total, device=keep.device)
        distance = positions[start:, None] - positions
        # Padding may attend to itself: a fully masked row would give NaN.
        mask = (distance >= 0) & keep[:, None, None] | (distance == 0)
        return Step(turn, new, mask, False, memory_mask, count)

    def _memories(self, encoder_out, incremental_state, step: Step):
        """Return keys and values of each layer's cross-attention, and the router's usage when they are computed."""
        if not encoder_out:
            return None
        memory, made = encoder_out["encoder_out"][0], {}
        keep = ~encoder_out["encoder_padding_mask"][0].t()
        memories = []
        for depth, layer in enumerate(self.layers):
            # Keyed by the weights: a schedule may change the map, and a scope may exclude cross-attention.
            weights = layer.encoder_attn.value_experts
            used = []
            if weights not in made:
                name = f"encoder_attn.{depth}"
                made[weights] = self._cached(incremental_state, name)
                if made[weights] is None:
                    made[weights], used = self._run(layer.attend_to, memory, step, keep)
                    self._cache(incremental_state, name, made[weights])
            memories.append((made[weights], used))
        return memories

    def _cached(self, incremental_state, name: str) -> Attended | None:
        entry = self.get_incremental_state(incremental_state, name)
        return None if entry is None else Attended(entry["keys"], entry["values"])

    def _cache(self, incremental_state, name: str, attended: Attended) -> None:
        if incremental_state is not None:
            entry = {"keys": attended.keys, "values": attended.values}
            self.set_incremental_state(incremental_state, name, entry)

    def reorder_incremental_state(self, incremental_state, new_order):
        """Reorder the caches of all depths for beam search."""
        prefix = self._get_full_incremental_state_key("")
        for name, entry in incremental_state.items():
            if name.startswith(prefix):
                incremental_state[name] = {key: value.index_select(0, new_order) for key, value in entry.items()}
