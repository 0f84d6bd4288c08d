"""Count the active parameters and operations of a model with expert banks."""

from __future__ import annotations

from fairseq_sharing.moeut.dense_layer import DenseLayer
from fairseq_sharing.moeut.options import layer_sizes
from fairseq_sharing.moeut.sigma_moe import SigmaMoE
from fairseq_sharing.moeut.stacks import dense_sizes
from fairseq_sharing.moeut.switch_head import SwitchHead


class MoECounts:
    """Mixin for a fairseq model with MoEUT stacks."""

    def expert_banks(self) -> list[dict]:
        """List the expert banks, each once even if several layers share it.

        Returns:
            For each bank ``name`` (in its first layer), ``experts``, ``active`` (experts per token) and ``parameters``.
        """
        banks, seen = [], set()
        for name, module in self.named_modules():
            if isinstance(module, SigmaMoE):
                pairs = {"": ([module.up, module.down], module.router)}
            elif isinstance(module, SwitchHead):
                pairs = {
                    ".value": ([module.value_experts], module.value_router),
                    ".output": ([module.output_experts], module.output_router),
                }
            else:
                continue
            for part, (weights, router) in pairs.items():
                if weights[0] not in seen:
                    seen.add(weights[0])
                    banks.append(
                        {
                            "name": name + part,
                            "experts": router.heads * router.num_experts,
                            "active": router.heads * router.top_k,
                            "parameters": sum(weight.numel() for weight in weights),
                        }
                    )
        return banks

    def active_parameters(self) -> int:
        """Count the parameters that one token uses if each layer selects its experts once."""
        unused = sum(bank["parameters"] * (1 - bank["active"] / bank["experts"]) for bank in self.expert_banks())
        return sum(parameter.numel() for parameter in self.parameters()) - round(unused)

    def count_macs(self, length: int) -> int:
        """Count the multiply-accumulate operations (MACs) of a forward pass over a sentence (pair) with full attention.

        Only matrix products count: routers, selected experts, attention, and the projections before and after the
        decoder.

        Args:
            length: number of source tokens and of target tokens.
        """
        total = length * self.decoder.output_embed_dim * len(self.decoder.dictionary)
        for projection in (self.decoder.project_in_dim, self.decoder.project_out_dim):
            total += length * projection.weight.numel() if projection is not None else 0
        return total + sum(self.stack_macs(stack, length) for stack in self.sharing)

    def stack_macs(self, stack: str, length: int) -> int:
        """Count the multiply-accumulate operations (MACs) of the layers of one stack. See ``count_macs``."""
        total, cross_weights = 0, set()
        for layer in getattr(self, stack).layers:
            if isinstance(layer, DenseLayer):
                total += dense_sizes(self.cfg).macs(length)
                continue
            sizes = layer_sizes(self.cfg, stack)
            side, read = sizes.attention_macs(length), sizes.read_macs(length, length)
            total += 2 * side + read + sizes.ffn_macs(length)
            if layer.encoder_attn is not None:
                total += side + read
                if layer.encoder_attn.value_experts not in cross_weights:  # layers that share it share its source side
                    cross_weights.add(layer.encoder_attn.value_experts)
                    total += side
        return total
