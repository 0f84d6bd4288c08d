"""Data that benchmarks make up."""

from fairseq_sharing.description.step_memory import stand_in_task


def write_dictionaries(folder: str, vocabulary: int) -> None:
    """Write the dictionaries of a data directory, English and German, of that many symbols each."""
    for language in ("en", "de"):
        stand_in_task(vocabulary).source_dictionary.save(f"{folder}/dict.{language}.txt")
