"""Count the padding in the batches of a dataset: an upper bound of what batches without padding could save.

Run: python -m benchmarks.training.padding --data data/news_commentary [--output results/speed/padding.json]
The batches are fairseq's own, with up to --max-tokens tokens, drawn at random.
"""

from __future__ import annotations

import argparse
from argparse import Namespace
from pathlib import Path

from fairseq.tasks.translation import TranslationTask

import fairseq_sharing  # noqa: F401  fixes fairseq's batching
from benchmarks.record import environment, write


def count(data: Path, max_tokens: int, batches: int) -> dict[str, dict[str, int]]:
    """Count the tokens and the padding of each side."""
    task = TranslationTask.setup_task(
        Namespace(
            **{"data": str(data / "bin"), "source_lang": None, "target_lang": None, "left_pad_source": True},
            **{"left_pad_target": False, "upsample_primary": -1, "truncate_source": False, "load_alignments": False},
            **{
                "max_source_positions": 1024,
                "max_target_positions": 1024,
                "num_batch_buckets": 0,
                "dataset_impl": None,
            },
            **{"train_subset": "train", "required_seq_len_multiple": 1},
        )
    )
    task.load_dataset("train")
    iterator = task.get_batch_iterator(
        task.dataset("train"), max_tokens=max_tokens, max_positions=(1024, 1024), required_batch_size_multiple=8, seed=1
    ).next_epoch_itr(shuffle=True)
    sides = {"source": {"places": 0, "padding": 0}, "target": {"places": 0, "padding": 0}}
    for _, sample in zip(range(batches), iterator, strict=False):
        for side, words in (("source", sample["net_input"]["src_tokens"]), ("target", sample["target"])):
            sides[side]["places"] += words.numel()
            sides[side]["padding"] += int(words.eq(task.target_dictionary.pad()).sum())
    return sides


def main() -> None:
    """Count, print the shares and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a prepared data directory")
    parser.add_argument("--max-tokens", type=int, default=4096, help="tokens per batch (default: 4096)")
    parser.add_argument("--batches", type=int, default=200, help="number of batches (default: 200)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    sides = count(args.data, args.max_tokens, args.batches)
    both = {key: sum(side[key] for side in sides.values()) for key in ("places", "padding")}
    shares = {name: found["padding"] / found["places"] for name, found in {**sides, "both": both}.items()}
    print(", ".join(f"{name} {share:.2%}" for name, share in shares.items()))
    settings = {"data": args.data.name, "max_tokens": args.max_tokens, "batches": args.batches}
    write({**environment(), **settings, "sides": sides, "padding_share": shares}, args.output)


if __name__ == "__main__":
    main()
