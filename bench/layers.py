"""Functions of the project that a run goes through between `main` and its first gradient.

    python bench/layers.py [key=value ...]      # settings of another run than the default object in 2 steps

Counted with `sys.setprofile` from `main` until `trainer.lift` first calls for a gradient: how many different functions
of the package were entered, and in which folder they lie; -v lists them. Comprehensions, lambdas, the bodies of classes
and the code of dataclasses do not count. One run, no timing.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from collections import Counter
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from threestudio_rf.__main__ import main  # noqa: E402

PACKAGE = ROOT / "threestudio_rf"
LINE = ["prompt=a red mushroom", "trainer.steps=2", "trainer.validate_every=0", "trainer.progress=0"]
LINE += ["camera.test_views=1", "camera.eval_size=16", "export.resolution=12", "evaluate.auto=false"]


def main_line(overrides: list[str], root: str) -> tuple[set[CodeType], set[CodeType]]:
    """The functions entered before the loop, and all up to the first gradient."""
    entered: set[CodeType] = set()
    before: set[CodeType] = set()
    backward = torch.Tensor.backward

    def note(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        own = event == "call" and code.co_flags & CO_OPTIMIZED and code.co_filename.startswith(str(PACKAGE))
        if own and not code.co_name.startswith("<"):
            if code.co_name == "lift" and code.co_filename.endswith("trainer/lift.py"):
                before.update(entered)
            entered.add(code)

    def stop(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        sys.setprofile(None)
        torch.Tensor.backward = backward  # type: ignore[method-assign]
        return backward(tensor, *args, **kwargs)

    torch.Tensor.backward = stop  # type: ignore[method-assign]
    sys.setprofile(note)
    sys.argv = ["launch.py", *LINE, *overrides, f"exp_root_dir={root}"]
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            main()
    except SystemExit:
        pass
    finally:
        sys.setprofile(None)
        torch.Tensor.backward = backward  # type: ignore[method-assign]
    return before, entered


def folders(codes: set[CodeType]) -> str:
    """How many of the functions lie in which folder."""
    count = Counter(str(Path(code.co_filename).relative_to(PACKAGE).parent) for code in codes)
    return ", ".join(f"{name} {number}" for name, number in count.most_common())


if __name__ == "__main__":
    verbose = "-v" in sys.argv
    with tempfile.TemporaryDirectory() as place:
        early, every = main_line([word for word in sys.argv[1:] if word != "-v"], place)
    print(f"own functions up to trainer.lift: {len(early)}, up to the first gradient: {len(every)}")
    print("up to trainer.lift:", folders(early))
    if verbose:
        for code in sorted(early, key=lambda c: (c.co_filename, c.co_firstlineno)):
            print(f"  {Path(code.co_filename).relative_to(PACKAGE)}:{code.co_firstlineno} {code.co_name}")
