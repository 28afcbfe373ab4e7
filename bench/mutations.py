"""Deliberate faults of one line, from core to trainer, and whether the tests meant for them notice.

    python bench/mutations.py [--first 0] [--last 31]

Each fault is put into a temporary copy of this checkout, alone, and its tests run there; "caught" is right. Exit code 1
when one survives, or when its line is no longer in the file.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Fault(NamedTuple):
    """`right` becomes `wrong` in a file of the package; `tests` are pytest's words."""

    file: str
    right: str
    wrong: str
    tests: str


FAULTS = [
    Fault("core/convert.py", '"v": (-sigma, alpha)', '"v": (sigma, alpha)', "core/test_convert.py"),
    Fault(
        "core/guide.py", "return uncond + scale * direction", "return cond + scale * direction", "core/test_guide.py"
    ),
    Fault("core/solve.py", "now) + second) / 2", "now) + second)", "core/test_solve.py"),
    Fault("core/solve.py", "(2 * (here - before))", "(here - before)", "core/test_solve.py"),
    Fault("core/solve.py", "beta * (1 - abar_next) / (1 - abar)", "beta * (1 - abar_next)", "core/test_ancestral.py"),
    Fault("core/times.py", "b / (1 + (shift - 1) * b)", "b / (1 + shift * b)", "core/test_times.py"),
    Fault("core/level.py", ".round().long() - 1).clamp", ".round().long()).clamp", "core/test_level.py"),
    Fault("priors/sd.py", 'return -out if self.kind == "flow" else out', "return out", "priors/test_sd.py -k negated"),
    Fault("priors/twin.py", "join(self.prior.kind, x0", 'join("eps", x0', "priors/test_twin.py"),
    Fault("priors/sd.py", "self.label(t).to(device)", "t.to(device)", "priors/test_sd.py -k predictions"),
    Fault("distill/residual.py", "return sign(space) * residual", "return residual", "distill/test_residual.py"),
    Fault("distill/residual.py", "square().mean(1) + c**2", "square().sum(1) + c**2", "distill/test_sim.py"),
    Fault("distill/method.py", "grad = weighted / len(x0)", "grad = weighted", "distill/test_method.py"),
    Fault("distill/noise.py", "- x0_hat + x0 - eps)", "- x0_hat + x0)", "distill/test_method.py"),
    Fault("distill/noise.py", "1e-6).floor()", "1e-6).ceil()", "distill/test_noise.py"),
    Fault("distill/weights.py", "level.alpha * level.sigma**2", "level.sigma**2", "distill/test_weights.py"),
    Fault(
        "scenes/volume.py",
        "pad(depth.cumsum(dim=-1)[..., :-1], (1, 0))",
        "pad(depth.cumsum(dim=-1), (0, 0))",
        "scenes/test_volume.py",
    ),
    Fault("scenes/camera.py", "y * tangent,", "-y * tangent,", "scenes/test_camera.py"),
    Fault(
        "scenes/field.py",
        "density(behind) - density(ahead)",
        "density(ahead) - density(behind)",
        "scenes/test_field.py",
    ),
    Fault("scenes/regularize.py", "rendering.opacity > 0.5)", "rendering.opacity > 0)", "scenes/test_regularize.py"),
    Fault("edit/delta.py", "(1 - slope) * (x - x_src)", "(1 + slope) * (x - x_src)", "edit/test_delta.py"),
    Fault("edit/steer.py", "(x - x_ref) / sigma - u)", "(x - x_ref) / sigma + u)", "edit/test_invert.py"),
    Fault("edit/irfds.py", "flat.var(1, correction=0)", "flat.std(1, correction=0)", "edit/test_irfds.py"),
    Fault(
        "trainer/edit.py",
        "prior.schedule, prior.time_shift)",
        "prior.schedule, 1.0)",
        "edit/test_method.py trainer/test_edit.py",
    ),
    Fault("trainer/lift.py", " or not bool(norm.isfinite())", "", "trainer/test_lift.py"),
    Fault("trainer/lift.py", 'self.conditions["cond"])', 'self.conditions["uncond"])', "trainer/test_lift.py -k twin"),
    Fault("trainer/lift.py", 'factors.get("distill", 1.0) * result.loss', "result.loss", "trainer/test_lift.py"),
    Fault("trainer/lift.py", "antialias=smaller", "antialias=False", "trainer/test_lift.py -k aliasing"),
    Fault("trainer/lift.py", "(step + 1) % every == 0", "step % every == 0", "trainer/test_lift.py"),
    Fault("trainer/ramp.py", "max(0.0, (step - self.from_step)", "max(0.0, step", "trainer/test_ramp.py"),
    Fault(
        "app/api.py",
        "latents[first : first + chosen.batch]",
        "latents[: chosen.batch]",
        "app/test_sample.py -k given_latents",
    ),
]


def caught(fault: Fault, copy: Path) -> str:
    """What became of one fault in the copy, which is put right again."""
    file = copy / "threestudio_rf" / fault.file
    text = file.read_text(encoding="utf-8")
    if text.count(fault.right) != 1:
        return f"stands {text.count(fault.right)} times in the file, expected once"
    file.write_text(text.replace(fault.right, fault.wrong), encoding="utf-8")
    words = [word if word.startswith("-") or "/" not in word else f"tests/{word}" for word in fault.tests.split()]
    line = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *words]
    done = subprocess.run(
        line, cwd=copy, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True, check=False
    )
    file.write_text(text, encoding="utf-8")
    return {0: "SURVIVES", 1: "caught"}.get(done.returncode, f"pytest ended with {done.returncode}")


def main() -> int:
    """One line for each fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--last", type=int, default=len(FAULTS))
    options, wrong = parser.parse_args(), 0
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "copy"
        copy.mkdir()
        for name in ("configs", "tests", "threestudio_rf", "bench"):
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        for number, fault in list(enumerate(FAULTS))[options.first : options.last]:
            found = caught(fault, copy)
            wrong += found != "caught"
            print(f"{number:2d} {fault.file}: {fault.right} -> {fault.wrong or '(nothing)'}: {found}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
