"""fairseq's RoBERTa (a masked language model) with layer sharing: ``--arch roberta_sharing``."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from fairseq.models import register_model
from fairseq.models.roberta import model as roberta
from fairseq.models.transformer import TransformerConfig

from fairseq_sharing.errors import SharingError
from fairseq_sharing.fast.attention import one_pass
from fairseq_sharing.models.hydra import as_namespace
from fairseq_sharing.models.shared_stack import SharingModel
from fairseq_sharing.models.sharing_options import add_sharing_args, register_size, validate
from fairseq_sharing.models.transformer_sharing import SharedTransformerEncoder
from fairseq_sharing.options import flag_of, refuse


class SharedRobertaEncoder(roberta.RobertaEncoder):
    """RoBERTa encoder with a shared stack."""

    def build_encoder(self, args, dictionary, embed_tokens):
        """Build the shared stack and initialize it as in BERT."""
        encoder = SharedTransformerEncoder(TransformerConfig.from_namespace(args), dictionary, embed_tokens)
        encoder.apply(roberta.init_bert_params)
        return encoder


@register_model("roberta_sharing")
class RobertaSharingModel(SharingModel, roberta.RobertaModel):
    """fairseq's ``roberta`` with layer sharing.

    Source: Yang et al. 2021, Speeding up Deep Model Training by Sharing Weights and Then Unsharing (BERT).
    """

    stack_names = ("encoder.sentence_encoder",)

    def __init__(self, args, encoder):
        super().__init__(args, encoder)
        self.cfg = args
        self.watch_state_dict()
        self.start_fast(args)

    @staticmethod
    def add_args(parser: ArgumentParser) -> None:
        """Add fairseq's RoBERTa flags and the sharing flags."""
        roberta.RobertaModel.add_args(parser)
        add_sharing_args(parser)

    @classmethod
    def build_model(cls, args: Namespace, task):
        """Build the model.

        Args:
            args: fairseq's arguments; missing ones get the defaults of ``roberta_sharing``.
            task: a masked-language-modeling task with its dictionary.

        Raises:
            SharingError: if the options give no layer map or cannot be combined with it.
        """
        args = as_namespace(args)
        roberta_sharing(args)
        if getattr(args, "max_positions", None) is None:
            args.max_positions = getattr(args, "tokens_per_sample", None) or task.max_positions()
        return cls(args, SharedRobertaEncoder(args, task.source_dictionary))

    def forward(self, src_tokens, **kwargs):
        """Run fairseq's forward pass in the selected training precision."""
        with self.training_autocast(), one_pass():
            return super().forward(src_tokens, **kwargs)


def _check(args: Namespace) -> None:
    validate(args, ("encoder",))
    for option in ("admin", "act", "depth_signal"):
        if getattr(args, option) != "off":
            flag = f"{flag_of(option)} {getattr(args, option)}"
            raise SharingError(f"{flag} is not supported by roberta_sharing; allowed: off")
    refuse(args, "deepnorm", "it has initial values of its own, those of BERT", False)
    refuse(args, "embedding_factor_dim", "its output layer uses a table of the width of the model", None)


_SIZES = {
    "roberta_sharing": roberta.base_architecture,
    "roberta_sharing_prenorm": roberta.roberta_prenorm_architecture,
    "roberta_sharing_large": roberta.roberta_large_architecture,
}
_architectures = {name: register_size("roberta_sharing", name, size, _check) for name, size in _SIZES.items()}
roberta_sharing = _architectures["roberta_sharing"]
