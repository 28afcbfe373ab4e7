"""Kernels become machine code for cards from Turing to Hopper; the compiler needs no card."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CODE = """
import sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from threestudio_rf.scenes.kernels import encode, rays

def kind(name, half, constants):
    if name in constants:
        return "constexpr"
    if name in ("count", "levels", "rays", "n", "slots", "samples"):
        return "i32"
    if name in ("radius", "scale", "limit"):
        return "fp32"
    special = {"sizes": "*i32", "occupied": "*u8", "start": "*i64", "place": "*i64"}
    return special.get(name, "*fp16" if half and name == "table" else "*fp32")

grid = {"F": 2, "PADDED": 2, "B": 256}
cases = [(encode._forward, grid), (encode._table_gradient, grid), (encode._point_gradient, grid)]
cases += [(rays._march, {"WRITE": write, "B": rays.RAYS}) for write in (False, True)]
cases += [(kernel, {"C": rays.CHUNK}) for kernel in (rays._weigh, rays._weigh_gradient, rays._sum)]
for kernel, constants in cases:
    for half in (False, True) if "table" in kernel.arg_names else (False,):
        signature = {name: kind(name, half, constants) for name in kernel.arg_names}
        target = GPUTarget("cuda", int(sys.argv[1]), 32)
        made = triton.compile(ASTSource(kernel, signature, constexprs=constants), target=target)
        print(kernel.__name__, len(made.asm["cubin"]) > 1000)
"""


@pytest.mark.parametrize("capability", ["75", "90"])
def test_every_kernel_compiles_to_machine_code(device: torch.device, capability: str, tmp_path: Path) -> None:
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE, capability],
        cwd=Path(__file__).resolve().parents[3],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    lines = result.stdout.splitlines()
    assert len(lines) == 10 and all(line.endswith("True") for line in lines)
