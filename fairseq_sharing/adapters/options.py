"""Flags of the depth parameters."""

from dataclasses import dataclass
from typing import Optional

from fairseq.dataclass import FairseqDataclass

from fairseq_sharing.adapters.kinds import MATRICES
from fairseq_sharing.options import option_field


@dataclass
class AdapterOptions(FairseqDataclass):
    """Options of the depth parameters."""

    # fairseq derives the flags from these annotations at run time: use Optional and no postponed annotations.

    depth_lora: Optional[int] = option_field(
        "rank R of a low-rank adapter per depth: the layer uses W + B A, where W is shared and B and A belong to the "
        "depth; B starts at zero, or fairseq-sharing tie sets both from a trained model"
    )
    depth_lora_of: str = option_field(
        "matrices with an adapter, a comma-separated list of " + ", ".join(MATRICES), ",".join(MATRICES)
    )
    depth_scale: bool = option_field(
        "one factor per depth and unit of the keys, the values and the feed-forward network, initially 1", False
    )
    depth_bias: bool = option_field("every depth has its own biases, including those of its LayerNorms", False)
    depth_norm: bool = option_field("every depth has its own LayerNorms", False)
