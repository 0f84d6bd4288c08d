"""Synthetic data for benchmarks."""

from fairseq_sharing.description.step_memory import dummy_task


def write_dictionaries(folder: str, vocabulary: int) -> None:
    """Write English and German dictionaries with ``vocabulary`` symbols each to a data directory."""
    for language in ("en", "de"):
        dummy_task(vocabulary).source_dictionary.save(f"{folder}/dict.{language}.txt")
