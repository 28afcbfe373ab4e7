"""An object step by step, its picture, mesh and video: python examples/lift.py"""

from threestudio_rf import evaluate, export, lift

STEPS = 800

run = lift("a red mushroom", steps=STEPS, settings={"camera.eval_size": 64})  # about two minutes on two cores
for state in run:
    if state.step % 100 == 0:
        print(f"step {state.step}: t {state.metrics['t']:.2f}, loss {state.metrics['loss']:.3g}")
front = run.pictures(1)
front.pil()[0].save("mushroom.png")
print(evaluate(front, "a red mushroom"))  # run.figures are those of the object
print("wrote", run.video("mushroom.mp4", views=min(60, STEPS)))
for path in export(run, "mushroom", formats=["glb", "obj"], resolution=min(96, 24 + STEPS)):
    print("wrote", path)
