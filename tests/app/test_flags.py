"""The command line before Hydra: bare prompts survive literally, threestudio's flags and keys become ours.

Oracle of the quoting: Hydra's own parser and OmegaConf read the quoted text back. Mutations seen to fail: the doubling
of backslashes before a quote, that at the end, and that before `${` each left out; the `${` escape left out.
"""

from __future__ import annotations

import random

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from threestudio_rf.app.errors import UserError
from threestudio_rf.app.settings.config import Config
from threestudio_rf.app.settings.flags import quote, translate

PARSER = OverridesParser.create()
LETTERS = "ab ,'\"()[]{}:%=#$\\\n;|&~+-*/<>?!@^`é😀’"
DRAW = random.Random(0)
NASTY = [
    "a scarf, red",
    "a child's toy",
    "it's a dog's, isn't it?",
    'a sign that says "open"',
    "50% of a cake (chocolate)",
    "time: 12:30",
    "{braces} [brackets] = # $ ${oc.env:HOME}",
    "a \\${b} \\\\${c} 'd' \\",
    "trailing backslash \\",
    "\\'",
    "'tis a dog",
    "the dogs'",
    "'a' or 'b'",
    "line\nbreak",
    "emoji 😀, typographic ’apostrophe’, é",
    "null",
    "true",
    "1e3",
    "[a]",
    "{a: b}",
    "  spaces  ",
    "a/b/../../c",
    "--flag",
    "a = b",
    "${",
    "${a.b}",
    "choice(a,b)",
    "~x",
    "a,b,c",
    "An artist's easel, a blank canvas & brushes; 3 of them",
    *("".join(DRAW.choice(LETTERS) for _ in range(DRAW.randint(1, 9))) for _ in range(30)),
]

SETTINGS = OmegaConf.structured(Config)


def read_back(override: str) -> str:
    parsed = PARSER.parse_overrides([override])[0]
    assert parsed.key_or_group == "prompt" and not parsed.is_sweep_override()
    SETTINGS.prompt = parsed.value()
    return SETTINGS.prompt


def test_bare_prompts_are_taken_literally():
    for number, text in enumerate(NASTY):
        if len(text) > 1 and text[0] in "'\"" and text[0] == text[-1]:
            continue
        key = ("prompt", "+prompt", "system.prompt_processor.prompt")[number % 3]
        (override,) = translate([f"{key}={text}"]).overrides
        assert read_back(override) == text, text


def test_every_text_survives_the_quoting_itself():
    for text in ["", "'", '"', "''", "'quoted'", '"quoted"']:
        assert read_back(f"prompt={quote(text)}") == text, text


def test_a_text_that_is_quoted_already_is_left_alone():
    assert translate(["prompt='a, b'"]).overrides == ["prompt='a, b'"]
    assert read_back(*translate(['prompt="it\'s, b"']).overrides) == "it's, b"


def test_null_is_nothing_where_nothing_is_allowed_and_a_word_elsewhere():
    assert translate(["prior.revision=null"]).overrides == ["prior.revision=null"]
    assert read_back(*translate(["prompt=null"]).overrides) == "null"


def test_numbers_lists_and_choices_are_not_quoted():
    given = ["seed=3", "camera.sizes=[64,128]", "loss.t_max=[5000,0.98,0.7,5001]", "loss.noise=rev", "device=cpu"]
    assert translate(given).overrides == [*given[:4], "device='cpu'"]


def test_a_sweep_over_quoted_prompts_is_left_to_hydra():
    given = ["-m", "prompt='a/b','c d, e'", "seed=1,2"]
    launch = translate(given)
    assert launch.multirun
    parsed = PARSER.parse_overrides(launch.overrides)
    assert [list(p.sweep_string_iterator()) for p in parsed if p.is_sweep_override()] == [
        ["'a/b'", "'c d, e'"],
        ["1", "2"],
    ]
    single = PARSER.parse_overrides(translate(["-m", "prompt=a scarf, red"]).overrides)
    assert not single[0].is_sweep_override()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["--config", "configs/rfds-rev_sd3.yaml", "--train", "--gpu", "0"], ["experiment=rfds_rev_sd3", "mode=train"]),
        (["--config=configs/rfds_sd3.yaml", "--validate"], ["experiment=rfds_sd3", "mode=validate"]),
        (["--config", "configs/loss/sds.yaml"], ["loss=sds"]),
        (["--config", "configs/experiment/rfds.yaml"], ["experiment=rfds"]),
        (["--test", "--verbose"], ["mode=test", "log_level=debug"]),
        (["experiment=rfds-rev_sd3", "prior=tiny-sd3"], ["experiment=rfds_rev_sd3", "prior=tiny_sd3"]),
        (["trainer.max_steps=5"], ["trainer.steps=5"]),
        (["system.loss.lambda_sparsity=[0,1.0,0.5,10]"], ["loss.lambda_sparsity=[0,1.0,0.5,10]"]),
        (["system.guidance.guidance_scale=7.5"], ["loss.scale=7.5"]),
        (
            ["system.prompt_processor.use_perp_neg=true", "system.prompt_processor.perp_neg_f_sb=[1,0.5,-0.6]"],
            ["loss.perp_neg=true", "loss.perp_neg_f_sb=[1,0.5,-0.6]"],
        ),
        (["system.loggers.wandb.enable=true", "system.renderer.context_type=cuda"], ["wandb=true"]),
        (["foo.context_type=cuda"], None),
        (["system.negative=1"], None),
    ],
)
def test_threestudios_flags_and_keys_become_ours(line, expected):
    if expected is None:
        with pytest.raises(UserError, match="unknown key"):
            translate(line)
        return
    assert translate(line).overrides == expected


def test_the_lines_that_t3bench_sends_are_understood_verbatim():
    resumed = "../../outputs_t3/dreamfusion_single/A_cat's_hat,_red@20230901-101112/ckpts/last.ckpt"
    line = ["--config", "configs/rfds_sd3.yaml", "--export", "--gpu", "0", f"resume={resumed}"]
    line += ["system.prompt_processor.prompt=A cat's hat, red", "system.exporter_type=mesh-exporter"]
    line += ["system.exporter.context_type=cuda", "system.geometry.isosurface_method=mc-cpu"]
    line += ["system.geometry.isosurface_resolution=256", "exp_root_dir=outputs_mesh"]
    line += ["system.geometry.isosurface_threshold=5."]
    launch = translate(line)
    parsed = {item.key_or_group: item.value() for item in PARSER.parse_overrides(launch.overrides)}
    assert parsed == {
        "experiment": "rfds_sd3",
        "mode": "export",
        "resume": resumed,
        "prompt": "A cat's hat, red",
        "export.resolution": 256,
        "exp_root_dir": "outputs_mesh",
        "export.threshold": 5.0,
    }
    assert launch.gpu == "0"


def test_the_two_lines_of_magic3d_that_t3bench_sends_are_understood():
    stage = ["--train", "--gpu", "0", "system.prompt_processor.prompt=a red ball", "exp_root_dir=outputs_t3"]
    coarse = translate(["--config", "configs/magic3d-coarse-sd.yaml", *stage, "use_timestamp=true"])
    assert "experiment=magic3d_coarse_sd" in coarse.overrides and "mode=train" in coarse.overrides
    last = "system.geometry_convert_from=outputs_t3/a_red_ball@1/ckpts/last.ckpt"
    refine = translate(["--config", "configs/magic3d-refine-sd.yaml", *stage, last])
    assert {"experiment=magic3d_refine_sd", "weights='outputs_t3/a_red_ball@1/ckpts/last.ckpt'"} <= set(
        refine.overrides
    )


def test_flags_without_effect_are_told():
    assert [note.split()[0] for note in translate(["--typecheck", "--gradio"]).notes] == ["--typecheck", "--gradio"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["promt=a"], "unknown key promt; did you mean prompt"),
        (["loss.t_mn=0.1"], "did you mean loss.t_min or loss.t_max"),
        (["lambda_opaque=1"], "did you mean loss.lambda_opaque"),
        (["system.guidance.min_step_percent=0.02"], "loss.t_min and loss.t_max"),
        (["trainer=5"], "trainer is a group of settings"),
        (["~seed"], "can be changed, not removed"),
        (["+new=1"], "unknown key new"),
        (["a red mushroom"], 'prompt="a red mushroom"'),
        (["--tests"], "unknown flag --tests; did you mean --test"),
        (["--config", "configs/latentnerf.yaml"], "no such file; nearest is --config configs/dreamfusion-sd.yaml"),
        (["--config", "elsewhere/rfds_sd3.yaml"], "no such file.*experiments: .*rfds_sd3"),
        (["--config", "rfds_sd3", "--config", "rfds"], "--config rfds: expected one file"),
        (["--config"], "--config needs a value"),
        (["--config="], "--config needs a file"),
        (["--config", "a" * 5000], "--config=a+: "),
        (["--config", "tests"], "--config tests: a folder, expected a file"),
        (["--gpu", "cpu"], "--gpu cpu: expected numbers of GPUs, .*device=cpu"),
        (["prompt", "=", "a red ball"], "prompt =: expected no spaces around =, as prompt='a red ball'"),
        (["seed", "=3"], "seed =3: expected no spaces around =, as seed=3"),
    ],
)
def test_what_is_not_known_is_one_line_with_a_suggestion(line, message):
    with pytest.raises(UserError, match=message):
        translate(line)


@pytest.mark.parametrize(
    ("line", "quoted"),
    [
        (["prompt=a", "red", "mushroom"], 'prompt="a red mushroom"'),
        (["seed=1", "prompt=a", "red", "seed=2"], 'prompt="a red"'),
        (["system.prompt_processor.prompt=a", "hat,", "red", "--train"], 'system.prompt_processor.prompt="a hat, red"'),
        (["a red ball"], 'prompt="a red ball"'),
        (["seed=1", "red"], 'prompt="red"'),
        (["prompt=\u201ca", "red", "ball\u201d"], 'prompt="a red ball"'),
    ],
)
def test_words_without_quotes_are_refused_with_the_quotes_that_are_missing(line, quoted):
    with pytest.raises(UserError, match="is neither a flag nor key=value; a text is given in quotes: ") as caught:
        translate(line)
    assert str(caught.value).endswith(f": {quoted}")


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("trainer.max_steps=1e4", "trainer.steps=10000"),
        ("seed=3.0", "seed=3"),
        ("trainer.steps=1.5", "trainer.steps=1.5"),
        ("loss.scale=1e2", "loss.scale=1e2"),
        ("camera.sizes=64", "camera.sizes=[64]"),
        ("camera.sizes=64,128", "camera.sizes=[64,128]"),
        ("camera.sizes=[64]", "camera.sizes=[64]"),
        ("export.formats=glb,obj", "export.formats=[glb,obj]"),
        ("edit.prompts=a dog, it's asleep", "edit.prompts=['a dog, it\\'s asleep']"),
        ("edit.prompts='a dog'", "edit.prompts=['a dog']"),
        ("grid.seeds=1,2", "grid.seeds=[1,2]"),
    ],
)
def test_whole_numbers_and_lists_are_taken_however_they_are_written(typed, expected):
    assert translate([typed]).overrides == [expected]
    assert translate(["-m", "camera.sizes=64,128"]).overrides == ["camera.sizes=64,128"], "a sweep"


def test_of_two_ways_to_say_what_to_make_none_is_dropped(tmp_path):
    with pytest.raises(UserError, match="prompt= and prompt_file= both say what to make"):
        translate(["system.prompt_processor.prompt=a hat", "prompt_file=list.txt"])
    (tmp_path / "mine.yaml").write_text("prompt_file: list.txt\nprompt: a hat\n")
    line = ["--config", str(tmp_path / "mine.yaml")]
    assert "prompt_file='list.txt'" in translate(line).overrides
    assert translate([*line, "prompt=a shoe"]).overrides == ["prompt='a shoe'"]
    assert "prompt_file='other.txt'" in translate([*line, "prompt_file=other.txt"]).overrides
