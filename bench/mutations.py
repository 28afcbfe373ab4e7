"""Deliberate faults of one line, from core to trainer, and whether the tests meant for them notice. The rows of
`priors/adapters` are the traps of the priors: what a network expects otherwise than its neighbours.

    python bench/mutations.py [--first 0] [--last 68]

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
STEPS = "priors/test_adapters.py::test_two_steps_and_the_picture_are_those_of_the_pipeline"
WIDE = "priors/test_adapters.py::test_a_step_of_a_wide_picture_is_that_of_the_pipeline"
PADDING = "priors/test_adapters.py::test_padding_is_seen_only_where_the_pipeline_shows_it"
RAGGED = "priors/test_adapters.py::test_ragged_prompts_are_what_they_are_alone"
HEARD = "priors/test_adapters.py::test_what_the_network_hears_is_what_the_latents_are_noised_with"
VAE = "priors/test_adapters.py::test_what_is_encoded_is_decoded_as_by_the_vae_alone"
TWICE = "priors/test_adapters.py::test_the_gradient_of_a_picture_is_finite_and_not_zero_also_when_it_is_computed_twice"


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
    Fault("core/solve.py", "beta * (1 - abar_next) / (1 - abar)", "beta * (1 - abar_next)", "core/test_sample.py"),
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
    Fault("trainer/lift.py", " or not math.isfinite(norm)", "", "trainer/test_lift.py"),
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
    Fault("priors/adapters/sdxl.py", "[*sides, 0, 0, *sides]", "[0, 0, *sides, *sides]", f"{STEPS}[sdxl]"),
    Fault("priors/adapters/sdxl.py", "0 if not text and", "0 if False and", f"{STEPS}[sdxl]"),
    Fault(
        "priors/folder/parts.py",
        "pixels or dtype == torch.float16",
        "pixels",
        "priors/test_adapted_parts.py -k float16",
    ),
    Fault(
        "priors/folder/vaes.py",
        "if mean is None or std is None:",
        "if True:",
        "priors/test_adapted_parts.py -k deviation",
    ),
    Fault("priors/adapters/prx.py", 'label="t",', 'label="n t",', f"{STEPS}[prx]"),
    Fault("priors/adapters/prx.py", '=texts["mask"],', '=texts["mask"] | True,', f"{PADDING}[prx]"),
    Fault("priors/adapters/prx_pixel.py", "start=DEVIATION", "start=1.0", f"{STEPS}[prx_pixel]"),
    Fault("priors/adapters/prx_pixel.py", "Level(1 - t, DEVIATION * t)", "Level(1 - t, t)", f"{STEPS}[prx_pixel]"),
    Fault("priors/adapters/prx_pixel.py", "min=CLEANEST", "min=1e-6", f"{STEPS}[prx_pixel]"),
    Fault("priors/adapters/prx_pixel.py", "return (v + end) / DEVIATION - end", "return v", f"{STEPS}[prx_pixel]"),
    Fault("priors/adapters/sana.py", "given if text else None", "None", f"{STEPS}[sana]"),
    Fault("priors/adapters/sana.py", "given if text else None", "given", f"{STEPS}[sana]"),
    Fault("priors/adapters/sana.py", '=texts["mask"].long()', '=texts["mask"].long() | 1', f"{PADDING}[sana]"),
    Fault("priors/adapters/load.py", '* network.real("timestep_scale", 1.0, above=0)', "", f"{STEPS}[sana]"),
    Fault(
        "priors/folder/vaes.py",
        "_decoded, _factors, _wrap_down_blocks)",
        "_decoded, _factors, _own_flag)",
        f"{TWICE}[sana-True]",
    ),
    Fault("priors/adapters/flux2_klein.py", "(t.to(dtype) * 1000).double() / 1000", "t", f"{HEARD}[flux2_klein-bf16]"),
    Fault(
        "priors/adapters/flux2_klein.py",
        "(t.to(dtype) * 1000).double() / 1000",
        "t.to(dtype).double()",
        f"{HEARD}[flux2_klein-bf16]",
    ),
    Fault(
        "priors/adapters/flux2_klein.py",
        "PATCH, TOKENS = 1024, 2, 512",
        "PATCH, TOKENS = 1024, 2, 256",
        f"{PADDING}[flux2_klein]",
    ),
    Fault(
        "priors/adapters/flux2_klein.py",
        "(one, rows, columns, one)",
        "(one, columns, rows, one)",
        f"{WIDE}[flux2_klein]",
    ),
    Fault("priors/adapters/flux2_klein.py", "    shift=shift,\n", "", f"{STEPS}[flux2_klein]"),
    Fault(
        "priors/folder/vaes.py", "batch_norm_eps).sqrt(), mean", "batch_norm_eps).sqrt(), 0.0", f"{STEPS}[flux2_klein]"
    ),
    Fault("priors/folder/vaes.py", "variance + vae.config.batch_norm_eps", "variance", f"{STEPS}[flux2_klein]"),
    Fault("priors/adapters/zimage.py", "return -torch.stack", "return torch.stack", f"{STEPS}[zimage]"),
    Fault("priors/adapters/zimage.py", 'label="1 - t"', 'label="t"', f"{STEPS}[zimage]"),
    Fault("priors/adapters/zimage.py", "prompt[mask] for", "prompt for", f"{PADDING}[zimage]"),
    Fault("priors/adapters/qwen_image.py", "t.to(dtype).double()", "t", f"{HEARD}[qwen_image-bf16]"),
    Fault("priors/adapters/qwen_image.py", "None if bool(mask.all()) else mask", "None", f"{RAGGED}[qwen_image]"),
    Fault("priors/adapters/qwen_image.py", "    lengths=lengths,\n", "", f"{STEPS}[qwen_image]"),
    Fault(
        "priors/folder/vaes.py", "_channels(vae.config.latents_mean)", "0.0", f"{VAE}[qwen_image] {STEPS}[qwen_image]"
    ),
    Fault("priors/adapters/chroma.py", "(t.to(dtype) * 1000).double() / 1000", "t", f"{HEARD}[chroma-bf16]"),
    Fault(
        "priors/adapters/chroma.py",
        'torch.cat([texts["mask"], seen]',
        'torch.cat([texts["mask"] | True, seen]',
        f"{STEPS}[chroma]",
    ),
    Fault("priors/adapters/pixart.py", "out[:, : x.shape[1]]", "out[:, -x.shape[1] :]", f"{STEPS}[pixart]"),
    Fault("priors/adapters/lumina2.py", "return -out", "return out", f"{STEPS}[lumina2]"),
    Fault(
        "priors/adapters/lumina2.py",
        "(prompt, mask) if text else (empty, no_mask)",
        "(prompt, mask)",
        f"{STEPS}[lumina2]",
    ),
    Fault(
        "priors/adapters/base.py",
        "to(torch.float32)\n        return self.table",
        "to(self.text.dtype)\n        return self.table",
        f"{HEARD}[sana-bf16]",
    ),
    Fault("priors/adapters/base.py", "self.text.dtype == torch.float32\n", "True\n", f"{HEARD}[chroma-bf16]"),
    Fault(
        "priors/folder/layout.py",
        'or (facts.pipelines and index.get("_class_name") not in facts.pipelines)',
        "",
        "priors/test_adapters.py -k another_kind",
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
