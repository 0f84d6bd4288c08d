"""Trainings with a schedule compared with a training of separate copies that are synchronized explicitly."""

from __future__ import annotations

import pytest
import torch
from scheduled_training import Copies, TrainingBatches, changes, make_trainer, train
from tiny_models import batch

# No clipping: the norm of a copy would count once per layer.
PLAIN = ("--clip-norm=0", "--adam-eps=1e-4")
DYNAMIC = ("--sharing-schedule=dynamic", "--dynamic-interval=2", "--dynamic-policy=random")
WHEN = ("--sharing-schedule=unshare", "--unshare-when")
# Name -> flags of the schedule, options of the model, batches per update.
CASES = {
    "fixed, universal": (("--sharing-schedule=unshare", "--unshare-at=3"), {"sharing": "universal"}, 2),
    "fixed, units of two layers": (
        ("--sharing-schedule=unshare", "--unshare-at=3"),
        {"sharing": "cycle", "unique_layers": 2},
        1,
    ),
    "correlation": (
        (*WHEN, "correlation", "--unshare-interval=2", "--unshare-patience=2", "--unshare-threshold=0.98"),
        {"sharing": "universal"},
        2,
    ),
    "correlation-split": (
        (*WHEN, "correlation-split", "--unshare-interval=2", "--unshare-patience=1", "--unshare-threshold=0.8"),
        {"sharing": "universal"},
        2,
    ),
    "sum instead of mean": (
        ("--sharing-schedule=unshare", "--unshare-at=3", "--tied-gradients=sum"),
        {"sharing": "cycle_rev", "unique_layers": 2},
        1,
    ),
    "one part shared": (
        ("--sharing-schedule=unshare", "--unshare-at=3"),
        {"sharing": "universal", "sharing_scope": "ffn,layer_norm"},
        1,
    ),
    "dynamic": (DYNAMIC, {}, 2),
    "dynamic, root": ((*DYNAMIC, "--tied-gradients=root"), {}, 2),
    "dynamic, all trained at first": ((*DYNAMIC, "--dynamic-initial=train"), {}, 1),
    "dynamic, a layer at a time": ((*DYNAMIC, "--dynamic-decide=layer"), {}, 1),
}


@pytest.mark.parametrize("fast", [False, True], ids=["plain", "fast"])
@pytest.mark.parametrize("name", CASES)
def test_sharing_equals_separate_copies_kept_alike(name, fast, data_dir):
    words, model_options, micro_batches = CASES[name]
    shared = make_trainer(data_dir, *words, *PLAIN, fast=fast, **model_options)
    shared.task._loss.batches = TrainingBatches()
    gradients = "root" if "root" in name else "sum" if "dynamic" in name or "sum" in name else "mean"
    copies = Copies(data_dir, shared, gradients, *PLAIN)
    if "sharing_scope" in model_options:
        copies.parts = ("fc1", "fc2", "self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm")
    for update in range(1, 9):
        train(shared, 1, micro_batches)
        train(copies.trainer, 1, micro_batches)
        if changes(shared) and changes(shared)[-1]["update"] == update:
            copies.change(changes(shared)[-1])
        copies.assert_same(shared)
    assert changes(shared), "nothing changed"
    inputs = batch()
    with torch.no_grad():
        ours, theirs = (t.get_model().eval()(**inputs)[0] for t in (shared, copies.trainer))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
