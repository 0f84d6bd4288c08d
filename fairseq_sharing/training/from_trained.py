"""Start a run from a trained model: tie the checkpoint that its configuration names before the first update."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fairseq_sharing.experiment.run_directory import RunDirectory
from fairseq_sharing.options import joined

# Name of the tied checkpoint in a run directory.
_FILE = "tied.pt"


def tied_file(config: DictConfig, run: RunDirectory) -> Path | None:
    """Return the checkpoint that a run starts from; None if it starts from new weights."""
    return run.path / _FILE if config.get("from_trained") else None


def write_tied(config: DictConfig, run: RunDirectory) -> None:
    """Tie the trained model of a run's configuration with the run's options, unless that was done before.

    Args:
        config: the composed configuration. ``from_trained`` gives the checkpoint or run directory, in which ``{seed}``
            stands for the run's seed, and the settings ``init``, ``align`` and ``fit_iterations`` of ``tie``.
        run: the run directory.

    Raises:
        SharingError: the checkpoint is missing or damaged, or it cannot be tied with the run's options.
    """
    output = tied_file(config, run)
    if output is None or output.is_file() or any(run.checkpoints.glob("checkpoint*.pt")):
        return
    # These imports take seconds, and most runs need none of them.
    import fairseq_sharing
    from fairseq_sharing.adapters.kinds import DEPTH_OPTIONS
    from fairseq_sharing.checkpoints.files import load_checkpoint, save_atomically
    from fairseq_sharing.checkpoints.tie import SHARING_OPTIONS, tie
    from fairseq_sharing.decoding.model_files import checkpoint_file
    from fairseq_sharing.errors import SharingError

    fairseq_sharing.register()
    settings = OmegaConf.to_container(config.from_trained)
    assert isinstance(settings, dict)
    names = (*SHARING_OPTIONS, *DEPTH_OPTIONS, "encoder_layers", "decoder_layers")
    options = {name: joined(config.train.get(name)) for name in names}
    path = checkpoint_file(Path(str(settings["checkpoint"]).replace("{seed}", str(config.seed))))
    rules: dict[str, Any] = {str(key): value for key, value in settings.items() if key != "checkpoint"}
    try:
        tied = tie(load_checkpoint(path), options, **rules)
    except SharingError as error:
        raise SharingError(f"{path}: {error}") from error
    save_atomically(tied, output)
