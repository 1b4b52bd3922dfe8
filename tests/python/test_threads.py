"""Many callers at once, forks, and Ctrl-C."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import convbasis as cb
from convbasis import problems

posix = pytest.mark.skipif(os.name != "posix", reason="needs fork and signals")


def run(script, timeout=60):
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_many_threads_call_at_once():
    problem = problems.conv_problem(400, 8, 3, batch=(2,), seed=1)
    arrays = problem.query, problem.key, problem.value
    options = cb.RecoverOptions(num_bases=3)
    basis = cb.recover_basis(*arrays[:2], scale=problem.scale)

    def call(number):
        if number % 3 == 0:
            return cb.exact_attention(*arrays, is_causal=True, scale=problem.scale)
        if number % 3 == 1:
            return cb.conv_attention(
                *arrays,
                is_causal=True,
                scale=problem.scale,
                options=options,
                tol=1e-3,
                num_threads=1 + number % 4,
            )
        return cb.conv_matmul(basis, problem.value, num_threads=1 + number % 4)

    want = [call(number) for number in range(3)]
    assert all(np.any(result) for result in want)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(call, range(60)))
    for number, result in enumerate(results):
        np.testing.assert_array_equal(result, want[number % 3])


FORK = """
import os, sys, warnings
import numpy as np
import convbasis as cb

warnings.simplefilter("ignore", DeprecationWarning)  # of fork in a process with threads
rng = np.random.default_rng(0)
query, key, value = rng.normal(size=(3, 4, 700, 16))

def both():
    return [cb.exact_attention(query, key, value, is_causal=True, num_threads=2),
            cb.conv_attention(query, key, value, is_causal=True, num_threads=2,
                              options=cb.RecoverOptions(num_bases=4))]

want = both()  # starts the workers
child = os.fork()
same = all(np.array_equal(got, right) for got, right in zip(both(), want))
if child == 0:
    os._exit(0 if same else 3)
_, status = os.waitpid(child, 0)
again = all(np.array_equal(got, right) for got, right in zip(both(), want))
print(same, again, os.waitstatus_to_exitcode(status))
"""


@posix
def test_a_fork_between_two_calls():
    assert run(FORK).split() == ["True", "True", "0"]


INTERRUPT = """
import signal, sys, time
import numpy as np
import convbasis as cb

one = np.random.default_rng(0).normal(size=(30_000, 64)).astype(np.float32)
x = np.broadcast_to(one, (16, *one.shape))  # a minute of work, little memory
kernels = np.zeros((16, 1, 30_000), np.float32)
basis = cb.ConvBasis(np.zeros((16, 1), int), np.ones(16, int), kernels)
# A background job inherits an ignored SIGINT, and Python then installs no handler.
signal.signal(signal.SIGINT, signal.default_int_handler)
print("ready", flush=True)
try:
    {call}
except KeyboardInterrupt:
    out = cb.exact_attention(one[:40], one[:40], one[:40])  # the library still works
    print("interrupted", bool(np.isfinite(out).all() and out.any()), flush=True)
else:
    print("finished", flush=True)
"""


@posix
@pytest.mark.parametrize(
    "call",
    [
        "cb.exact_attention(x, x, x)",
        "cb.exact_attention_backward(x, x, x, x)",
        "cb.conv_attention(x, x, x, is_causal=True, basis=basis, certify=True, return_report=True)",
    ],
)
def test_ctrl_c_ends_a_long_call_within_a_second(call):
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPT.format(call=call)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.5)
        sent = time.perf_counter()
        process.send_signal(signal.SIGINT)
        answer = process.stdout.readline()
        waited = time.perf_counter() - sent
        assert answer == "interrupted True\n"
        assert waited < 1.0
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
