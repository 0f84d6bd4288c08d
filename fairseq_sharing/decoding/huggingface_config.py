"""The Hugging Face class and configuration of a fairseq Transformer, and the models that have none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fairseq_sharing.decoding.exportable import refuse_flag, refuse_unknown
from fairseq_sharing.decoding.search import Search
from fairseq_sharing.errors import SharingError
from fairseq_sharing.options import flag_of

ENGINE = "the export to Hugging Face"
# fairseq's activations by the names of transformers.
_ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_accurate": "gelu_new",
    "gelu_fast": "gelu_new",
    "tanh": "tanh",
    "linear": "linear",
}


@dataclass(frozen=True)
class Family:
    """A class of transformers that computes the same as fairseq's Transformer.

    Attributes:
        name: name in ``huggingface_weights``.
        stock: name of the class in transformers.
        shared: name of the class in ``modeling_fairseq_sharing.py``.
        aliases: other names of the embedding table if all embeddings are tied; the class ties them.
    """

    name: str
    stock: str
    shared: str
    aliases: tuple[str, ...]

    def architecture(self, keep_sharing: bool) -> str:
        """Return the name of the model's class."""
        return self.shared if keep_sharing else self.stock

    def config_of(self, keep_sharing: bool) -> str:
        """Return the name of the configuration's class."""
        return self.architecture(keep_sharing).replace("ForConditionalGeneration", "Config")


FSMT = Family(
    "fsmt",
    "FSMTForConditionalGeneration",
    "SharedFSMTForConditionalGeneration",
    ("model.encoder.embed_tokens.weight", "model.decoder.output_projection.weight"),
)
M2M100 = Family(
    "m2m100",
    "M2M100ForConditionalGeneration",
    "SharedM2M100ForConditionalGeneration",
    ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"),
)


def choose_family(model: Any, task: Any, name: str) -> Family:
    """Choose the class that computes the same: FSMT for post-norm, M2M100 for pre-norm.

    Args:
        model: fairseq's model.
        task: fairseq's task.
        name: name of the model in error messages.

    Raises:
        SharingError: no class of transformers computes the same, or none that is supported; the message names the flag.
    """
    cfg: Any = getattr(model, "cfg", None)
    for option in ("encoder_no_ffn", "decoder_no_ffn", "embedding_factor_dim"):
        if getattr(cfg, option, None):
            refuse_flag(name, ENGINE, flag_of(option))
    refuse_unknown(model, task, name, ENGINE, _ACTIVATIONS)
    for stack in ("encoder", "decoder"):
        if getattr(cfg, stack).learned_pos:
            refuse_flag(name, ENGINE, f"--{stack}-learned-pos")
    if cfg.layernorm_embedding:
        refuse_flag(name, ENGINE, "--layernorm-embedding")
    pre = cfg.encoder.normalize_before
    if cfg.decoder.normalize_before != pre:
        refuse_flag(name, ENGINE, f"--{'encoder' if pre else 'decoder'}-normalize-before in one stack only")
    if pre and model.decoder.layer_norm is None:
        refuse_flag(name, ENGINE, "--no-decoder-final-norm")
    if (sizes := (cfg.encoder.embed_dim, cfg.decoder.embed_dim))[0] != sizes[1]:
        refuse_flag(name, ENGINE, f"--decoder-embed-dim {sizes[1]} with --encoder-embed-dim {sizes[0]}")
    if pre and len(task.source_dictionary) > len(task.target_dictionary):
        raise SharingError(
            f"{name}: {ENGINE} does not support a pre-norm model whose source dictionary "
            f"({len(task.source_dictionary)} words) is larger than its target dictionary "
            f"({len(task.target_dictionary)}); allowed: a joined dictionary (--joined-dictionary), or post-norm"
        )
    return M2M100 if pre else FSMT


def model_config(model: Any, task: Any, tied_embeddings: bool) -> dict[str, Any]:
    """Describe a model in the terms of transformers.

    Args:
        model: fairseq's model.
        task: fairseq's task, with its dictionaries and languages.
        tied_embeddings: whether source, target and output use one table.

    Returns:
        The fields of the configuration that FSMT and M2M100 have in common, with those of each.
    """
    cfg, target = model.cfg, task.target_dictionary
    fields: dict[str, Any] = {"d_model": cfg.encoder.embed_dim}
    for stack, layers in (("encoder", model.encoder.layers), ("decoder", model.decoder.layers)):
        part = getattr(cfg, stack)
        fields[f"{stack}_layers"] = len(layers)
        fields[f"{stack}_attention_heads"] = part.attention_heads
        fields[f"{stack}_ffn_dim"] = part.ffn_embed_dim
        fields[f"{stack}_layerdrop"] = 0.0
    special = {"bos": target.bos(), "pad": target.pad(), "eos": target.eos(), "decoder_start": target.eos()}
    fields |= {f"{name}_token_id": number for name, number in special.items()}
    fields |= {
        "activation_function": _ACTIVATIONS[cfg.activation_fn],
        "scale_embedding": not cfg.no_scale_embedding,
        "max_position_embeddings": max(model.max_positions()),
        "dropout": cfg.dropout,
        "attention_dropout": cfg.attention_dropout,
        "activation_dropout": cfg.activation_dropout,
        "tie_word_embeddings": tied_embeddings,
        "use_cache": True,  # FSMT computes without a causal mask if it generates without the cache
        "dtype": "float32",
    }
    return fields


def vocabulary_config(family: Family, task: Any, languages: dict[str, str]) -> dict[str, Any]:
    """Return the fields for the dictionaries, which differ between the classes.

    Args:
        family: the class.
        task: fairseq's task.
        languages: language code of each side.
    """
    if family is M2M100:
        return {"vocab_size": len(task.target_dictionary)}
    return {
        "src_vocab_size": len(task.source_dictionary),
        "tgt_vocab_size": len(task.target_dictionary),
        "langs": [languages["source"], languages["target"]],
        "forced_eos_token_id": None,  # FSMT would add the end at the length limit with log-probability 0
    }


def generation_config(config: dict[str, Any], search: Search, max_target: int) -> dict[str, Any]:
    """Return the settings with which ``generate`` finds fairseq's hypotheses.

    Args:
        config: the fields of the model's configuration.
        search: settings of fairseq's beam search.
        max_target: maximum number of target positions.

    Returns:
        The fields of ``generation_config.json``.
    """
    return {
        "num_beams": search.beam,
        "length_penalty": search.lenpen,
        "early_stopping": True,  # as fairseq, stop when as many hypotheses have ended as the beam has places
        "suppress_tokens": [config["pad_token_id"]],
        "min_new_tokens": 1,
        "max_new_tokens": min(search.max_len_b + 1, max_target),
        **{name: config[name] for name in config if name.endswith("_token_id")},
    }
