"""A picture of one thing in other colours, all in one call: python examples/edit.py"""

from threestudio_rf import edit, evaluate, load_prior, sample

STEPS = 20
PROMPTS = ["a blue mushroom", "a green mushroom", "a yellow mushroom"]

prior = load_prior("tiny_sd3")
before = sample("a red mushroom", prior=prior, seed=1, steps=STEPS)
before.pil()[0].save("a red mushroom.png")
after = edit(before, PROMPTS, source="a red mushroom", prior=prior, steps=STEPS)
for i, prompt in enumerate(PROMPTS):
    after.pil()[i].save(f"{prompt}.png")
    print(f"{prompt}: colour error {evaluate(after[i : i + 1], prompt)['colour_error']:.3f}")
