"""The weights of experts in a plan."""

import pytest
import transformers as hf
from torch import nn

from tests.experts import CONFIGS, TEXT, build, stack_of
from transformers_qaig import QAIGConfig
from transformers_qaig.formats.scheme import plan_to_dict
from transformers_qaig.nn.experts_layout import find_experts
from transformers_qaig.plan.build import make_plan
from transformers_qaig.plan.experts import compact, expand
from transformers_qaig.plan.patterns import ModelNames


@pytest.fixture(scope="module")
def mixtral() -> nn.Module:
    return build("mixtral")


STACK = "model.layers.0.mlp.experts"


@pytest.mark.parametrize("name", CONFIGS)
def test_every_expert_is_covered(name: str) -> None:
    model = build(name)
    plan, coverage = make_plan(model, QAIGConfig(group_size=32))
    path, layout = stack_of(model)
    wanted = {f"{path}.{e}.{name}" for e in range(layout.num_experts) for name in layout.projections}
    assert wanted <= plan.keys()
    assert not any("Experts" in reason for path, (_, reason) in coverage.skipped.items() if "bias" not in path)


def test_sizes_are_those_of_the_stored_tensors(mixtral: nn.Module) -> None:
    _, coverage = make_plan(mixtral, QAIGConfig(bits=4, group_size=32))
    layout = find_experts(mixtral)[STACK]
    experts = 4 * 3 * layout.hidden_size * layout.intermediate_size
    attention = sum(p.numel() for p in mixtral.model.layers[0].self_attn.parameters())
    assert coverage.packed == 2 * (experts + attention)
    assert coverage.bits_per_weight == pytest.approx(4 + (32 + 4) / 32)
    blocks = coverage.parts["language model's blocks"]
    assert blocks.saved < 0.05 * blocks.full


@pytest.mark.parametrize(
    "pattern", ["experts.{}", "*.experts.{}.down_proj", "layers.1.mlp.experts.{}", "model.layers.(0|1).mlp.experts.{}"]
)
def test_experts_named_together_are_those_named_one_by_one(mixtral: nn.Module, pattern: str) -> None:
    names = ModelNames(mixtral, find_experts(mixtral))
    assert names.matching(pattern.format("0-1,3")) == set().union(
        *(names.matching(pattern.format(e)) for e in (0, 1, 3))
    )
    assert names.matching(pattern.format("0-1,3"))


@pytest.mark.parametrize("pattern", ["experts.3-1", ".*experts.3-1", "experts.0-9"])
def test_experts_that_do_not_exist_are_none(mixtral: nn.Module, pattern: str) -> None:
    assert ModelNames(mixtral, find_experts(mixtral)).matching(pattern) == set()


def test_experts_may_differ_in_width(mixtral: nn.Module) -> None:
    plan, _ = make_plan(mixtral, QAIGConfig(bits=3, overrides={f"{STACK}.2": 8, "*.experts.*.down_proj": 4}))
    bits = [plan[f"{STACK}.{e}.{name}"].bits for e in (0, 2) for name in ("gate_proj", "down_proj")]
    assert bits == [3, 4, 8, 4]


@pytest.mark.parametrize(
    ("pattern", "experts", "projections"),
    [
        ("experts.3", (3,), 3),
        ("experts.0-1,3", (0, 1, 3), 3),
        (f"{STACK}.0-2.down_proj", (0, 1, 2), 1),
        ("*.experts.1-2.*", (1, 2), 3),
        ("gate_up_proj", (0, 1, 2, 3), 2),
        ("experts.down_proj", (0, 1, 2, 3), 1),
    ],
)
def test_overrides_name_experts_as_plans_and_parameters_do(
    mixtral: nn.Module, pattern: str, experts: tuple[int, ...], projections: int
) -> None:
    plan, _ = make_plan(mixtral, QAIGConfig(bits=3, overrides={pattern: 8}))
    wide = [path for path, scheme in plan.items() if scheme.bits == 8 and path.startswith(STACK)]
    assert {int(path.split(".")[-2]) for path in wide} == set(experts)
    assert len(wide) == len(experts) * projections


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("experts.0-9", "Experts are numbered from 0 to 3"),
        ("experts.7.down_proj", "Experts are numbered from 0 to 3"),
        ("1-99999999", "matches no module"),
        ("router", "Routers always stay"),
        ("mlp.gate", "layers.0.mlp.gate is a parameter of MixtralTopKRouter"),
    ],
)
def test_an_override_that_reaches_no_expert_says_why(mixtral: nn.Module, pattern: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make_plan(mixtral, QAIGConfig(bits=3, overrides={pattern: 8}))


@pytest.mark.parametrize(
    "pattern", ["gate_up_proj", "experts.0-2", f"{STACK}.3", f"{STACK}.3.up_proj", "*.experts.*.gate_proj"]
)
def test_a_stack_is_packed_whole_or_not_at_all(mixtral: nn.Module, pattern: str) -> None:
    with pytest.raises(ValueError, match=r"experts of a stack are packed all together"):
        make_plan(mixtral, QAIGConfig(modules_to_not_convert=[pattern]))


@pytest.mark.parametrize("pattern", ["experts", STACK, "mlp"])
def test_whole_stacks_can_be_left_out(mixtral: nn.Module, pattern: str) -> None:
    plan, _ = make_plan(mixtral, QAIGConfig(modules_to_not_convert=[pattern]))
    assert f"{STACK}.0.up_proj" not in plan


@pytest.mark.parametrize("change", [{"group_size": 64}, {"sym": True}])
def test_experts_of_a_stack_share_group_size_and_symmetry(mixtral: nn.Module, change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="may differ in `bits` only"):
        make_plan(mixtral, QAIGConfig(group_size=32, overrides={f"{STACK}.1": change}))


def test_a_short_plan_names_experts_of_one_width_together(mixtral: nn.Module) -> None:
    plan, _ = make_plan(mixtral, QAIGConfig(bits=3, overrides={f"{STACK}.2.up_proj": 8}))
    short = compact(plan, find_experts(mixtral))
    assert f"{STACK}.*.down_proj" in short
    assert short[f"{STACK}.2.up_proj"].bits == 8
    assert short[f"{STACK}.0-1,3.up_proj"].bits == 3
    assert expand(short, find_experts(mixtral)) == plan


@pytest.mark.parametrize("experts", ["0-4", "2-1", "0,9", "1-99999999999"])
def test_a_plan_of_experts_that_there_are_not_is_an_error(mixtral: nn.Module, experts: str) -> None:
    plan, _ = make_plan(mixtral, QAIGConfig(bits=3))
    wrong = {
        **plan_to_dict(compact(plan, find_experts(mixtral))),
        f"{STACK}.{experts}.up_proj": {"bits": 3, "group_size": 128, "sym": False},
    }
    with pytest.raises(ValueError, match="this model has no such weight to pack"):
        make_plan(mixtral, QAIGConfig(plan=wrong))


@pytest.mark.parametrize("experts", ["1", "0-1", "01", "2,2"])
def test_a_plan_that_names_an_expert_twice_is_an_error(mixtral: nn.Module, experts: str) -> None:
    plan, _ = make_plan(mixtral, QAIGConfig(bits=3))
    twice = {
        **plan_to_dict(compact(plan, find_experts(mixtral))),
        f"{STACK}.{experts}.up_proj": {"bits": 8, "group_size": 128, "sym": False},
    }
    with pytest.raises(ValueError, match=rf"`plan` names '{STACK}\.[0-2]\.up_proj' twice"):
        make_plan(mixtral, QAIGConfig(plan=twice))


def test_a_given_plan_may_be_short(mixtral: nn.Module) -> None:
    plan, _ = make_plan(mixtral, QAIGConfig(bits=3))
    again, _ = make_plan(mixtral, QAIGConfig(plan=plan_to_dict(compact(plan, find_experts(mixtral)))))
    assert again == plan


def test_a_plan_cannot_rotate_experts(mixtral: nn.Module) -> None:
    plan, _ = make_plan(mixtral, QAIGConfig(bits=3))
    rotated = {**plan_to_dict(plan)}
    rotated[f"{STACK}.1.up_proj"] = {**rotated[f"{STACK}.1.up_proj"], "rotation": {"block": 16, "seed": 0}}
    with pytest.raises(ValueError, match="experts are not rotated"):
        make_plan(mixtral, QAIGConfig(plan=rotated))


def test_routers_that_are_linears_are_never_packed() -> None:
    config = hf.Gemma4TextConfig(
        **{**TEXT, "head_dim": 16, "global_head_dim": 16}, enable_moe_block=True, num_experts=64, top_k_experts=2,
        moe_intermediate_size=32, hidden_size_per_layer_input=0, vocab_size_per_layer_input=32,
    )  # fmt: skip
    model = hf.AutoModelForCausalLM.from_config(config)
    routers = [path for path, module in model.named_modules() if path.endswith("router.proj")]
    assert type(model.get_submodule(routers[0])) is nn.Linear
    plan, coverage = make_plan(model, QAIGConfig(group_size=32))
    assert not set(routers) & set(plan)
    assert coverage.skipped[routers[0]][1] == "a router: it chooses the experts"
    assert any("experts" in path for path in plan)
