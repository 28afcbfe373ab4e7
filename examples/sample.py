"""Pictures of a prompt, how right they are, and one of them out of its own noise: python examples/sample.py"""

from threestudio_rf import evaluate, invert, load_prior, sample

STEPS = 20
PROMPT = "a red mushroom"

prior = load_prior("tiny_sd3")  # once, for all calls
images = sample(PROMPT, prior=prior, n=4, seed=0, steps=STEPS)
for i, picture in enumerate(images.pil()):
    picture.save(f"mushroom-{i}.png")
print({name: value for name, value in evaluate(images, PROMPT).items() if value is not None})

noise = invert(images[:1], PROMPT, prior=prior, sampler="heun", steps=STEPS)
again = sample(PROMPT, latents=noise, prior=prior, sampler="heun", steps=STEPS, cfg=1)
print(f"out of its own noise: mean difference {(again - images[:1]).abs().mean().item():.3f}")
