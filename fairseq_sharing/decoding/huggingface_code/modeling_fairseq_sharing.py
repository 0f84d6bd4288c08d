"""Translation models of fairseq-sharing: the weights of a layer that several depths share are stored once.

The models compute what FSMT (post-norm) and M2M100 (pre-norm) of transformers compute. They only tie parameters, which
those classes cannot do for layers. Load with ``AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)``.
Tested with transformers 5.24.0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from transformers import FSMTConfig, FSMTForConditionalGeneration, M2M100Config, M2M100ForConditionalGeneration

_POSITIONS = tuple(f"model.{stack}.embed_positions.weight" for stack in ("encoder", "decoder"))


class SharedFSMTConfig(FSMTConfig):
    """Configuration of a post-norm model.

    Attributes:
        shared_weights: a module or parameter that owns no weights -> the one whose weights it uses.
        stored_positions: whether the file contains the table of positions; it is computed otherwise.
    """

    model_type = "fairseq_sharing_fsmt"
    shared_weights: dict[str, str] | None = None
    stored_positions: bool = False


class SharedM2M100Config(M2M100Config):
    """Configuration of a pre-norm model.

    Attributes:
        shared_weights: a module or parameter that owns no weights -> the one whose weights it uses.
    """

    model_type = "fairseq_sharing_m2m100"
    shared_weights: dict[str, str] | None = None


def tied_parameters(names: Iterable[str], shared: Mapping[str, str]) -> dict[str, str]:
    """Find the parameters that use the weights of another one.

    Args:
        names: names of all parameters.
        shared: ``shared_weights`` of the configuration.

    Returns:
        Name of each such parameter -> name of the parameter that owns the weights.
    """
    ties = {}
    for name in names:
        parts = name.split(".")
        for end in range(len(parts), 0, -1):
            owner = shared.get(".".join(parts[:end]))
            if owner is not None:
                ties[name] = ".".join([owner, *parts[end:]])
                break
    return ties


class SharedWeights:
    """Ties parameters in addition to the embeddings, when a model is built, loaded and saved."""

    config: Any
    _tied_weights_keys: Any

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Return the names of all tied parameters: that of the embeddings, then those of the configuration."""
        model: Any = super()
        names = [name for name, _ in self.named_parameters(remove_duplicate=False)]  # type: ignore[attr-defined]
        ties: dict[str, str] = model.get_expanded_tied_weights_keys(all_submodels)
        return {**ties, **tied_parameters(names, self.config.shared_weights or {})}

    def post_init(self) -> None:
        """Complete the construction; saving reads the names of tied parameters from the instance."""
        model: Any = super()
        model.post_init()
        self._tied_weights_keys = self.get_expanded_tied_weights_keys()


class SharedFSMTForConditionalGeneration(SharedWeights, FSMTForConditionalGeneration):
    """A post-norm model with shared weights."""

    config_class = SharedFSMTConfig

    def post_init(self) -> None:
        """Complete the construction; positions that can be computed are neither saved nor expected in a file."""
        if not self.config.stored_positions:
            self._keys_to_ignore_on_save = set(_POSITIONS)
            self._keys_to_ignore_on_load_missing = set(_POSITIONS)
        super().post_init()


class SharedM2M100ForConditionalGeneration(SharedWeights, M2M100ForConditionalGeneration):
    """A pre-norm model with shared weights."""

    config_class = SharedM2M100Config
