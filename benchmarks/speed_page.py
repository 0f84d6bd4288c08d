"""Write the page of results/speed: tables and figures from the JSON files of the benchmarks.

Run: python -m benchmarks.speed_page [FOLDER]
Each section of the page shows the command that writes its JSON file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fairseq_sharing.colors import set_colors
from fairseq_sharing.reporting.plot_style import finish, new_figure, save_figure

OURS, THEIRS, *OTHERS = set_colors(8)
# Kind of operation -> names in a profile.
KINDS = {
    "matrix products": ("mm", "addmm", "addmm_", "bmm", "baddbmm", "matmul", "linear"),
    "attention": ("scaled_dot_product",),
    "softmax and loss": ("log_softmax", "softmax", "logsumexp", "gather", "nll_loss", "max", "exp", "scatter", "sub_"),
    "dropout": ("bernoulli", "random_", "dropout", "ge", "fused_dropout"),
    "copies and casts": ("copy_", "cat", "clone", "fill_", "zero_", "contiguous"),
    "norms and activation": ("layer_norm", "native_layer_norm", "threshold", "clamp_min", "relu"),
    "optimizer": ("adam", "fused_adam", "addcmul", "addcdiv", "foreach", "lerp"),
}


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Write a Markdown table."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def plural(count: int, noun: str) -> str:
    """Write a count with its noun: 1 thread, 2 threads."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def bars(ax: Any, groups: Sequence[str], series: Mapping[str, Sequence[float | None]], form: str = "{:.0f}") -> None:
    """Draw groups of bars side by side, each with its value; there is no bar for None."""
    width = 0.8 / len(series)
    for number, ((name, values), color) in enumerate(zip(series.items(), (OURS, THEIRS, *OTHERS), strict=False)):
        known = [(group, value) for group, value in enumerate(values) if value is not None]
        places = [group + (number - (len(series) - 1) / 2) * width for group, _ in known]
        heights = [value for _, value in known]
        drawn = ax.bar(places, heights, width * 0.92, label=name, color=color)
        ax.bar_label(drawn, [form.format(value) for value in heights], fontsize=8, padding=2)
    ax.set_xticks(range(len(groups)), groups)
    finish(ax)
    ax.grid(visible=False, axis="x")
    ax.margins(y=0.12)
    legend(ax)


def legend(ax: Any, columns: int = 3, below: float = 0.16) -> None:
    """Add a legend below a panel."""
    ax.legend(frameon=False, fontsize=9, ncols=columns, loc="upper center", bbox_to_anchor=(0.5, -below))


def by_kind(profile: dict[str, float]) -> dict[str, float]:
    """Sum the shares of a profile's operations by kind; "other" includes what the profile does not list."""
    shares = dict.fromkeys([*KINDS, "other"], 0.0)
    for name, share in profile.items():
        plain = name.removeprefix("aten::").removeprefix("_")
        kind = next((kind for kind, names in KINDS.items() if plain.startswith(names)), "other")
        shares["matrix products" if plain in KINDS["matrix products"] else kind] += share
    shares["other"] += 1 - sum(shares.values())
    return shares


def training(found: dict, folder: Path, name: str = "training") -> str:
    """Describe training speed against stock fairseq, with a figure of this name."""
    rows = []
    for title, pair in found["pairs"].items():
        speeds = [f"{pair[side]['tokens_per_second']:.0f}" for side in ("ours", "fairseq")]
        peaks = [f"{pair[side]['peak_bytes'] / 2**30:.1f}" for side in ("ours", "fairseq")]
        share = f"{pair['share_of_matmul_peak']:.0%}"
        rows.append([title, *speeds, f"**{pair['ratio']:.2f}x**", share, *peaks])
    figure = new_figure(12, 4.4)
    left, right = figure.subplots(1, 2)
    pairs = found["pairs"]
    sides = {"fairseq-sharing": "ours", "stock fairseq": "fairseq"}
    values = {title: [pair[side]["tokens_per_second"] for pair in pairs.values()] for title, side in sides.items()}
    bars(left, [name.replace(" against", "\nagainst") for name in pairs], values)
    left.set_ylabel("target tokens per second")
    left.set_title("training speed")
    pair = next(iter(pairs.values()))
    labels, bottoms = list(sides), [0.0, 0.0]
    shares = [by_kind(pair[side]["profile"]) for side in sides.values()]
    # Duration of an update relative to ours.
    lengths = [1.0, pair["ratio"]]
    for kind, color in zip([*KINDS, "other"], set_colors(len(KINDS) + 1), strict=True):
        if not any(share[kind] for share in shares):
            continue
        heights = [share[kind] * length for share, length in zip(shares, lengths, strict=True)]
        right.barh(labels, heights, left=bottoms, label=kind, color=color)
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    right.set_xlabel("time per update, fairseq-sharing = 1")
    right.set_title(f"time per update by operation, {next(iter(pairs))}")
    finish(right)
    right.grid(visible=False, axis="y")
    legend(right)
    save_figure(figure, folder, name)
    head = [
        "pair",
        "fairseq-sharing, tokens/s",
        "stock fairseq, tokens/s",
        "ratio",
        "fairseq-sharing, share of matmul peak",
    ]
    ours, theirs = found["precision"]["ours"], found["precision"]["fairseq"]
    settings = f"fairseq-sharing in {ours}, stock fairseq in {theirs}"
    peak = f"peak of a large {ours} matrix product: {found['matmul_peak_flops'] / 1e9:.0f} GFLOP/s"
    turns = f"medians of {found['runs']} alternating runs of {plural(found['updates_a_run'], 'update')}"
    text = f"{settings}, {plural(found['threads'], 'thread')}, {turns}; {peak}."
    profiles = [
        [kind, *(f"{share[kind]:.1%}" for share in shares)]
        for kind in [*KINDS, "other"]
        if any(s[kind] for s in shares)
    ]
    return "\n\n".join(
        [
            text,
            table([*head, "fairseq-sharing, peak GiB", "stock fairseq, peak GiB"], rows),
            f"Time per update by operation, {next(iter(pairs))}:",
            table(["", *labels], profiles),
            f"![training]({name}.png)",
        ]
    )


def parts(found: dict, _folder: Path) -> str:
    """Describe the gain of each part of the fast path."""
    told = [
        [part, f"{row['tokens_per_second']:.0f}", *(f"{row[to]:.2f}x" for to in ("to_plain", "to_before"))]
        for part, row in found["rows"].items()
    ]
    settings = f"{found['precision']}, {found['tokens']:,} tokens per batch, {plural(found['threads'], 'thread')}"
    text = f"Cycle (rev), M = 6, N = 12, d_model 512; {settings}, medians of {found['runs']} alternating runs."
    return "\n\n".join([text, table(["", "tokens/s", "relative to plain", "relative to the row above"], told)])


def allocators(found: dict, _folder: Path) -> str:
    """Describe training with other memory allocators."""
    told = [
        [name, f"{one['tokens_per_second']:.0f}", f"{one['to_glibc']:.2f}x", f"{one['peak_bytes'] / 1e9:.2f}"]
        for name, one in found["rows"].items()
    ]
    return (
        f"{plural(found['threads'], 'thread')}, {found['precision']}, {found['runs']} runs of "
        f"{found['updates_a_run']} updates in turn, each on another batch; medians and the largest process size.\n\n"
        + table(["allocator", "tokens/s", "ratio", "GB"], told)
    )


def padding(found: dict, _folder: Path) -> str:
    """Describe the share of padding."""
    shares = ", ".join(f"{side} {share:.2%}" for side, share in found["padding_share"].items())
    return (
        f"Padding in {found['batches']} random batches of {found['max_tokens']:,} tokens of {found['data']}: {shares}."
    )


def rows(found: dict, folder: Path) -> str:
    """Describe the training speed of the paper's rows."""
    from fairseq_sharing.reporting.paper import ROWS

    told = [
        [ROWS[row].title, f"{one['parameters']:,}", f"{one['tokens_per_second']:.0f}"]
        for row, one in found["rows"].items()
    ]
    for line, one in zip(told, found["rows"].values(), strict=True):
        line += [f"{one['relative']:.2f}", "-" if one["paper"] is None else f"{one['paper']:.2f}"]
    figure = new_figure(12, 4)
    ax = figure.subplots()
    names = [ROWS[row].title.replace(", ", "\n").replace(" (", "\n(") for row in found["rows"]]
    ours = [one["relative"] for one in found["rows"].values()]
    bars(ax, names, {"measured here": ours, "the paper": [one["paper"] for one in found["rows"].values()]}, "{:.2f}")
    ax.set_ylabel("tokens per second, Vanilla = 1")
    ax.tick_params(axis="x", labelsize=8)
    save_figure(figure, folder, "rows")
    settings = f"{found['precision']}, {found['tokens']:,} tokens per batch, {plural(found['threads'], 'thread')}"
    text = f"{settings}, medians of {found['runs']} alternating runs."
    head = ["row", "parameters", "tokens/s", "relative to Vanilla", "in the paper"]
    return "\n\n".join([text, table(head, told), "![rows](rows.png)"])


def decoding(found: dict, folder: Path) -> str:
    """Describe decoding speed against fairseq-generate."""
    told = []
    for row in found["speed"]:
        spread = f"{row['least']:.1f} to {row['most']:.1f}"
        told.append([row["engine"], row["load"], row["sentences_per_second"], spread, f"**{row['ratio']:.2f}x**"])
    loads = list(dict.fromkeys(row["load"] for row in found["speed"]))
    engines = list(dict.fromkeys(row["engine"] for row in found["speed"]))
    speed = {(row["engine"], row["load"]): row["sentences_per_second"] for row in found["speed"]}
    figure = new_figure(8, 4)
    ax = figure.subplots()
    bars(ax, loads, {engine: [speed[engine, load] for load in loads] for engine in engines}, "{:.1f}")
    ax.set_ylabel("sentences per second")
    save_figure(figure, folder, "decoding")
    search, tried = found["search"], found["fairseq_generate"]
    text = (
        f"{found['test']['sentences']:,} sentences of {found['test']['name']}, beam {search['beam']}, length penalty "
        f"{search['lenpen']}, medians of {found['rounds']} rounds; fastest fairseq-generate setting of those tried: "
        f"{plural(tried['threads'], 'thread')}, --max-tokens {tried['max_tokens']}."
    )
    if found["clock"] == "cpu":
        text += " Both on one thread, in processor time (--clock cpu), because the machine was shared."
    bleu = found["bleu_of_fairseq_generate"]
    same = [
        [f"CTranslate2 {kind}", f"{one['same']:.1%}", f"{one['bleu']:.2f}", f"{one['bleu'] - bleu:+.2f}"]
        for kind, one in found["agreement"].items()
    ]
    head = ["engine", "load", "sentences/s", "range", "ratio"]
    beams = (
        f"Hypotheses of the model {found['model']['name']} that are identical to those of fairseq-generate, and BLEU"
        f" (fairseq-generate: {bleu:.2f}). The shares hold for this model only:"
    )
    sizes = dict.fromkeys(row["tokens"] for row in found["batches"])
    speeds = {(row["type"], row["tokens"]): row["sentences_per_second"] for row in found["batches"]}
    types = dict.fromkeys(row["type"] for row in found["batches"])
    return "\n\n".join(
        [
            text,
            table(head, told),
            "Sentences per second of CTranslate2 by source subwords per batch, without text preparation:",
            table(["", *sizes], [[kind, *(speeds[kind, size] for size in sizes)] for kind in types]),
            beams,
            table(["", "equal", "BLEU", "difference"], same),
            "![decoding](decoding.png)",
        ]
    )


def decoding_parts(found: dict, _folder: Path) -> str:
    """Describe the decoding time by step."""
    kinds = found["seconds"]
    told = [[f"CTranslate2 {kind}", *(f"{part:.2f} s" for part in seconds.values())] for kind, seconds in kinds.items()]
    shares = list(found["fairseq_operations"].items())[:12]
    text = f"{found['sentences']:,} sentences of {found['test']}, medians of {found['rounds']} passes."
    operations = "fairseq's search, share of each of the longest operations:"
    return "\n\n".join(
        [
            text,
            table(["", "prepare", "search", "detokenize"], told),
            operations,
            table(["operation", "share"], [[f"`{name}`", f"{share:.1%}"] for name, share in shares]),
        ]
    )


def quantization(found: dict, _folder: Path) -> str:
    """Describe the translations of quantized models."""
    told = []
    for one in found["models"]:
        rows = dict(one["types"])
        bleu = rows.pop("fairseq")["bleu"]
        for number, (kind, row) in enumerate(rows.items()):
            name = f"{one['model']}, {one['test']}, {one['sentences']:,} sentences" if number == 0 else ""
            difference = f"{row['mean_difference']:.1g} / {row['largest_difference']:.1g}"
            told.append(
                [name, kind, difference, f"{row['same']:.1%}", f"{row['bleu']:.2f}", f"{row['bleu'] - bleu:+.2f}"]
            )
    text = (
        f"Beam {found['beam']}. Compared with fairseq: the log-probabilities per subword of 7 random sentences (mean "
        "and largest difference), the best hypotheses, and BLEU. One training run per model."
    )
    return f"{text}\n\n" + table(["model", "type", "difference", "equal", "BLEU", "BLEU - fairseq's"], told)


def distillation(found: dict, _folder: Path) -> str:
    """Describe the speed of distillation against fairseq-generate."""
    tried = found["fairseq_generate"]
    speed = found["sentences_per_second"]
    told = [
        [name, *(f"{speed[name][clock]:.1f}" for clock in ("wall", "cpu"))] for name in ("fairseq-generate", "distill")
    ]
    told.append(["ratio", *(f"**{found['ratio'][clock]:.2f}x**" for clock in ("wall", "cpu"))])
    workers = "1 process" if found["workers"] == 1 else f"{found['workers']} processes"
    text = (
        f"{found['sentences']:,} sentences, beam {found['beam']}, model {found['model']}, medians of {found['rounds']} "
        f"rounds in turn: `distill` with {workers}, fairseq-generate with {plural(tried['threads'], 'thread')} and "
        f"--max-tokens {tried['max_tokens']}. {found['same']:.1%} of the translations are equal."
    )
    return f"{text}\n\n" + table(["", "sentences per second", "per processor second"], told)


def memory(found: dict, folder: Path) -> str:
    """Describe the peak memory of training and its parts."""
    parts = ["weights", "gradients", "optimizer", "activations", "workspace"]
    told, shown = [], {}
    for model, ways in found["models"].items():
        for way, one in ways.items():
            measured, estimate = one["measured"], one["estimate"]
            sizes = [f"{measured[part] / 1e9:.2f}" for part in [*parts, "peak"]]
            longest = f"{one['longest_batch_80_gb_estimated']:,}"
            told.append([model, way, *sizes, f"{estimate['peak'] / 1e9:.2f}", longest])
            shown[f"{model}, {way}"] = measured
    figure = new_figure(10, 5.6)
    ax = figure.subplots()
    labels, lefts = list(shown), [0.0] * len(shown)
    for part, color in zip(parts, set_colors(len(parts)), strict=True):
        lengths = [one[part] / 1e9 for one in shown.values()]
        ax.barh(labels, lengths, left=lefts, label=part, color=color)
        lefts = [left + length for left, length in zip(lefts, lengths, strict=True)]
    ax.invert_yaxis()
    ax.set_xlabel("GB at the peak of an update")
    finish(ax)
    ax.grid(visible=False, axis="y")
    legend(ax, columns=len(parts), below=0.1)
    save_figure(figure, folder, "memory")
    head = [
        "model",
        "stored or recomputed",
        *parts,
        "peak",
        "estimated peak",
        "longest batch in 80 GB, estimated",
    ]
    checks = [
        [model, way, f"{one['tokens']:,}", f"{one['measured']['peak'] / 1e9:.2f}", f"{one['filled']:.1%}"]
        for model, ways in found["longest"].items()
        if isinstance(ways, dict)
        for way, one in ways.items()
    ]
    limit = f"{found['longest']['memory'] / 1e9:.0f} GB"
    text = (
        f"d_model 512, vocabulary 32,768, {found['tokens']:,} + {found['tokens']:,} tokens, fp32, the fast path, Adam; "
        "sizes in GB. The estimate is that of `fairseq-sharing describe`, without training."
    )
    check = f"The longest batch that fits {limit} by the estimate, trained for one update:"
    rows = table(
        ["model", "stored or recomputed", "tokens per side", "measured peak, GB", "share of the memory"], checks
    )
    return "\n\n".join([text, table(head, told), "![memory](memory.png)", check, rows])


def reuse(found: dict, _folder: Path) -> str:
    """Describe Sequence against Cycle, one sentence at a time."""
    told = [
        [row["embed_dim"], row["type"], row["sequence_ms"], row["cycle_ms"], *row["cycle_to_sequence_quartiles"]]
        for row in found["rows"]
    ]
    quartiles = (f"Cycle / Sequence, {name}" for name in ("lower quartile", "median", "upper quartile"))
    head = ["d_model", "type", "Sequence, ms per sentence", "Cycle, ms per sentence", *quartiles]
    sizes = f"{found['layers']}+{found['layers']} layers, M = {found['unique_layers']}, beam {found['beam']}"
    text = f"{sizes}, {found['sentences']} sentences, translations of {found['length']} subwords, 1 thread, CPU time."
    return "\n\n".join([text, table(head, told)])


def precision(found: dict, _folder: Path) -> str:
    """Describe the validation losses of bf16 and fp32 runs."""
    told = [
        [row["precision"], row["seed"], row["updates"][-1], *(f"{loss:.3f}" for loss in row["valid_loss"])]
        for row in found["runs"]
    ]
    epochs = [f"epoch {number}" for number in range(1, len(found["runs"][0]["valid_loss"]) + 1)]
    difference, spread = found["difference_in_nats"], found["spread"]
    low, high = difference["interval"]
    early = f", compared after epoch {found['after_epoch']}, before the end of the runs" if found["after_epoch"] else ""
    means = ", ".join(f"{name} {one['mean']:.3f} ± {one['sd']:.3f}" for name, one in spread.items())
    text = (
        "Validation loss (label-smoothed cross-entropy in bits per target subword) of "
        f"benchmarks/training/precision.yaml{early}. Last column, mean ± sd over {difference['pairs']} seeds: {means}. "
        f"Difference of the pairs of equal seeds, bf16 - fp32: {difference['mean']:+.4f} nats, 95% interval "
        f"[{low:+.4f}, {high:+.4f}]."
    )
    return "\n\n".join([text, table(["precision", "seed", "updates", *epochs], told)])


def start(found: dict, _folder: Path) -> str:
    """Describe how long commands take to start."""
    told = [
        [f"`{name}`", *(f"{row[kind]:.2f}" for kind in ("wall_seconds", "cpu_seconds")), f"{row['ratio']:.2f}x"]
        for name, row in found["rows"].items()
    ]
    text = f"{plural(found['threads'], 'thread')}, medians of {found['rounds']} rounds in turn."
    return f"{text}\n\n" + table(["command", "seconds", "processor seconds", "relative to the imports"], told)


# File -> title, the command that writes it, and the function that describes it.
PARTS: dict[str, tuple[str, str, Callable[[dict, Path], str]]] = {
    "training": (
        "Training against stock fairseq",
        "python -m benchmarks.training.speed --data data/news_commentary --precision fp32 --batches 1",
        training,
    ),
    "training_bf16": (
        "Training in bf16 on a processor with AMX",
        "python -m benchmarks.training.speed --data data/news_commentary --batches 2 --runs 3",
        partial(training, name="training_bf16"),
    ),
    "training_bf16_d1024": (
        "Training in bf16 at d_model 1024",
        "python -m benchmarks.training.speed --data data/news_commentary --width 1024 --pairs '6 layers' --batches 1 "
        "--runs 3",
        partial(training, name="training_bf16_d1024"),
    ),
    "training_parts": (
        "Each part of the fast path",
        "python -m benchmarks.training.parts --data data/news_commentary --tokens 1024",
        parts,
    ),
    "training_parts_bf16": (
        "Each part of the fast path in bf16",
        "python -m benchmarks.training.parts --data data/news_commentary --precision bf16",
        parts,
    ),
    "allocators": (
        "Training with other memory allocators",
        "python -m benchmarks.training.allocators --data data/news_commentary --batches 4",
        allocators,
    ),
    "padding": (
        "Padding in the batches",
        "python -m benchmarks.training.padding --data data/news_commentary",
        padding,
    ),
    "rows": (
        "Training speed of the paper's rows",
        "python -m benchmarks.training.row_speed --data data/news_commentary --tokens 512 --threads 1",
        rows,
    ),
    "decoding": (
        "Decoding against fairseq-generate",
        "python -m benchmarks.decoding.speed runs/multi30k/cycle_rev-seed1 --rounds 3",
        decoding,
    ),
    "decoding_parts": (
        "Decoding time by step",
        "python -m benchmarks.decoding.parts runs/news_commentary_8k/decoding-seed1 --test newstest2014",
        decoding_parts,
    ),
    "quantization": (
        "Translations of quantized models",
        "python -m benchmarks.decoding.quantization "
        "runs/multi30k/{vanilla,vanilla_admin,sequence,cycle,cycle_rev,universal}-seed1",
        quantization,
    ),
    "distillation": (
        "Distillation against fairseq-generate",
        "python -m benchmarks.decoding.distillation runs/multi30k/vanilla-seed1",
        distillation,
    ),
    "layer_reuse": (
        "Reuse of a layer from the processor's cache",
        "python -m benchmarks.decoding.layer_reuse",
        reuse,
    ),
    "training_memory": (
        "Training memory",
        "python -m benchmarks.memory.training",
        memory,
    ),
    "precision_loss": (
        "Validation loss of bf16 and fp32 runs",
        "python -m benchmarks.training.precision_loss --runs runs/precision",
        precision,
    ),
    "start": (
        "Start of the commands",
        "python -m benchmarks.commands.start runs/multi30k/vanilla-seed1 --data data/toy",
        start,
    ),
}


def machine(found: dict) -> str:
    """Describe the machine and versions of a result."""
    device, versions = found["machine"], found["versions"]
    memory = f"{(device.get('memory_bytes') or 0) / 2**30:.0f} GiB"
    told = ("python", "torch", "fairseq-fixed", "ctranslate2")
    packages = ", ".join(f"{name} {versions[name]}" for name in told if name in versions)
    units = plural(device["count"], "CPU core" if device["kind"] == "cpu" else "GPU")
    load = f"; load average {found['load']}" if "load" in found else ""
    return f"{device['name']}, {units}, {memory}; {packages}{load}."


def main() -> None:
    """Write README.md and the figures into the folder of the JSON files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        default=Path("results/speed"),
        help="folder of the JSON files (default: results/speed)",
    )
    args = parser.parse_args()
    files = {name: args.folder / f"{name}.json" for name in PARTS}
    results = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    made = "Written by `python -m benchmarks.speed_page` from the JSON files in this folder."
    on_gpu = [f'"{PARTS[name][0]}"' for name, found in results.items() if found["machine"]["kind"] == "cuda"]
    made += " Measured on a CPU" + (f", except for {' and '.join(on_gpu)} (GPU)." if on_gpu else ".")
    parts = ["# Speed and memory", made]
    for name, (title, command, describe) in PARTS.items():
        parts += [f"## {title}", f"`{command} --output results/speed/{name}.json`"]
        found = results.get(name)
        parts += [machine(found), describe(found, args.folder)] if found else ["Not measured here."]
    (args.folder / "README.md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
