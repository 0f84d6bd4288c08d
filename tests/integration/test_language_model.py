"""The shared language model in fairseq's own commands: training, resume and perplexity."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from fairseq_processes import PLUGIN

from fairseq_sharing import flags
from fairseq_sharing.checkpoints.files import load_checkpoint
from fairseq_sharing.experiment.config import compose

WORDS = [f"w{number}" for number in range(30)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, commands) -> Path:
    folder = tmp_path_factory.mktemp("lm")
    pick = random.Random(3)
    for split, lines in (("train", 300), ("valid", 40), ("test", 41)):
        # Every word is followed by one of two words, so there is something to learn.
        text = []
        for _ in range(lines):
            at = pick.randrange(30)
            text.append(" ".join(WORDS[(at := (at + pick.choice((1, 2))) % 30)] for _ in range(12)))
        (folder / split).write_text("\n".join(text) + "\n", encoding="utf-8")
    prefixes = [word for split in ("train", "valid", "test") for word in (f"--{split}pref", folder / split)]
    commands.run("fairseq_cli.preprocess", "--only-source", *prefixes, "--destdir", folder / "bin", "--workers", 1)
    return folder


# The recipe of WikiText-103 with adaptive inputs, with sizes and a learning rate schedule for this corpus.
SIZES = {
    **{"decoder_layers": 4, "unique_layers": 2, "decoder_ffn_embed_dim": 64, "decoder_attention_heads": 2},
    **{"decoder_embed_dim": 32, "decoder_input_dim": 32, "decoder_output_dim": 32, "tokens_per_sample": 64},
    **{"adaptive_input_cutoff": "'10,20'", "adaptive_softmax_cutoff": "'10,20'"},
    **{"max_tokens": 512, "precision": "fp32", "warmup_updates": 10, "lr_period_updates": 110},
}
WIKITEXT = flags.words(
    compose("wikitext103", ["row=cycle_rev_n12", *(f"train.{name}={value}" for name, value in SIZES.items())]).train
)
SMALL = [
    *("--arch", "transformer_lm_sharing", "--sharing", "cycle_rev", "--unique-layers", 2, "--decoder-layers", 4),
    *("--decoder-embed-dim", 32, "--decoder-ffn-embed-dim", 64, "--decoder-attention-heads", 2),
    *("--share-decoder-input-output-embed", "--sample-break-mode", "eos", "--tokens-per-sample", 64),
    *("--optimizer", "adam", "--lr", 0.01, "--max-tokens", 512, "--task", "language_modeling"),
]


@pytest.mark.parametrize(("recipe", "updates"), [(SMALL, 60), (WIKITEXT, 120)], ids=["small", "wikitext103"])
def test_train_resume_and_perplexity(recipe, updates, corpus, commands, tmp_path):
    words = ["fairseq_cli.train", corpus / "bin", "--user-dir", PLUGIN, "--cpu", *recipe, "--save-dir", tmp_path]
    words += ["--seed", 1, "--no-epoch-checkpoints", "--num-workers", 0, "--log-format", "simple", "--max-update"]
    commands.run(*words, 20)
    told = commands.run(*words, updates).stdout
    assert "@ 20 updates" in told, "the second training resumes from the first"
    state = load_checkpoint(tmp_path / "checkpoint_last.pt")["model"]
    assert state["_extra_state"]["stacks"]["decoder"]["layer_map"] == [0, 1, 1, 0]
    assert not [name for name in state if ".layers.2." in name or ".layers.3." in name]
    done = commands.run(
        *("fairseq_cli.eval_lm", corpus / "bin", "--user-dir", PLUGIN, "--path", tmp_path / "checkpoint_last.pt"),
        *("--task", "language_modeling", "--gen-subset", "test", "--sample-break-mode", "eos", "--cpu"),
    )
    perplexity = float(re.findall(r"Perplexity: ([\d.]+)", done.stdout + done.stderr)[-1])
    # Each of 30 words is followed by one of two, so a trained model is far below 30.
    assert 2.0 < perplexity < 12.0
