"""Count what a token uses of a model with expert banks: parameters and operations."""

from __future__ import annotations

from fairseq_sharing.moeut.dense_layer import DenseLayer
from fairseq_sharing.moeut.options import layer_sizes
from fairseq_sharing.moeut.sigma_moe import SigmaMoE
from fairseq_sharing.moeut.stacks import dense_sizes
from fairseq_sharing.moeut.switch_head import SwitchHead


class MoECounts:
    """Mixin for a fairseq model of MoEUT's stacks."""

    def expert_banks(self) -> list[dict]:
        """List the banks, each once however many layers share it.

        Returns:
            Of each: ``name`` (of its first layer), ``experts``, ``active`` (of them, for one token) and ``parameters``.
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
        """Count the parameters that one token uses when a layer chooses its experts once."""
        unused = sum(bank["parameters"] * (1 - bank["active"] / bank["experts"]) for bank in self.expert_banks())
        return sum(parameter.numel() for parameter in self.parameters()) - round(unused)

    def count_macs(self, length: int) -> int:
        """Count the multiply-accumulate operations of one forward pass over a sentence (pair), full attention.

        Matrix products only: routers, chosen experts, attention and the output projection.

        Args:
            length: source and target tokens.
        """
        total = length * self.decoder.output_embed_dim * len(self.decoder.dictionary)
        for stack in self.sharing:
            layers = getattr(self, stack).layers
            cross_weights = set()
            for layer in layers:
                if isinstance(layer, DenseLayer):
                    total += dense_sizes(self.cfg).macs(length)
                    continue
                sizes = layer_sizes(self.cfg, stack)
                source, destination = sizes.attention_macs(length)
                total += source + destination + sizes.read_macs(length, length) + sizes.ffn_macs(length)
                if layer.encoder_attn is not None:
                    total += destination + sizes.read_macs(length, length)
                    cross_weights.add(layer.encoder_attn.value_experts)
                    memory = source
            total += len(cross_weights) and len(cross_weights) * memory
        return total
