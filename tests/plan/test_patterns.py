"""Names and patterns of `modules_to_not_convert` and `overrides`, as Transformers' users expect them."""

import re

import pytest
import torch
from torch import nn
from transformers.quantizers.quantizers_utils import should_convert_module

from tests.families import build
from transformers_qaig import QAIGConfig
from transformers_qaig.plan.build import make_plan
from transformers_qaig.plan.patterns import ModelNames


def left_out(model: nn.Module, patterns: list[str]) -> set[str]:
    """The weights that the patterns take out of a plan for everything."""
    everything = {"vision_bits": 4, "lm_head_bits": 4, "embedding_bits": 4}
    whole = make_plan(model, QAIGConfig(**everything))[0]
    return whole.keys() - make_plan(model, QAIGConfig(**everything, modules_to_not_convert=patterns))[0].keys()


BLOCK = "model.language_model.layers.0"
LINEARS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
           "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("lm_head", {"lm_head"}),
        ("lm_head.weight", {"lm_head"}),
        ("embed_tokens", {"model.language_model.embed_tokens"}),
        (BLOCK, {f"{BLOCK}.{name}" for name in LINEARS}),
        (f"{BLOCK}.", {f"{BLOCK}.{name}" for name in LINEARS}),
        (r"model\.language_model\.layers\.0\.mlp", {f"{BLOCK}.{name}" for name in LINEARS if "mlp" in name}),
        (r".*language_model.*layers\.0\..*(q|k)_proj", {f"{BLOCK}.self_attn.{name}_proj" for name in "qk"}),
        ("*.language_model.layers.0.self_attn.*", {f"{BLOCK}.{name}" for name in LINEARS if "attn" in name}),
        ("*language_model.layers.[0]", {f"{BLOCK}.{name}" for name in LINEARS}),
    ],
)
def test_a_pattern_takes_out_what_it_means(llava: nn.Module, pattern: str, expected: set[str]) -> None:
    assert left_out(llava, [pattern]) == expected


def test_a_name_reaches_all_that_is_below_it(llava: nn.Module) -> None:
    with pytest.raises(ValueError, match="no weight of the vision tower or the projector"):
        make_plan(llava, QAIGConfig(vision_bits=4, modules_to_not_convert=["vision_tower", "multi_modal_projector"]))
    found = left_out(llava, ["vision_tower"])
    assert found
    assert all(path.startswith("model.vision_tower.") for path in found)


@pytest.mark.parametrize(
    "pattern", ["q_proj", "proj", "model.vision_tower", r".*\.layers\.1", "attn.q_proj", "lm_head"]
)
def test_what_transformers_leaves_out_is_left_out(llava: nn.Module, pattern: str) -> None:
    linears = [path for path, module in llava.named_modules() if isinstance(module, nn.Linear)]
    theirs = {path for path in linears if not should_convert_module(path, [pattern])}
    assert theirs
    assert theirs <= ModelNames(llava, {}).matching(pattern)


@pytest.mark.parametrize("patterns", [["lm_head"], ["vision_tower"], [BLOCK], ["norm"], [f"{BLOCK}.input_layernorm"],
                                      ["position_embedding.weight"], ["self_attn"]])  # fmt: skip
def test_a_name_that_exists_is_no_error(llava: nn.Module, patterns: list[str]) -> None:
    _, coverage = make_plan(llava, QAIGConfig(modules_to_not_convert=patterns))
    coverage.check_minimum(1.0)  # what the user listed is not missing


def test_weights_that_nobody_listed_still_count() -> None:
    model, _ = build("qwen3_vl_moe")
    for block in model.get_decoder().layers:
        block.mlp.experts.register_parameter("other", nn.Parameter(torch.zeros(4, 64, 64)))
    _, coverage = make_plan(model, QAIGConfig(modules_to_not_convert=["q_proj"]))
    with pytest.raises(ValueError, match=r"(?s)min_coverage.*experts"):
        coverage.check_minimum(0.9)


@pytest.mark.parametrize(
    ("pattern", "nearest"),
    [
        ("lm_hed", "'lm_head'"),
        ("*.q_prj", "'q_proj'"),
        ("vision_towr", "'vision_tower'"),
        ("model.languge_model.layers.0", "'model.language_model.layers.0'"),
        ("model.language_model.layers.0.self_attn.q_prj", "'model.language_model.layers.0.self_attn.q_proj'"),
    ],
)
@pytest.mark.parametrize("argument", ["modules_to_not_convert", "overrides"])
def test_a_name_that_does_not_exist_names_the_nearest(
    llava: nn.Module, argument: str, pattern: str, nearest: str
) -> None:
    given = [pattern] if argument == "modules_to_not_convert" else {pattern: 4}
    with pytest.raises(ValueError, match=rf"(?s)`{argument}` .*{pattern.lstrip('*')}.*Did you mean {nearest}"):
        make_plan(llava, QAIGConfig(**{argument: given}))


def test_a_mark_of_regular_expressions_is_to_be_left_out(llava: nn.Module) -> None:
    with pytest.raises(ValueError, match="Leave out 're:'"):
        make_plan(llava, QAIGConfig(modules_to_not_convert=["re:.*mlp.*"]))


@pytest.mark.parametrize("pattern", ["[", "(", "layers.10", "zzz*"])
def test_what_means_nothing_is_an_error_that_names_it(llava: nn.Module, pattern: str) -> None:
    with pytest.raises(ValueError, match="matches no module"):
        make_plan(llava, QAIGConfig(modules_to_not_convert=[pattern]))


def test_the_number_of_a_layer_is_not_the_end_of_another() -> None:
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Sequential(nn.Linear(64, 64, False), nn.Linear(64, 64, False)) for _ in range(12)])
    names = ModelNames(model, {})
    assert names.matching("layers.1") == {"layers.1", "layers.1.0", "layers.1.1"}
    assert "layers.10.0" not in names.matching("layers.1")
    assert "layers.10.1" not in names.matching("layers.0")


def test_a_name_that_is_only_the_end_of_others_says_what_it_reaches(
    llava: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    for whole in ("down_proj", "model.language_model.layers.0", r".*up_proj", "*.up_proj", "lm_head"):
        make_plan(llava, QAIGConfig(modules_to_not_convert=[whole]))
    assert "whose names end so" not in caplog.text
    make_plan(llava, QAIGConfig(overrides={"proj": 8}))
    said = re.search(r"`overrides` names 'proj', and reaches (\d+) modules whose names end so: (.*)\.", caplog.text)
    assert said is not None
    assert int(said[1]) == sum(path.endswith("proj") for path, _ in llava.named_modules())
    assert "2 x down_proj" in said[2]


def test_overrides_mean_the_same_names_and_the_last_wins(llava: nn.Module) -> None:
    plan, _ = make_plan(llava, QAIGConfig(bits=3, overrides={BLOCK: 8, "*.layers.0.*.q_proj": 5, "v_proj": 6}))
    assert plan[f"{BLOCK}.mlp.up_proj"].bits == 8
    assert plan[f"{BLOCK}.self_attn.q_proj"].bits == 5
    assert plan[f"{BLOCK}.self_attn.v_proj"].bits == 6
    assert plan["model.language_model.layers.1.mlp.up_proj"].bits == 3


def test_an_override_of_what_is_not_packed_says_how_to_pack_it(llava: nn.Module) -> None:
    for name in ("lm_head", "vision_tower", "norm"):
        with pytest.raises(ValueError, match=rf"overrides\['{name}'\] reaches no weight.*`lm_head_bits`"):
            make_plan(llava, QAIGConfig(overrides={name: 8}))
