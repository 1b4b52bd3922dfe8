"""The package where no GPU can be used: it imports, computes, and says what is missing."""

import json
import os
import re
import subprocess
import sys

import pytest

SCRIPT = """
import json, numpy as np, convbasis as cb
p = cb.problems.conv_problem(n=256, head_dim=8, num_bases=2)
call = dict(is_causal=True, scale=p.scale)
out = cb.conv_attention(p.query, p.key, p.value, **call)
exact = cb.exact_attention(p.query, p.key, p.value, **call)
with open("/proc/self/maps") as maps:
    loaded = sorted({line.split("/")[-1].strip() for line in maps if "/" in line})
missing = cb.build_info()["cuda_missing"]
print(json.dumps([bool(np.allclose(out, exact)), cb.cuda_available(), missing, loaded]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/maps")
def test_import_needs_no_driver_no_gpu_and_no_library_of_nvidia():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    right, available, missing, loaded = json.loads(done.stdout)
    assert right
    assert not available
    assert re.search("this build has no CUDA|no NVIDIA driver|shows this process no GPU", missing)
    assert not [name for name in loaded if re.match(r"lib(cufft|cublas)", name)]
