"""What real_model.py measured, as numbers, a table and a picture (which needs Matplotlib)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SLACK, WANTED_SHARE = 1.5, 0.95  # held: true error <= SLACK * tol for this share of all heads


@dataclass(frozen=True)
class Run:
    """One call of conv_attention on the heads of a layer; arrays (heads,), interval (heads, 2)."""

    error: np.ndarray  # true relative error of what was returned
    estimate: np.ndarray  # the library's own estimate, from sampled rows, and its interval
    interval: np.ndarray
    num_bases: np.ndarray  # 0: given up before any strip was built
    complete: np.ndarray  # False: the head shows more bases than were allowed
    exact: np.ndarray  # True: the head was computed exactly
    seconds: float


@dataclass(frozen=True)
class LayerResult:
    """`returned`: conv_attention(tol=...) as users call it; `strips`: fixed num_bases, all kept."""

    layer: int
    returned: Run
    strips: Run
    seconds_exact: float


def exact_float64(query, key, value, block=256):
    """Causal softmax attention in float64, block by block, sharing no code with the library.

    query (heads, n, d), key and value (kv_heads, n, d) -> (heads, n, d).
    """
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    group, n, scale = len(query) // len(key), query.shape[1], query.shape[2] ** -0.5
    out = np.empty((*query.shape[:2], value.shape[2]))
    for head in range(len(query)):
        keys, values = key[head // group], value[head // group]
        for start in range(0, n, block):
            stop = min(start + block, n)
            logits = query[head, start:stop] @ keys[:stop].T * scale
            logits[np.arange(stop) > np.arange(start, stop)[:, None]] = -np.inf
            weights = np.exp(logits - logits.max(axis=1, keepdims=True))
            out[head, start:stop] = weights @ values[:stop] / weights.sum(axis=1, keepdims=True)
    return out


def relative_error(out, truth):
    """||out - truth||_F / ||truth||_F, (heads, n, d) -> (heads,); not finite counts as infinity."""
    difference = np.linalg.norm(np.asarray(out, np.float64) - truth, axis=(1, 2))
    size = np.linalg.norm(truth, axis=(1, 2))
    error = np.divide(difference, size, out=np.full(size.shape, np.inf), where=size > 0)
    error[difference == 0] = 0.0
    return np.where(np.isfinite(error), error, np.inf)


def judge(out, truth, report, seconds):
    """An output and its Report against the truth, as a `Run`."""
    said = (report.error_estimate, report.error_interval)
    said += (report.num_bases, report.complete, report.exact_mask)
    return Run(relative_error(out, truth), *(np.asarray(x) for x in said), seconds)


def gather(results, run, name):
    """One array over the heads of all layers: gather(results, "strips", "error")."""
    return np.concatenate([getattr(getattr(result, run), name) for result in results])


def summarise(results, tol):
    """Totals over all heads of all layers, a dict of plain numbers."""
    error, exact = gather(results, "returned", "error"), gather(results, "returned", "exact")
    strips, interval = gather(results, "strips", "error"), gather(results, "strips", "interval")
    within = int(np.sum(error <= SLACK * tol))
    inside = (interval[:, 0] <= strips) & (strips <= interval[:, 1])
    return {
        "heads": len(error),
        "heads_kept": int(np.sum(~exact)),
        "heads_exact": int(np.sum(exact)),
        "heads_incomplete": int(np.sum(~gather(results, "returned", "complete"))),
        "heads_within": within,
        "held": bool(within >= WANTED_SHARE * len(error)),
        "worst_error": float(error.max()),
        "seconds_conv": float(sum(result.returned.seconds for result in results)),
        "seconds_strips": float(sum(result.strips.seconds for result in results)),
        "seconds_exact": float(sum(result.seconds_exact for result in results)),
        "strips_median_error": float(np.median(strips)),
        "strips_within_tol": int(np.sum(strips <= tol)),
        "strips_inside_interval": int(np.sum(inside)),
    }


def layer_row(result):
    """The cells of one layer, in the order of the heading in `format_table`."""
    run, strips = result.returned, result.strips
    kept, estimated = np.flatnonzero(~run.exact), "-"
    if kept.size:
        worst = kept[np.argmax(run.interval[kept, 1])]
        low, high = run.interval[worst]
        estimated = f"{run.estimate[worst]:.3f} [{low:.3f}, {high:.3f}]"
    built = run.num_bases[run.num_bases > 0]
    bases = f"{np.median(built):.0f} / {built.max()}" if built.size else "-"
    counts = [str(x) for x in (result.layer, kept.size, run.exact.sum())]
    errors = [f"{f(strips.error):.3f}" for f in (np.min, np.median, np.max)]
    capped = str((~run.complete).sum())
    median = f"{np.median(strips.estimate):.3f}"
    return [*counts, estimated, f"{run.error.max():.2g}", bases, capped, median, *errors]


def format_table(results, tol, num_bases):
    """A line per layer; left what was asked for (its worst heads), right the strips alone."""
    heading = ["layer", "kept", "exact", "estimated [interval]", "true error", "bases med/max"]
    heading += ["capped", "estimated", "true: min", "median", "max"]
    rows = [heading, *(layer_row(result) for result in results)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    halves = [
        ["  ".join(c.rjust(w) for c, w in zip(row[at], widths[at], strict=True)) for row in rows]
        for at in (slice(0, 7), slice(7, None))
    ]
    lines = [f"{left}  |  {right}" for left, right in zip(*halves, strict=True)]
    title = f"conv_attention(tol={tol:g}): worst head of each layer".ljust(len(halves[0][0]))
    return "\n".join([f"{title}  |  strips alone, at most {num_bases} bases", *lines])


def format_kept(results, most=12):
    """The first `most` heads that stayed on strips, a line each; empty when there are none."""
    kept = [(r.layer, h, r.returned) for r in results for h in np.flatnonzero(~r.returned.exact)]
    lines = ["heads kept on strips:"] if kept else []
    for layer, head, run in kept[:most]:
        low, high = run.interval[head]
        lines.append(
            f"  layer {layer:2d} head {head}: {run.num_bases[head]:4d} bases, estimated "
            f"{run.estimate[head]:.4f} [{low:.4f}, {high:.4f}], true {run.error[head]:.4f}"
        )
    if len(kept) > most:
        lines.append(f"  and {len(kept) - most} more")
    return "\n".join(lines)


def format_summary(summary, tol, num_bases):
    """What the table adds up to."""
    s, heads = summary, summary["heads"]
    verdict = "held" if s["held"] else "NOT HELD"
    return "\n".join(
        (
            f"true error <= {SLACK} tol ({SLACK * tol:.3g}): {s['heads_within']} of {heads} heads, "
            f"{100 * s['heads_within'] / heads:.1f} % (wanted: {100 * WANTED_SHARE:.0f} %): "
            f"{verdict}; worst {s['worst_error']:.2g}",
            f"kept on strips: {s['heads_kept']} of {heads} heads; computed exactly: "
            f"{s['heads_exact']}; showing more bases than allowed: {s['heads_incomplete']}",
            f"time: conv_attention {s['seconds_conv']:.2f} s (recovery, estimate and exact heads "
            f"included), exact_attention {s['seconds_exact']:.2f} s: "
            f"{s['seconds_conv'] / s['seconds_exact']:.2f} times as long",
            f'strips alone (num_bases={num_bases}, on_miss="keep", {s["seconds_strips"]:.2f} s): '
            f"median true error {s['strips_median_error']:.3f}; within tol: "
            f"{s['strips_within_tol']} of {heads}; true error inside the estimated interval: "
            f"{s['strips_inside_interval']} of {heads}",
        )
    )


def to_plain(value):
    """Arrays to lists, NumPy numbers to Python's, NaN and infinity to None: strict JSON."""
    if isinstance(value, dict):
        return {name: to_plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [to_plain(item) for item in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not np.isfinite(value) else value


def save_plot(path, results, tol):
    """Left: true error of the strips alone, kept heads ringed. Right: estimated against true."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5.5), layout="constrained")
    shown = np.log10([np.maximum(result.strips.error, 1e-16) for result in results])
    image = left.imshow(shown, aspect="auto", vmin=-2, vmax=0.5)
    figure.colorbar(image, ax=left)
    for row, result in enumerate(results):
        kept = np.flatnonzero(~result.returned.exact)
        left.plot(kept, np.full(kept.size, row), "ro", markerfacecolor="none", markersize=11)
    left.set_yticks(range(len(results)), [str(result.layer) for result in results])
    left.set(
        title="strips alone: log10 of the true error (ring: kept)", xlabel="head", ylabel="layer"
    )
    error, estimate, interval = (
        gather(results, "strips", name) for name in ("error", "estimate", "interval")
    )
    right.errorbar(error, estimate, np.abs(interval.T - estimate), fmt=".", ecolor="lightgray")
    right.axline((tol, tol), slope=1, color="black", linewidth=0.8)
    right.axhline(tol, color="red", linewidth=0.8, label=f"tol = {tol:g}")
    right.set(xscale="log", yscale="log", title="strips alone: is the estimate right?")
    right.set(xlabel="true relative error", ylabel="estimated, with its interval")
    right.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
