"""What only a GPU shows: streams, waiting, CUDA graphs."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import convbasis as cb

pytestmark = pytest.mark.gpu

#: Clock ticks that a stream is kept busy for: some tenths of a second.
BUSY = 500_000_000


@pytest.fixture
def product(cuda_torch, random_basis):
    """A basis on the GPU, its vectors on the host, and the product of the two."""
    basis = random_basis(700, 4, lead=(2, 3))
    x = np.random.default_rng(8).normal(size=(2, 3, 700, 5))
    kernels = cuda_torch.from_numpy(basis.kernels.copy()).cuda()
    return cb.GpuBasis(basis.starts, basis.num_bases, kernels), x, cb.conv_matmul(basis, x)


def test_work_goes_to_the_current_stream_and_nothing_waits(cuda_torch, product, row_error):
    basis, host, want = product
    x = cuda_torch.from_numpy(host).cuda()
    cb.conv_matmul(basis, x)  # makes the plans
    late = cuda_torch.zeros_like(x)
    cuda_torch.cuda.synchronize()
    stream = cuda_torch.cuda.Stream()
    with cuda_torch.cuda.stream(stream):
        cuda_torch.cuda._sleep(BUSY)
        late.copy_(x)
        got = cb.conv_matmul(basis, late)
        assert not stream.query()
    stream.synchronize()
    assert row_error(got.cpu().numpy(), want) < 1e-12


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_a_product_is_captured_into_a_graph(cuda_torch, product, row_error, dtype):
    basis, host, _ = product
    dtype = getattr(cuda_torch, dtype)
    given = cuda_torch.from_numpy(host).to(dtype)
    on_host = cb.ConvBasis(basis.starts, basis.num_bases, basis.kernels.cpu().numpy())
    want = cb.conv_matmul(on_host, given.double().numpy())
    if dtype != cuda_torch.float64:
        basis = cb.GpuBasis(basis.starts, basis.num_bases, basis.kernels.float())
    x = cuda_torch.zeros(host.shape, dtype=dtype, device="cuda")
    stream = cuda_torch.cuda.Stream()
    with cuda_torch.cuda.stream(stream):
        cb.conv_matmul(basis, x)  # makes the plans
    cuda_torch.cuda.synchronize()
    graph = cuda_torch.cuda.CUDAGraph()
    with cuda_torch.cuda.graph(graph, stream=stream):
        got = cb.conv_matmul(basis, x)
    x.copy_(given)
    for _ in range(2):
        graph.replay()
    cuda_torch.cuda.synchronize()
    # Computed in float64 or float32, then rounded once.
    inside = 1e-12 if dtype == cuda_torch.float64 else 2e-5
    tolerance = inside + cuda_torch.finfo(dtype).eps / 2
    assert row_error(got.double().cpu().numpy(), want) < tolerance


def test_attention_does_not_wait_after_the_search(cuda_torch):
    p = cb.problems.conv_problem(n=512, head_dim=8, num_bases=3, batch=(1, 2))
    query, key, value = (cuda_torch.from_numpy(a).cuda() for a in (p.query, p.key, p.value))
    basis = cb.recover_basis(query, key, scale=p.scale)
    call = {"is_causal": True, "scale": p.scale, "basis": basis}
    want = cb.conv_attention(query, key, value, **call)
    cuda_torch.cuda.synchronize()
    cuda_torch.cuda._sleep(BUSY)
    got = cb.conv_attention(query, key, value, **call)
    assert not cuda_torch.cuda.current_stream().query()
    assert cuda_torch.equal(got, want)


def test_threads_with_streams_of_their_own(cuda_torch, product, row_error):
    basis, host, want = product
    x = cuda_torch.from_numpy(host).cuda()
    cuda_torch.cuda.synchronize()

    def work(_):
        stream = cuda_torch.cuda.Stream()
        with cuda_torch.cuda.stream(stream):
            got = [cb.conv_matmul(basis, x) for _ in range(5)]
        stream.synchronize()
        return max(row_error(one.cpu().numpy(), want) for one in got)

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(work, range(8))) < 1e-12
