"""The memory of a training step, counted without storage, equals what torch allocates in a real step."""

from __future__ import annotations

import itertools
from argparse import Namespace

import pytest
import torch
from fairseq import criterions, models
from tiny_models import EMBED, EOS, PAD, VOCABULARY, arguments, dictionary

from fairseq_sharing import flags
from fairseq_sharing.description.step_memory import TrainingStep, estimate
from fairseq_sharing.errors import SharingError

LENGTH, SENTENCES = 16, 24
TOKENS = LENGTH * SENTENCES
FUSED = {"fast": True, "criterion": "fused_label_smoothed_cross_entropy", "label_smoothing": 0.1}
PLAIN = {"fast": False, "criterion": "label_smoothed_cross_entropy", "label_smoothing": 0.1}


def options(norm="post", **changes):
    sizes = {"sharing": "cycle", "unique_layers": 2, "encoder_layers": 3, "decoder_layers": 3, "dropout": 0.1}
    return arguments(norm, optimizer="adam", **{**sizes, **FUSED, **changes})


class RealStep:
    """A step of a real model: the bytes saved for the backward pass, and the peak of allocated bytes."""

    def __init__(self, args):
        symbols = dictionary()
        task = Namespace(source_dictionary=symbols, target_dictionary=symbols)
        self.model = models.build_model(args, task).train()
        self.criterion = criterions.build_criterion(args, task)
        words = torch.randint(4, VOCABULARY, (SENTENCES, LENGTH))
        words[:, -1] = EOS
        words[0, -1] = PAD
        inputs = {"src_tokens": words, "src_lengths": words.ne(PAD).sum(1), "prev_output_tokens": words}
        self.sample = {"net_input": inputs, "target": words, "ntokens": TOKENS - 1, "nsentences": SENTENCES}

    def saved(self):
        own = {parameter.untyped_storage().data_ptr() for parameter in self.model.parameters()}
        sizes = {}

        def save(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            loss = self.criterion(self.model, self.sample)[0]
        assert loss.requires_grad
        return sum(sizes.values())

    def most_allocated(self):
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            self.criterion(self.model, self.sample)[0].backward()
        events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
        sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
        return max(itertools.accumulate(sizes))


@pytest.mark.parametrize("recompute", [False, True], ids=["stored", "recomputed"])
@pytest.mark.parametrize("way", [FUSED, PLAIN, {"precision": "bf16"}], ids=["fast", "plain", "bf16"])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_activations_are_those_that_a_real_step_saves(norm, way, recompute):
    args = options(norm, **way, checkpoint_activations=recompute)
    told = TrainingStep(args, VOCABULARY, "cpu").count(TOKENS, LENGTH)
    assert told.activations == pytest.approx(RealStep(args).saved(), rel=0.02)


@pytest.mark.parametrize("way", [FUSED, PLAIN], ids=["fast", "plain"])
def test_the_peak_is_what_torch_allocates_at_most_in_a_real_step(way):
    args = options(**way)
    told = TrainingStep(args, VOCABULARY, "cpu").count(TOKENS, LENGTH)
    assert told.peak - told.static == pytest.approx(RealStep(args).most_allocated(), rel=0.02)


def test_weights_gradients_and_optimizer_are_the_closed_form():
    args = options()
    symbols = dictionary()
    model = models.build_model(args, Namespace(source_dictionary=symbols, target_dictionary=symbols))
    unique = sum(parameter.numel() for parameter in model.parameters())
    told = TrainingStep(args, VOCABULARY, "cpu").count(TOKENS, LENGTH)
    assert told.static == 16 * unique
    assert (told.weights, told.gradients, told.optimizer) == (4 * unique, 4 * unique, 8 * unique)


def test_a_dropout_mask_is_a_byte_an_element_on_cuda_and_four_on_cpu():
    args = options()
    on = {device: TrainingStep(args, VOCABULARY, device).count(TOKENS, LENGTH) for device in ("cuda", "cpu")}
    dropouts = 1 + 2 * args.encoder_layers + 1 + 3 * args.decoder_layers
    assert on["cpu"].activations - on["cuda"].activations == 3 * dropouts * TOKENS * EMBED


def test_attention_probabilities_are_kept_without_a_fused_kernel():
    stored = {
        (device, dropout): TrainingStep(options(attention_dropout=dropout), VOCABULARY, device).count(TOKENS, LENGTH)
        for device in ("cuda", "cpu")
        for dropout in (0.0, 0.1)
    }
    assert stored["cuda", 0.1].activations == stored["cuda", 0.0].activations
    assert stored["cpu", 0.1].activations > stored["cpu", 0.0].activations


def test_autocast_keeps_less():
    told = {
        precision: TrainingStep(options(precision=precision), VOCABULARY, "cuda").count(TOKENS, LENGTH).activations
        for precision in ("fp32", "bf16")
    }
    assert 0.5 < told["bf16"] / told["fp32"] < 0.9


@pytest.mark.parametrize("recompute", [False, True], ids=["stored", "recomputed"])
def test_the_longest_batch_fills_the_memory(recompute):
    args = options(checkpoint_activations=recompute, max_tokens=TOKENS)
    memory = 20e6
    found = estimate(args, VOCABULARY, LENGTH, memory, "cpu")
    step = TrainingStep(args, VOCABULARY, "cpu")
    assert step.count(found.longest_batch, LENGTH).peak == pytest.approx(memory, rel=0.01)
    at_most = step.count(TOKENS, LENGTH)
    assert (found.tokens, found.static, found.peak) == (TOKENS, at_most.static, at_most.peak)


def test_recomputation_makes_the_longest_batch_longer():
    longest = [
        estimate(options(checkpoint_activations=recompute), VOCABULARY, LENGTH, 20e6, "cuda").longest_batch
        for recompute in (False, True)
    ]
    assert longest[1] > 1.5 * longest[0]


def test_no_batch_fits_if_the_weights_do_not():
    assert estimate(options(), VOCABULARY, LENGTH, 1000, "cuda").longest_batch == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"act": "both", "criterion": "label_smoothed_cross_entropy_with_ponder", "fast": False},
        {"admin": "profile"},
    ],
    ids=["act", "admin"],
)
def test_what_stands_around_the_layers_is_counted(changes):
    told = TrainingStep(options(**changes), VOCABULARY, "cuda").count(TOKENS, LENGTH)
    assert told.activations > TrainingStep(options(), VOCABULARY, "cuda").count(TOKENS, LENGTH).activations


def test_a_language_model_with_an_adaptive_softmax_is_counted():
    train = {
        "task": "language_modeling",
        "arch": "transformer_lm_sharing",
        "decoder_layers": 2,
        "decoder_embed_dim": EMBED,
        "decoder_attention_heads": 2,
        "adaptive_softmax_cutoff": "20,40",
        "criterion": "adaptive_loss",
    }
    told = TrainingStep(flags.parse(train), VOCABULARY, "cuda").count(TOKENS, LENGTH)
    assert told.activations > TOKENS * EMBED * 4


def test_expert_banks_are_refused_in_one_line():
    train = {"arch": "transformer_moeut_tiny", "criterion": "moe_cross_entropy"}
    with pytest.raises(
        SharingError, match="transformer_moeut_tiny: the memory of experts depends on the tokens"
    ) as caught:
        TrainingStep(flags.parse(train), VOCABULARY, "cuda")
    assert "\n" not in str(caught.value)
