"""The figures of docs/questions.md, and every number in its text.

    python bench/questions.py --figure a|b|c|d|all --out docs/images [--prior tiny_sd_v]

a  v as target and at inference; the x0_hat of one step against the sample of 20
b  weights of the variational bound; losses of a discriminator
c  the posterior mean through x0 and through eps, with and without clipping
d  the variance of the noise after one step of RFDS-Rev

Figure a also asks the embedded prior --prior, figure d the embedded flow; the rest is closed forms. Takes a minute.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import questions_laws as laws
import torch
from questions_laws import PROMPTS, STEPS, Run
from torch import Tensor

from threestudio_rf.priors.base import PriorError
from threestudio_rf.priors.tiny import load_tiny

SHOWN = (1.0, 0.9, 0.8, 0.7, 0.5, 0.3)
INK, BLUE, RED, GREEN, GREY = "#222222", "#1f6fb4", "#c8401f", "#2d8a4e", "#8a8a8a"


def style() -> Any:
    """pyplot without a window, with letters that stay legible at half the size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams |= {"font.size": 12, "axes.titlesize": 12, "legend.fontsize": 10.5, "lines.linewidth": 2.0}
    pyplot.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
    pyplot.rcParams |= {"axes.grid": True, "grid.alpha": 0.25, "savefig.dpi": 100}
    return pyplot


def say(name: str, values: Tensor | list[float] | float) -> None:
    """One line of numbers."""
    numbers = torch.as_tensor(values, dtype=torch.float64).flatten().tolist()
    print(f"  {name}: " + ", ".join(f"{number:.4g}" for number in numbers))


def ask(name: str, scale: float) -> Run:
    """The samples of an embedded prior; SystemExit when it is not there."""
    try:
        prior = load_tiny(name)
    except PriorError as error:
        raise SystemExit(f"{error}; choose another one by --prior") from None
    return Run(prior, scale, shift=prior.time_shift)


def figure_a(options: argparse.Namespace, file: Path) -> None:
    """Strip of x0_hat, the turn from (x0, eps) to (x_t, v), error over t."""
    pyplot, run = style(), ask(options.prior, options.cfg)
    figure = pyplot.figure(figsize=(12, 9.4), constrained_layout=True)
    grid = figure.add_gridspec(2, 1, height_ratios=(1.15, 1))
    draw_strip(grid[0].subgridspec(3, len(SHOWN) + 1, wspace=0.02, hspace=0.02), figure, run)
    below = grid[1].subgridspec(1, 3, width_ratios=(0.9, 1, 1))
    draw_turn(figure.add_subplot(below[0]))
    draw_error(figure.add_subplot(below[1]), run)
    draw_modes(figure.add_subplot(below[2]))
    figure.savefig(file)


def draw_strip(grid: Any, figure: Any, run: Run) -> None:
    """A row per prompt: x0_hat at the times nearest to SHOWN, then the sample."""
    path, copies = run.path, len(run.noise) // len(PROMPTS)
    steps = [int((path.times - t).abs().argmin()) for t in SHOWN]
    titles = [rf"$\hat x_0$ at t = {path.times[step]:.2f}" for step in steps] + [f"sample, {STEPS} steps"]
    for row in range(len(PROMPTS)):
        latents = torch.stack([*path.x0_hat[steps, row * copies], path.sample[row * copies]])
        for column, image in enumerate(run.prior.decode(latents)):
            axis = figure.add_subplot(grid[row, column])
            axis.imshow(image.permute(1, 2, 0).numpy(), interpolation="bilinear")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if row == 0:
                axis.set_title(titles[column])
            if column == 0:
                axis.set_ylabel(PROMPTS[row].partition(",")[0].partition(" ")[2])
    say("a: times shown", path.times[steps])


def draw_turn(axis: Any, *, degrees: float = 35.0) -> None:
    """(x_t, v) is (x0, eps) turned by phi, alpha = cos phi, sigma = sin phi."""
    angle = torch.tensor(degrees).deg2rad()
    cos, sin = float(angle.cos()), float(angle.sin())
    for x, y, name, colour in (
        (1, 0, "$x_0$", INK),
        (0, 1, r"$\epsilon$", INK),
        (cos, sin, "$x_t$", BLUE),
        (-sin, cos, "$v$", RED),
    ):
        axis.annotate("", (x, y), (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 2.2})
        axis.text(1.13 * x, 1.13 * y, name, ha="center", va="center", fontsize=16, color=colour)
    turn = torch.linspace(0, float(angle), 30)
    axis.plot(0.4 * turn.cos(), 0.4 * turn.sin(), color=GREY)
    axis.text(0.5 * float((angle / 2).cos()), 0.5 * float((angle / 2).sin()), r"$\phi$", ha="center", va="center")
    formulas = (
        (r"target, from the clean $x_0$:  $v = \alpha\,\epsilon - \sigma\,x_0$", RED),
        (r"inference, from the noisy $x_t$:  $\hat x_0 = \alpha\,x_t - \sigma\,v$", BLUE),
    )
    for row, (text, colour) in enumerate(formulas):
        axis.text(0.2, -0.27 - 0.19 * row, text, ha="center", fontsize=11.5, color=colour)
    axis.set(xlim=(-0.85, 1.25), ylim=(-0.55, 1.3), aspect="equal", xticks=[], yticks=[])
    axis.set_title(r"$\alpha = \cos\phi$,  $\sigma = \sin\phi$")
    axis.spines[:].set_visible(False)
    table = laws.stable().table
    error, wrong = laws.turn(table, 0.5)
    say("a: x0 from (x_t, v), largest error; rms error of a target made from x_t instead of x0", [error, wrong])


def draw_error(axis: Any, run: Run) -> None:
    """Distance of x0_hat(t) from the sample where the same steps end, over the prior's samples."""
    path = run.path
    scale = path.sample.square().mean().sqrt()
    error = path.error() / scale
    low, middle, high = torch.quantile(error, torch.tensor([0.1, 0.5, 0.9]), dim=1)
    axis.fill_between(path.times, low, high, color=BLUE, alpha=0.2, lw=0, label="80 % of the samples")
    axis.plot(path.times, middle, color=BLUE, marker="o", ms=4, label="median")
    axis.set(xlabel="t  (0 clean, 1 noise)", ylabel=r"rms of $\hat x_0(t)$ - sample, relative")
    axis.set(title=f"{run.prior.name}, along its {STEPS} steps", xlim=(0, 1), ylim=(0, None))
    axis.legend(loc="upper left")
    say(f"a: {run.prior.name}, {error.shape[1]} samples, t", path.times)
    say("a: median of rms(x0_hat - sample) / rms(sample)", middle)


def draw_modes(axis: Any) -> None:
    """On the exact mixture: what is nearest to the truth is farthest from the data."""
    prior = laws.two_modes("v", laws.stable().table)
    times = torch.linspace(0.05, 1, 20, dtype=torch.float64)
    one, many = laws.one_against_many(prior, times)
    axis.plot(times, one.to_data, color=RED, label=r"one step ($\hat x_0$), to the data")
    axis.plot(times, many.to_data, color=BLUE, label=f"{STEPS} steps, to the data")
    axis.plot(times, one.to_truth, color=RED, ls="--", label="one step, to the true $x_0$")
    axis.plot(times, many.to_truth, color=BLUE, ls="--", label=f"{STEPS} steps, to the true $x_0$")
    axis.set(xlabel="t of the noisy $x_t$", ylabel="rms distance", title="data at -1 and +1, exact network")
    axis.set(xlim=(0, 1), ylim=(0, 2.3))
    axis.legend(loc="upper left")
    for name, values in (("t", times), ("one step to data", one.to_data), ("to truth", one.to_truth)):
        say(f"a: mixture, {name}", values[[1, 5, 9, 13, 17, 19]])
    for name, values in (("to data", many.to_data), ("to truth", many.to_truth)):
        say(f"a: mixture, {STEPS} steps {name}", values[[1, 5, 9, 13, 17, 19]])


def figure_b(options: argparse.Namespace, file: Path) -> None:
    """Weights over k; both losses of a discriminator over its logit."""
    pyplot, process = style(), laws.stable()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.6), constrained_layout=True)
    weights, k = laws.bound_weights(process), torch.arange(len(process))
    for name, label, colour, dash in (
        ("eps", r"$\epsilon$", BLUE, "-"),
        ("x0", "$x_0$, derived", RED, "-"),
        ("slip", "$x_0$, latent-diffusion's code", RED, ":"),
        ("v", "$v$", GREEN, "-"),
    ):
        left.plot(k, weights[name], color=colour, ls=dash, label=label)
    left.set(yscale="log", xlabel="k  (index of the table, 999 = noise)", ylabel="weight of the squared error")
    left.set(title="variational bound, Stable Diffusion's table", xlim=(0, 999))
    left.legend(loc="upper right")
    draw_discriminator(right)
    figure.savefig(file)
    rows = [1, 10, 100, 500, 999]
    say("b: k", [float(row) for row in rows])
    for name, values in (weights | {"x0 with parentheses only": laws.with_parentheses(process)}).items():
        say(f"b: weight of {name}", values[rows])
    say("b: derived / slip", (weights["x0"] / weights["slip"])[rows])
    say("b: slip / derived", (weights["slip"] / weights["x0"])[rows])
    say("b: parentheses only / derived", (laws.with_parentheses(process) / weights["x0"])[rows])
    say("b: derived, k = 1 over k = 999", weights["x0"][1] / weights["x0"][999])
    ratio = weights["eps"] / weights["x0"] / ((1 - process.abar) / process.abar)
    say("b: k > 0: largest deviation of eps weight / x0 weight from sigma^2 / alpha^2", (ratio[1:] - 1).abs().max())


def draw_discriminator(axis: Any) -> None:
    """What one patch costs the discriminator, and the generator."""
    logits = torch.linspace(-4, 4, 161, dtype=torch.float64)
    curves = laws.discriminator_curves(logits)
    for name, colour in (("hinge", BLUE), ("vanilla", RED)):
        real, fake, slope = curves[name]
        axis.plot(logits, real, color=colour, label=f"{name}, true patch")
        axis.plot(logits, fake, color=colour, ls="--", label=f"{name}, false patch")
        say(f"b: {name}, true patch at logit -2, 0, 1, 2", real[[40, 80, 100, 120]])
        say(f"b: {name}, its slope there", slope[[40, 80, 100, 120]])
        say(f"b: {name}, a true and a false patch at logit 0", real[80] + fake[80])
    axis.plot(logits, -logits, color=GREY, label="generator, false patch")
    axis.set(xlabel="logit of a patch  (high: taken for true)", ylabel="loss of one patch")
    axis.set(title="discriminator (both losses) and generator", xlim=(-4, 4), ylim=(-1, 4))
    axis.legend(loc="upper center")


def figure_c(options: argparse.Namespace, file: Path) -> None:
    """The gap between both means over k; what clipping does to x0_hat."""
    pyplot, process, guess, k, error = style(), laws.pixels(), 1.5, 800, 0.05
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.6), constrained_layout=True)
    plain, cut = laws.mean_gaps(process, x0_hat=guess)
    left.plot(cut, color=RED, label=rf"$\hat x_0$ = {guess} clipped to 1:  $({guess} - 1)\,c_1(k)$")
    left.plot(plain, ".", ms=3, color=BLUE, label="not clipped: rounding of float64")
    left.set(yscale="log", xlabel="k  (999 = noise)", ylabel="abs(mean by eq. 11 - mean by eq. 13)")
    left.set(title=r"posterior mean, through $x_0$ and through $\epsilon$", xlim=(0, 999), ylim=(1e-17, 1e3))
    left.legend(loc="upper right")
    found = laws.clipping(process, k, error=error)
    bins = torch.linspace(-4.05, 4.05, 82).tolist()  # -1 and 1 in the middle of a bin
    share = torch.full_like(found.x0, 100 / len(found.x0))
    right.hist(found.x0_hat, bins, weights=share, color=BLUE, alpha=0.45, label=r"$\hat x_0$, not clipped")
    right.hist(found.limited, bins, weights=share, color=RED, histtype="step", lw=2, label=r"$\hat x_0$, clipped")
    right.set(xlabel=rf"$\hat x_0$ at k = {k}", ylabel="share per 0.1, %", xlim=(-4, 4))
    right.set(title=rf"rms {error} wrong in $\epsilon$, data within [-1, 1]")
    right.legend(loc="upper right")
    figure.savefig(file)
    rows = [0, 1, 10, 100, 500, 999]
    say("c: largest gap without clipping", plain.max())
    say("c: k", [float(row) for row in rows])
    say("c: gap with clipping", cut[rows])
    say("c: half of c1", 0.5 * process.c1[rows])
    abar = process.abar
    say("c: sigma / alpha", ((1 - abar) / abar).sqrt()[[100, 500, k, 999]])
    outside = (found.x0_hat.abs() > 1).double().mean()
    say(f"c: k = {k}: share outside [-1, 1], deviation of x0_hat", torch.stack([outside, found.x0_hat.std()]))
    errors = [(x - found.x0).square().mean().sqrt() for x in (found.x0_hat, found.limited)]
    say(f"c: k = {k}: rms error of x0_hat, not clipped and clipped", torch.stack(errors))


def figure_d(options: argparse.Namespace, file: Path) -> None:
    """Variance of eps' over t for both steps: closed form, measured, and on a trained prior."""
    pyplot = style()
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 4.6), constrained_layout=True)
    fine, times = torch.linspace(0, 1, 201, dtype=torch.float64), torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    say("d: t", times)
    for axis, step, name in ((axes[0], None, "k = 1 - t"), (axes[1], 1.0, "k = 1")):
        for s, colour in ((0.25, GREEN), (1.0, BLUE), (4.0, RED)):
            measured, closed = laws.rev_measured(times.tolist(), s, step), laws.rev_variance(times, s, step)
            axis.plot(fine, laws.rev_variance(fine, s, step), color=colour, label=f"data of variance {s:g}")
            axis.plot(times, measured[:, 0], "o", color=colour, ms=6, label="measured" if s == 4 else None)
            say(f"d: {name}, S = {s:g}, closed form", closed)
            say(f"d: {name}, S = {s:g}, measured", measured[:, 0])
            say(f"d: {name}, S = {s:g}, largest relative difference", (measured[:, 0] / closed - 1).abs().max())
            say(f"d: {name}, S = {s:g}, correlation of eps' with x0", measured[:, 1])
        axis.axhline(1, color=GREY, lw=1.2, ls="--")
        axis.set(xlabel="t  (0 clean, 1 noise)", ylabel=r"variance of $\epsilon'$", title=name, xlim=(0, 1))
        axis.set_ylim(0, None)
    run = ask("tiny_sd3", options.cfg)
    found = run.rev(times)
    axes[0].plot(times, found[:, 0], "D", color=INK, ms=6, label=f"{run.prior.name}, its own samples")
    say(f"d: {run.prior.name}, {len(run.noise)} samples, variance per picture", found[:, 0])
    say(f"d: {run.prior.name}, correlation of eps' with eps, with x0", found[:, 1:].T)
    axes[0].legend(handles=axes[0].lines[-1:], loc="lower right")
    axes[0].set_ylim(0, 1.3)
    axes[1].legend(loc="upper left")
    figure.savefig(file)


FIGURES: dict[str, tuple[str, Callable[[argparse.Namespace, Path], None]]] = {
    "a": ("question_a_one_step.png", figure_a),
    "b": ("question_b_weights.png", figure_b),
    "c": ("question_c_posterior.png", figure_c),
    "d": ("question_d_rev_noise.png", figure_d),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", choices=(*FIGURES, "all"), default="all")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--prior", default="tiny_sd_v", help="the embedded prior of figure a")
    parser.add_argument("--cfg", type=float, default=3.0, help="its guidance: uncond + s (cond - uncond)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name, (file, make) in FIGURES.items():
        if options.figure in (name, "all"):
            make(options, options.out / file)
            print(options.out / file)


if __name__ == "__main__":
    main()
