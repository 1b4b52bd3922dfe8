"""The largest error of each stage in each type against the oracle; a table ends the run."""

import numpy as np
import pytest

import convbasis as cb
from convbasis import reference

torch = pytest.importorskip("torch")

HEADS, N, STARTS = 2, 300, [0, 40, 111, 200]
LONG = 4200  # rows of one head, whose products go by FFT
#: Roundings of results of about unit size, in gradients and in rows of the smallest weights.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


class Problem:
    """Rounded arrays on the device and in float64, and their logits' triangles as bases."""

    def __init__(self, device, dtype, n=N, heads=HEADS, value_dim=12):
        planted = cb.problems.conv_problem(
            n, 16, 4, batch=(heads,), value_dim=value_dim, min_size=30
        )
        self.device, self.dtype = device, dtype
        grad = np.random.default_rng(3).normal(size=planted.value.shape)
        rounded = [
            torch.from_numpy(array).to(dtype)
            for array in (planted.query, planted.key, planted.value, grad)
        ]
        self.host = [tensor.double().numpy() for tensor in rounded]
        self.on_device = [tensor.to(device) for tensor in rounded]
        self.scale = planted.scale

    def triangle(self, head, turned=False):
        """The oracle's basis of one head, of its rows in reversed order if `turned`."""
        query, key = (array[head][:: -1 if turned else 1] for array in self.host[:2])
        kernels = np.zeros((len(STARTS), N))
        for strip, start in enumerate(STARTS):
            kernels[strip, : N - start] = self.scale * query[start:] @ key[start]
        return reference.Basis(STARTS, kernels, N)

    def bases(self, is_causal):
        """The same, formed on the device."""
        query, key = self.on_device[:2]
        halves = [(query, key)] if is_causal else [(query, key), (query.flip(-2), key.flip(-2))]
        made = [cb.recover_basis(*half, starts=STARTS, scale=self.scale) for half in halves]
        return made[0] if is_causal else tuple(made)

    def oracle(self, call, is_causal, arrays, **more):
        """A function of bases of one head, for all heads."""
        found = []
        for head in range(HEADS):
            upper = None if is_causal else self.triangle(head, turned=True)
            parts = (array[head] for array in arrays)
            found.append(call(self.triangle(head), *parts, upper=upper, **more))
        return [np.stack(part) for part in zip(*found, strict=True)]


def kernels(p):
    want = np.stack([p.triangle(head).kernels for head in range(HEADS)])
    return [p.bases(True).kernels], [want]


def products(p, transpose):
    weights = p.bases(True)
    dense = np.stack([reference.basis_to_dense(p.triangle(head)) for head in range(HEADS)])
    got = cb.conv_matmul(weights, p.on_device[2], transpose=transpose)
    return [got], [(dense.swapaxes(-1, -2) if transpose else dense) @ p.host[2]]


def through_strips(p, is_causal):
    got = cb.conv_attention(
        *p.on_device[:3], is_causal=is_causal, scale=p.scale, basis=p.bases(is_causal)
    )
    return [got], p.oracle(reference.conv_attention, is_causal, p.host[2:3])[:1]


def long_product(p):
    """float64 and the kernels of this type on the CPU, which are held to the oracle elsewhere."""
    long = Problem(p.device, p.dtype, LONG, 1, 4)
    weights = long.bases(True)
    host = cb.ConvBasis(weights.starts, weights.num_bases, weights.kernels.cpu().double().numpy())
    return [cb.conv_matmul(weights, long.on_device[2])], [cb.conv_matmul(host, long.host[2])]


def long_attention(p):
    long = Problem(p.device, p.dtype, LONG, 1, 4)
    weights = long.bases(True)
    host = cb.ConvBasis(weights.starts, weights.num_bases, weights.kernels.cpu().double().numpy())
    call = {"is_causal": True, "scale": long.scale}
    got = cb.conv_attention(*long.on_device[:3], basis=weights, **call)
    return [got], [cb.conv_attention(*long.host[:3], basis=host, **call)]


def strips_gradient(p, is_causal, gradient):
    call = {"scale": p.scale, "gradient": gradient}
    bases = p.bases(is_causal)
    got = cb.conv_attention_backward(*p.on_device, is_causal=is_causal, basis=bases, **call)
    return got, p.oracle(reference.conv_attention_backward, is_causal, p.host, **call)


def exact(p, is_causal):
    call = {"is_causal": is_causal, "scale": p.scale}
    got = cb.exact_attention(*p.on_device[:3], **call)
    return [got], reference.attention(*p.host[:3], **call)[:1]


def exact_gradient(p, is_causal):
    call = {"is_causal": is_causal, "scale": p.scale}
    got = cb.exact_attention_backward(*p.on_device, **call)
    return got, reference.attention_backward(*p.host, **call)


def polynomial(p, is_causal):
    """The same polynomial as the CPU takes, whose float64 is held to the oracle elsewhere."""
    call = {"is_causal": is_causal, "scale": 0.1 * p.scale, "degree": 3}
    got = cb.polynomial_attention(*p.on_device[:3], **call)
    return [got], [cb.polynomial_attention(*p.host[:3], **call)]


def polynomial_gradient(p, is_causal):
    call = {"is_causal": is_causal, "scale": 0.1 * p.scale, "degree": 3}
    got = cb.polynomial_attention_backward(*p.on_device, **call)
    return got, cb.polynomial_attention_backward(*p.host, **call)


STAGES = {
    "recover: kernels": kernels,
    "conv_matmul": lambda p: products(p, False),
    "conv_matmul, transposed": lambda p: products(p, True),
    "conv_matmul, by FFT": long_product,
    "conv_attention, causal": lambda p: through_strips(p, True),
    "conv_attention": lambda p: through_strips(p, False),
    "conv_attention, causal, by FFT": long_attention,
    "its gradient, basis, causal": lambda p: strips_gradient(p, True, "basis"),
    "its gradient, basis": lambda p: strips_gradient(p, False, "basis"),
    "its gradient, attention, causal": lambda p: strips_gradient(p, True, "attention"),
    "its gradient, attention": lambda p: strips_gradient(p, False, "attention"),
    "exact_attention, causal": lambda p: exact(p, True),
    "exact_attention": lambda p: exact(p, False),
    "its gradient, causal": lambda p: exact_gradient(p, True),
    "its gradient": lambda p: exact_gradient(p, False),
    "polynomial_attention, causal": lambda p: polynomial(p, True),
    "polynomial_attention": lambda p: polynomial(p, False),
    "polynomials' gradient, causal": lambda p: polynomial_gradient(p, True),
    "polynomials' gradient": lambda p: polynomial_gradient(p, False),
}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("stage", STAGES)
def test_errors_are_those_of_rounding(device, errors_by_stage, stage, dtype):
    """Errors of a head relative to its size: rows that cancel have no digits of their own."""
    got, want = STAGES[stage](Problem(device, dtype))
    worst = 0.0
    for tensor, expected in zip(got, want, strict=True):
        found = tensor.detach().double().cpu().numpy().reshape(expected.shape[0], -1)
        expected = expected.reshape(expected.shape[0], -1)
        missed = np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
        worst = max(worst, float(missed.max()))
    errors_by_stage.setdefault(stage, {})[str(dtype)[6:]] = worst
    assert worst < TOLERANCE[dtype]
