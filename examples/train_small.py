"""A small transformer trained by strips, beside the same one trained by exact attention.

The task is next-token prediction of periodic sequences: a fresh random pattern of 48 tokens
repeats, and one token in ten is redrawn. What helps is to look back by multiples of the period, so
attention by position is enough, and its logits depend on the lag alone: one strip a head, by
construction. Both models start from the same weights and see the same batches; the loss curves
agree to rounding, and a table shows from which n on strips are faster.

    python examples/train_small.py                       # both models at n = 4,096, two minutes
    python examples/train_small.py --quick               # under a minute, to see that it runs
    python examples/train_small.py --json train.json --plot train.png
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import statistics
import sys
from pathlib import Path

INSTALL = {
    "convbasis": "pip install .   (in the root of the repository)",
    "torch": "pip install torch   (its CPU build is enough)",
    "matplotlib": "pip install matplotlib",
    "train_small_model": "nothing: it lies beside train_small.py, copy both",
}
DEFAULTS = {"n": 4096, "steps": 100, "sizes": [512, 1024, 2048, 4096, 8192, 16384]}
QUICK = {"n": 512, "steps": 10, "sizes": [256, 512, 1024]}
SMALLEST, LARGEST = 64, 2**17  # of n: more than a period, less than an hour a step
PICTURES = (".png", ".pdf", ".svg")
SAME_LOSS = 0.01  # what rounding, amplified by training, may put between the curves


def sizes(text):
    """An argparse type, whose name its errors show: "512,1024" -> [512, 1024]."""
    return sorted({int(part) for part in text.split(",")})


def build_parser():
    """The command's options."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Exit status: 0 when the loss curves agree, 1 when not, 2 when it could not run.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--n", type=int, help=f"tokens of a training sequence (default: {DEFAULTS['n']})")
    add("--steps", type=int, help=f"steps of training (default: {DEFAULTS['steps']})")
    defaults = ",".join(map(str, DEFAULTS["sizes"]))
    add("--sizes", type=sizes, help=f"n to compare the speed at (default: {defaults})")
    add("--seed", type=int, default=0, help="of weights and data (default: %(default)s)")
    add("--threads", type=int, help="default: what torch takes; 1 on a busy machine")
    add("--quick", action="store_true", help="small n, steps and sizes: too few to learn")
    add("--json", metavar="FILE", help="write every number")
    add("--plot", metavar="FILE", help=f"draw losses and speed; {', '.join(PICTURES)}")
    return parser


def check_range(name, value, least, most):
    """Raise unless least <= value <= most."""
    if not least <= value <= most:
        raise ValueError(
            f"[train_small] {name} is out of range; expected {least:,} to {most:,}; got {value:,}"
        )


def check_early(args):
    """Find a bad value, a missing package or folder before the work, not after it."""
    for n in [args.n, *args.sizes]:
        check_range("n", n, SMALLEST, LARGEST)
    check_range("steps", args.steps, 1, 10**6)
    check_range("seed", args.seed, 0, 2**32)
    if args.threads is not None:
        check_range("threads", args.threads, 1, os.cpu_count() or 1)
    for path in map(Path, filter(None, (args.json, args.plot))):
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise FileNotFoundError(
                f"[train_small] {path} cannot be written; expected a file in a folder that exists"
            )
    if args.plot and Path(args.plot).suffix.lower() not in PICTURES:
        raise ValueError(
            f"[train_small] plot has an unknown kind of picture; expected one of "
            f"{', '.join(PICTURES)}; got {args.plot}"
        )
    for module in ["torch", "convbasis"] + ["matplotlib"] * bool(args.plot):
        importlib.import_module(module)


def measure(args):
    """Train both, compare their speed over n; everything as plain numbers."""
    import torch
    import train_small_model as model

    import convbasis as cb

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    # Weights of heads that have learned underflow to subnormal numbers, which CPUs multiply slowly:
    # without this, exact attention is beaten by more than it deserves.
    torch.set_flush_denormal(True)
    losses, seconds, on_strips = model.train(args.n, args.steps, args.seed)
    pairs = zip(losses["conv"], losses["exact"], strict=True)
    largest = max(abs(conv - exact) for conv, exact in pairs)
    speed = model.compare_speed(args.sizes, args.seed)
    return {
        "settings": vars(args) | {"threads": torch.get_num_threads()},
        "versions": {"convbasis": cb.__version__, "torch": torch.__version__},
        "build": cb.build_info(),
        "losses": losses,
        "seconds": seconds,
        "training_speed": {
            name: args.n / statistics.median(values) for name, values in seconds.items()
        },
        "largest_difference": largest,
        "agree": largest <= SAME_LOSS,
        "least_loss": model.least_loss(args.n),
        "heads": model.LAYERS * model.HEADS,
        "heads_on_strips": on_strips,
        "speed": speed,
        "crossover": crossover(args.sizes, speed["conv"], speed["exact"]),
    }


def crossover(sizes, conv, exact):
    """The n from which on strips are faster, between two sizes on a line of the logarithms.

    The smallest size if they always are; None if they are not at the largest.
    """
    gains = [math.log(a / b) for a, b in zip(conv, exact, strict=True)]
    if gains[-1] <= 0:
        return None
    slower = [i for i, gain in enumerate(gains) if gain <= 0]
    if not slower:
        return float(sizes[0])
    i = slower[-1]
    share = gains[i] / (gains[i] - gains[i + 1])
    return sizes[i] * (sizes[i + 1] / sizes[i]) ** share


def format_result(result):
    """Both tables and their summary."""
    settings, losses, speed = result["settings"], result["losses"], result["speed"]
    lines = [
        f"training at n = {settings['n']:,}, {settings['steps']} steps, "
        f"{settings['threads']} threads, seed {settings['seed']}, "
        f"convbasis {result['versions']['convbasis']}, torch {result['versions']['torch']}",
        f"{'attention':>9} | first loss | last loss | tokens/s",
    ]
    lines += [
        f"{name:>9} | {losses[name][0]:10.4f} | {losses[name][-1]:9.4f} | {rate:8,.0f}"
        for name, rate in result["training_speed"].items()
    ]
    lines += [
        f"least loss to expect: {result['least_loss']:.4f}",
        f"largest difference of the curves: {result['largest_difference']:.1e}: "
        + ("the same within rounding" if result["agree"] else "NOT THE SAME"),
        f"on strips: {result['heads_on_strips']} of {result['heads']} heads",
        "",
        f"{'n':>7} | {'conv tokens/s':>13} | {'exact tokens/s':>14} | conv / exact",
    ]
    lines += [
        f"{n:7,} | {conv:13,.0f} | {exact:14,.0f} | {conv / exact:12.2f}"
        for n, conv, exact in zip(settings["sizes"], speed["conv"], speed["exact"], strict=True)
    ]
    found = result["crossover"]
    last = settings["sizes"][-1]
    lines.append(
        f"strips are faster {since(result)}" if found else f"strips are not faster at n = {last:,}"
    )
    return "\n".join(lines)


def since(result):
    """From where on strips are faster, in words."""
    first, found = result["settings"]["sizes"][0], result["crossover"]
    return f"at every n from {first:,} on" if found == first else f"from n of about {found:,.0f} on"


def save_plot(path, result):
    """Left: both losses by step. Right: tokens per second over n, and where strips take over."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    styles = {
        "exact": {"color": "#e69f00", "linewidth": 5, "label": "exact attention (torch SDPA)"},
        "conv": {"color": "#0b4f8a", "linewidth": 1.6, "label": "strips (ConvAttention)"},
    }
    settings, ink = result["settings"], "#555555"
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, style in styles.items():
        steps = range(1, settings["steps"] + 1)
        left.plot(steps, result["losses"][name], **style)
        right.plot(settings["sizes"], result["speed"][name], marker="o", **style)
    left.axhline(result["least_loss"], color=ink, linestyle=":", label="least to expect")
    left.set(title=f"training at n = {settings['n']:,}", xlabel="step", ylabel="loss")
    right.set(title="speed of a training step", xlabel="n", ylabel="tokens per second")
    right.set(xscale="log", yscale="log")
    right.set_xticks(settings["sizes"], [f"{n:,}" for n in settings["sizes"]])
    right.yaxis.set(
        major_locator=LogLocator(subs=(1, 2, 5)), major_formatter=StrMethodFormatter("{x:,.0f}")
    )
    right.minorticks_off()
    rates = [rate for values in result["speed"].values() for rate in values]
    right.set_ylim(0.3 * min(rates), max(2 * max(rates), 4 * min(rates)))  # room for the legend
    if result["crossover"] is not None:
        label = f"strips are faster {since(result)}"
        right.axvline(result["crossover"], color=ink, linestyle=":", label=label)
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(edgecolor="none", framealpha=1)
    figure.savefig(path, dpi=90)


def run(args):
    """Check, measure, print, write files; returns the result."""
    for name, value in (QUICK if args.quick else DEFAULTS).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    check_early(args)
    result = measure(args)
    print(format_result(result))
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(result, file, allow_nan=False)
    if args.plot:
        save_plot(args.plot, result)
    return result


def main(argv=None):
    """The command; returns its exit status."""
    args = build_parser().parse_args(argv)
    try:
        return 0 if run(args)["agree"] else 1
    except ModuleNotFoundError as error:
        install = INSTALL.get(str(error.name).partition(".")[0], f"pip install {error.name}")
        missing = f"[train_small] module {error.name} is missing; to install:\n    {install}"
        print(missing, file=sys.stderr)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
