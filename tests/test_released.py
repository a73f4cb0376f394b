"""The released configs: every one is read, every key is known, and each value becomes the setting that the official
code makes of it.
"""

import copy

import pytest
import yaml

from fz.errors import FzError
from fz.settings import released, released_names
from fz.settings.config import Crop, build
from fz.settings.tree import assign, read, with_text_keys

SMALLEST = {
    "pretrained_model_path": "ckpt",
    "dataset_config": {"path": "frames", "prompt": "a silver jeep"},
    "editing_config": {
        "editing_prompts": ["a red jeep"],
        "prompt2prompt_edit": True,
        "p2p_config": {0: {"cross_replace_steps": {"default_": 0.5}, "self_replace_steps": 0.4}},
    },
}
NAME = "editing_config.p2p_config.0."


def settings_of(tree, *assignments):
    tree = with_text_keys(copy.deepcopy(tree))
    for assignment in assignments:
        assign(tree, assignment)
    translation = released.translate(tree)
    return build(released.DEFAULTS, translation.overlay, notes=tuple(translation.notes))


@pytest.fixture(scope="module")
def configs(shared):
    return sorted((shared / "fatezero_configs").rglob("*.yaml"))


def test_every_released_config_is_read_unchanged(configs):
    assert len(configs) >= 20
    for path in configs:
        tree = read(path)
        translation = released.translate(tree)
        settings = build(released.DEFAULTS, translation.overlay)
        content = yaml.safe_load(path.read_text())
        assert settings.source == content["dataset_config"]["prompt"], path
        assert [e.target for e in settings.edits] == content["editing_config"]["editing_prompts"], path
        assert settings.steps == content["editing_config"]["num_inference_steps"], path
        fused = content["editing_config"].get("prompt2prompt_edit", False)
        assert all((e.align != "plain") == fused for e in settings.edits), path


def test_teaser_watercolor(shared):
    settings = build(
        released.DEFAULTS, released.translate(read(shared / "fatezero_configs/teaser/jeep_watercolor.yaml")).overlay
    )
    assert settings.frame_index == ("mid",)
    assert (settings.least_channels, settings.steps, settings.guidance, settings.attention) == (
        640,
        50,
        7.5,
        "inversion",
    )
    assert (settings.clip.path, settings.clip.frames, settings.clip.size, settings.clip.every) == (
        "data/teaser_car-turn",
        8,
        512,
        1,
    )
    plain, watercolor = settings.edits
    assert watercolor.reweight == (("watercolor", 10),)
    assert (watercolor.cross_replace, watercolor.self_replace, watercolor.align) == ((0, 0.8), (0, 0.8), "refine")
    # blend_self_attention and blend_th without blend_words: no mask
    assert plain.threshold is None and plain.lenient


def test_teaser_latent_blend(shared):
    tree = read(shared / "fatezero_configs/teaser/jeep_posche_local_latent_blend.yaml")
    (edit,) = build(released.DEFAULTS, released.translate(tree).overlay).edits
    assert (edit.threshold, edit.blend_latents, edit.blend_words) == (
        0.3,
        0.3,
        (("silver", "jeep"), ("Porsche", "car")),
    )
    assert edit.align == "replace"


def test_defaults_of_the_released_code():
    settings = settings_of(SMALLEST)
    assert (settings.guidance, settings.steps, settings.frame_index, settings.least_channels) == (
        7,
        20,
        (-1, "first"),
        0,
    )
    assert (settings.clip.frames, settings.clip.start, settings.clip.every, settings.clip.size) == (8, 0, 1, 512)
    assert (settings.attention, settings.seed, settings.negative, settings.checkpoint) == ("inversion", 0, "", "ckpt")
    (edit,) = settings.edits
    assert (edit.align, edit.threshold, edit.blend_latents, edit.reweight, edit.lenient) == (
        "replace",
        None,
        None,
        (),
        True,
    )
    assert (edit.cross_replace, edit.self_replace) == ((0, 0.5), (0, 0.4))


@pytest.mark.parametrize(
    ("assignment", "path", "value"),
    [
        ("dataset_config.n_sample_frame=-1", "clip.frames", None),
        ("dataset_config.start_sample_frame=3", "clip.start", 3),
        ("dataset_config.sampling_rate=4", "clip.every", 4),
        ("dataset_config.image_size=256", "clip.size", 256),
        ("dataset_config.image_size=[256, 384]", "clip.size", (256, 384)),
        ("dataset_config.offset.left=10", "clip.crop", Crop(left=10)),
        ("dataset_config.offset={left: 1, bottom: 2}", "clip.crop", Crop(left=1, bottom=2)),
        ("editing_config.guidance_scale=1e1", "guidance", 10.0),
        ("editing_config.source_prompt=a grey jeep", "source", "a grey jeep"),
        ("editing_config.source_prompt=${dataset_config.prompt}", "source", "a silver jeep"),
        ("editing_config.source_prompt=old ${..dataset_config.prompt}", "source", "old a silver jeep"),
        ("model_config.SparseCausalAttention_index=[-1, 1, first, last]", "frame_index", (-1, 1, "first", "last")),
        ("model_config.least_sc_channel=640", "least_channels", 640),
        ("seed=7", "seed", 7),
        ("editing_config.use_inversion_attention=true", "attention", "inversion"),
        (f"{NAME}is_replace_controller=false", "edits.0.align", "refine"),
        (f"{NAME}is_replace_controller=true", "edits.0.align", "replace"),
        ("editing_config.prompt2prompt_edit=false", "edits.0.align", "plain"),
        (f"{NAME}cross_replace_steps=0.7", "edits.0.cross_replace", 0.7),
        (f"{NAME}cross_replace_steps=1", "edits.0.cross_replace", 1),
        (f"{NAME}cross_replace_steps=[0.1, 0.7]", "edits.0.cross_replace", (0.1, 0.7)),
        (f"{NAME}cross_replace_steps.jeep=0.2", "edits.0.cross_replace_words", (("jeep", 0.2),)),
        (f"{NAME}cross_replace_steps={{jeep: 0.2}}", "edits.0.cross_replace", 1.0),
        (f"{NAME}self_replace_steps=[0.1, 0.5]", "edits.0.self_replace", (0.1, 0.5)),
        (f"{NAME}eq_params={{words: [red, jeep], values: [2, 3]}}", "edits.0.reweight", (("red", 2), ("jeep", 3))),
        (f"{NAME}eq_params={{words: red, values: 2}}", "edits.0.reweight", (("red", 2),)),
    ],
)
def test_translation(assignment, path, value):
    tree = with_text_keys(copy.deepcopy(SMALLEST))
    changed = assign(tree, assignment)
    translation = released.translate(tree)
    assert translation.overlay[path] == value
    # what --set touches alone, over the flags
    assert translation.of([changed])[path] == value


@pytest.mark.parametrize(
    ("entry", "threshold", "latents", "words"),
    [
        ({}, None, None, None),
        ({"blend_words": [["jeep"], ["car"]]}, None, None, (("jeep",), ("car",))),
        ({"blend_self_attention": True, "blend_th": [0.2, 0.2]}, None, None, None),
        ({"blend_words": "None", "blend_self_attention": True}, None, None, None),
        ({"blend_words": [["jeep"], ["car"]], "blend_self_attention": True}, 0.3, None, (("jeep",), ("car",))),
        ({"blend_words": ["jeep", "car"], "blend_self_attention": True}, 0.3, None, (("jeep",), ("car",))),
        ({"blend_words": [["man"]], "blend_self_attention": True, "blend_th": [0.2, 0.9]}, 0.2, None, (("man",), ())),
        ({"blend_words": [["man"], []], "blend_latents": True, "blend_th": [0.4, 0.9]}, None, 0.4, (("man",), ())),
        (
            {"blend_words": [["jeep"], ["car"]], "blend_self_attention": True, "blend_th": [2, 2]},
            2,
            None,
            (("jeep",), ("car",)),
        ),
    ],
)
def test_masks(entry, threshold, latents, words):
    tree = copy.deepcopy(SMALLEST)
    tree["editing_config"]["p2p_config"][0] |= entry
    (edit,) = settings_of(tree).edits
    assert (edit.threshold, edit.blend_latents, edit.blend_words) == (threshold, latents, words)


def test_another_source_of_words_than_the_released_codes_is_said():
    tree = copy.deepcopy(SMALLEST)
    told = "the released code has 'a blue bus' for it"
    tree["editing_config"]["editing_prompts"] = [tree["dataset_config"]["prompt"] + " ,"]
    assert not any("released code has" in note for note in settings_of(tree).notes)
    tree["editing_config"]["editing_prompts"] = ["a blue bus"]
    assert any(told in note for note in settings_of(tree).notes)
    tree["editing_config"]["source_prompt"] = "a red bus"
    assert not any("released code has" in note for note in settings_of(tree).notes)


def test_p2p_keys_as_integers_text_or_list():
    tree = copy.deepcopy(SMALLEST)
    entries = tree["editing_config"]["p2p_config"]
    expected = settings_of(tree)
    tree["editing_config"]["p2p_config"] = {"0": entries[0]}
    assert settings_of(tree) == expected
    tree["editing_config"]["p2p_config"] = [entries[0]]
    assert settings_of(tree) == expected


def test_reconstruction_attention_samples_the_first_prompt():
    tree = copy.deepcopy(SMALLEST)
    tree["editing_config"] |= {"use_inversion_attention": False, "editing_prompts": ["a silver jeep,", "a red jeep"]}
    tree["editing_config"]["p2p_config"][1] = tree["editing_config"]["p2p_config"][0]
    settings = settings_of(tree)
    assert (settings.attention, settings.reconstruction_prompt) == ("reconstruction", "a silver jeep,")
    assert [e.align for e in settings.edits] == ["plain", "replace"]


def test_without_fusion_nothing_is_reconstructed():
    tree = copy.deepcopy(SMALLEST)
    tree["editing_config"] |= {"use_inversion_attention": False, "prompt2prompt_edit": False}
    settings = settings_of(tree)
    assert (settings.attention, settings.edits[0].align) == ("inversion", "plain")


def test_prompt2prompt_edit_is_off_unless_given():
    tree = copy.deepcopy(SMALLEST)
    del tree["editing_config"]["prompt2prompt_edit"], tree["editing_config"]["p2p_config"]
    assert settings_of(tree).edits[0].align == "plain"


def test_set_adds_an_edit_with_its_p2p_config():
    settings = settings_of(
        SMALLEST,
        "editing_config.editing_prompts[1]=a blue jeep",
        "editing_config.p2p_config.1.cross_replace_steps.default_=0.2",
        "editing_config.p2p_config.1.is_replace_controller=false",
    )
    assert [e.target for e in settings.edits] == ["a red jeep", "a blue jeep"]
    assert (settings.edits[1].cross_replace, settings.edits[1].align) == ((0, 0.2), "refine")


def test_set_keeps_a_sentence_with_a_colon():
    assert settings_of(SMALLEST, "editing_config.editing_prompts=[a red jeep]").edits[0].target == "a red jeep"
    assert settings_of(SMALLEST, "dataset_config.prompt=a jeep: silver").source == "a jeep: silver"


def test_left_over_entries_and_unused_interpolations_are_no_error():
    tree = copy.deepcopy(SMALLEST)
    tree["editing_config"]["p2p_config"][3] = {"eq_params": "${nowhere}"}
    tree["test_pipeline_config"] = {"num_inference_steps": "${..validation_sample_logger.num_inference_steps}"}
    tree["editing_config"]["clip_length"] = "${..dataset_config.n_sample_frame}"
    assert len(settings_of(tree).edits) == 1


def test_interpolated_section():
    tree = copy.deepcopy(SMALLEST)
    tree["editing_config"]["editing_prompts"].append("a blue jeep")
    tree["editing_config"]["p2p_config"][1] = "${.0}"
    first, second = settings_of(tree).edits
    assert (second.cross_replace, second.self_replace) == (first.cross_replace, first.self_replace)


def test_more_values_than_words_is_said():
    settings = settings_of(SMALLEST, NAME + "eq_params={words: [red], values: [10, 10]}")
    assert settings.edits[0].reweight == (("red", 10),)
    assert any("1 words and 2 values" in note for note in settings.notes)


@pytest.mark.parametrize("name", [*released_names.TABLE, *released_names.COMBINED, *released_names.IGNORED], ids=str)
def test_every_name_is_known_and_ignored_ones_change_nothing(name):
    tree = with_text_keys(copy.deepcopy(SMALLEST))
    concrete = name.replace("p2p_config.*", "p2p_config.0").replace("*", "")
    released_names.check_names({**tree, **nested(concrete)})
    if name in released_names.IGNORED:
        assign(tree, f"{concrete}=1")
        assert build(released.DEFAULTS, released.translate(tree).overlay) == settings_of(SMALLEST)


def nested(name):
    tree = {}
    assign(tree, f"{name}=1")
    return tree


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("editing_config.guidence_scale=7", "Did you mean 'editing_config.guidance_scale'?"),
        ("dataset_config.n_sample_frames=7", "Did you mean 'dataset_config.n_sample_frame'?"),
        (NAME + "blend_words_=7", "Did you mean 'editing_config.p2p_config.0.blend_words'?"),
        (NAME + "eq_params.word=[a]", "Did you mean 'editing_config.p2p_config.0.eq_params.words'?"),
        ("editing_confg.guidance_scale=7", "Did you mean 'editing_config.guidance_scale'?"),
        ("dataset_config=3", "expected a section"),
        ("dataset_config.path=[a]", "expected text"),
        ("dataset_config.crop=random", "expected center"),
        ("dataset_config.n_sample_frame=many", "expected a number"),
        ("dataset_config.n_sample_frame=1.5", "expected a whole number"),
        ("dataset_config.n_sample_frame=.nan", "expected a whole number"),
        ("dataset_config.offset.left=a", "expected a number"),
        ("model_config.SparseCausalAttention_index=mid", "expected a list"),
        ("model_config.temporal_downsample_time=4", "Remove it"),
        ("editing_config.prompt2prompt_edit=1", "expected true or false"),
        ("editing_config.editing_prompts=[]", "expected a list of sentences"),
        ("editing_config.editing_prompts=[[a]]", "expected text"),
        ("editing_config.editing_prompts[1]=a blue jeep", "no entry 1 for 'a blue jeep'"),
        ("editing_config.editing_prompts[4]=a blue jeep", "as a place in a list of 1"),
        ("editing_config.p2p_config.0=3", "expected a section"),
        (NAME + "is_replace_controller=perhaps", "expected true or false"),
        (NAME + "self_replace_steps=often", "expected a number"),
        (NAME + "self_replace_steps=1.2", "expected a share of the steps"),
        (NAME + "cross_replace_steps={default_: often}", "expected a number"),
        (NAME + "eq_params={words: [red]}", "expected words and values"),
        (NAME + "blend_words=[[a], [b], [c]]", "expected the source's words and the target's"),
        (NAME + "blend_th=[x, 2]", "expected a number"),
        ("dataset_config.prompt=${nowhere.at_all}", "names nothing"),
        ("dataset_config.prompt=${dataset_config.prompt}", "leads back to itself"),
        ("dataset_config.prompt=${oc.env:HOME}", "resolver"),
        ("dataset_config.prompt=${unclosed", "expected an interpolation"),
        ("no assignment", "expected section.key=value"),
        ("dataset_config..path=3", "expected section.key=value"),
    ],
)
def test_what_is_wrong_is_named(assignment, expected):
    with pytest.raises(FzError) as caught:
        settings_of(SMALLEST, assignment)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a: [1", "is no YAML"),
        (b"- 1\n- 2", "expected sections"),
        (b"", "expected sections"),
        (b"a: !!python/object/apply:os.getcwd []", "is no YAML"),
        (b"\xff\xfe\x00a", "cannot be read"),
    ],
    ids=["unclosed", "list", "empty", "python", "binary"],
)
def test_files_that_are_no_config(content, expected, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(FzError) as caught:
        read(path)
    assert expected in str(caught.value) and "\n" not in str(caught.value)
