"""--store-ema with shared layers: the average of each shared tensor once, in memory and in checkpoints."""

from __future__ import annotations

import copy

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.dataclass.configs import EMAConfig
from fairseq.models.ema.ema import EMA
from sharing_cases import BY_NAME
from tiny_models import batch, build, make_trainer, perturb, save, train_step

from fairseq_sharing.checkpoints.files import load_checkpoint, save_atomically
from fairseq_sharing.errors import SharingError
from fairseq_sharing.schedules.at_rest import untie


def ema_trainer(data_dir, case="cycle_rev", **options):
    trainer = make_trainer(data_dir, BY_NAME[case], **options)
    trainer.cfg.ema = EMAConfig(store_ema=True, ema_decay=0.5, ema_fp32=True)
    return trainer


def tensors(model):
    return dict(model.named_parameters(remove_duplicate=False))


def test_average_of_a_pre_norm_model_of_fairseq_keeps_its_last_norm():
    model = build("pre", arch="transformer")
    ema = EMA(model, EMAConfig(store_ema=True, ema_decay=0.75))
    ema.step(perturb(model), updates=1)
    assert ema.get_model().encoder.layer_norm is not None
    assert ema.get_model().state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("fp32", [False, True])
def test_every_layer_has_the_average_of_the_tensor_it_shares(case, norm, fp32):
    model = perturb(build(norm, **case.options))
    ema = EMA(model, EMAConfig(store_ema=True, ema_decay=0.75, ema_fp32=fp32))
    expected = {name: value.detach().clone() for name, value in tensors(model).items()}
    for seed in (8, 9):
        perturb(model, seed)
        ema.step(model, updates=1)
        for name, value in tensors(model).items():
            expected[name] = 0.75 * expected[name] + 0.25 * value.detach()
    for name, value in tensors(ema.get_model()).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6, check_stride=False)
    stored = [name for name, value in model.state_dict().items() if torch.is_tensor(value)]
    assert [name for name, value in ema.get_model().state_dict().items() if torch.is_tensor(value)] == stored
    assert not fp32 or list(ema.fp32_params) == stored
    assert len(list(ema.get_model().parameters())) == len(list(model.parameters()))


def test_checkpoint_contains_each_averaged_tensor_once_and_resumes(data_dir, tmp_path):
    trainer = ema_trainer(data_dir)
    for seed in (3, 4):
        train_step(trainer, seed)
    path = save(trainer, tmp_path / "checkpoint1.pt")
    extra = load_checkpoint(path)["extra_state"]
    assert list(extra["ema"]) == list(trainer.model.state_dict())
    assert "decoder.layers.5.fc1.weight" not in extra["ema"]

    resumed = ema_trainer(data_dir)
    resumed.load_checkpoint(str(path))
    for one in (trainer, resumed):
        train_step(one, seed=5)
    ours, theirs = (tensors(one.ema.get_model()) for one in (trainer, resumed))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not torch.equal(ours["decoder.layers.0.fc1.weight"], tensors(trainer.model)["decoder.layers.0.fc1.weight"])


def test_averaged_weights_become_a_checkpoint(data_dir, tmp_path):
    trainer = ema_trainer(data_dir)
    train_step(trainer)
    path, written = str(save(trainer, tmp_path / "checkpoint1.pt")), str(tmp_path / "ema.pt")
    checkpoint_utils.save_ema_as_checkpoint(path, written)
    (model,), _ = checkpoint_utils.load_model_ensemble([written])
    averaged = trainer.ema.get_model().eval()
    with torch.no_grad():
        assert torch.equal(model.eval()(**batch())[0], averaged(**batch())[0])
    trainer = make_trainer(data_dir, BY_NAME["cycle_rev"])
    plain = str(save(trainer, tmp_path / "plain.pt"))
    with pytest.raises(
        SharingError, match=r"plain\.pt: contains no averaged weights; allowed: a checkpoint of --store"
    ):
        checkpoint_utils.save_ema_as_checkpoint(plain, written)


def test_average_begins_with_the_residual_weights_of_admin(data_dir):
    trainer = ema_trainer(data_dir, admin="profile")
    assert trainer.ema.get_model().admin_pending
    train_step(trainer)
    averaged, trained = tensors(trainer.ema.get_model()), tensors(trainer.model)
    assert not trainer.ema.get_model().admin_pending
    name = "encoder.layers.5.residual_weight"
    assert torch.equal(averaged[name], trained[name])
    first = trained[name].detach().clone()
    train_step(trainer)
    torch.testing.assert_close(averaged[name], (first + trained[name].detach()) / 2)


def test_untied_checkpoint_has_an_untied_average(data_dir, tmp_path):
    trainer = ema_trainer(data_dir)
    train_step(trainer)
    path = save(trainer, tmp_path / "checkpoint1.pt")
    save_atomically(untie(load_checkpoint(path)), tmp_path / "untied.pt")
    resumed = ema_trainer(data_dir, "none")
    resumed.load_checkpoint(str(tmp_path / "untied.pt"))
    shared, untied = tensors(trainer.ema.get_model()), tensors(resumed.ema.get_model())
    assert all(torch.equal(untied[name], shared[name]) for name in shared)
    before = copy.deepcopy(untied)
    train_step(resumed)
    after = tensors(resumed.ema.get_model())
    assert not torch.equal(after["encoder.layers.5.fc1.weight"], before["encoder.layers.5.fc1.weight"])
