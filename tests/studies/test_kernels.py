"""The training-time kernels compute what transformers' own experts and attention compute."""

import pytest
import torch
from torch import Tensor
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from studies.demo.build.kernels import KERNELS_NAME, register_kernels


def loss_and_gradients(implementations: tuple[str, str]) -> tuple[float, dict[str, Tensor]]:
    config = Qwen3MoeConfig(
        vocab_size=64,
        hidden_size=16,
        moe_intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=8,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(config)
    register_kernels()
    model.set_experts_implementation(implementations[0])
    model.set_attn_implementation(implementations[1])
    ids = torch.randint(0, 64, (3, 20))
    logits = model(ids, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach()), {n: p.grad for n, p in model.named_parameters()}


@pytest.mark.parametrize(
    "implementations",
    [(KERNELS_NAME, "eager"), ("eager", KERNELS_NAME)],
    ids=["experts", "attention"],
)
def test_loss_and_every_gradient_equal_the_plain_ones(implementations: tuple[str, str]) -> None:
    loss, gradients = loss_and_gradients(implementations)
    plain_loss, plain_gradients = loss_and_gradients(("eager", "eager"))
    assert loss == pytest.approx(plain_loss, rel=1e-5)
    for name, gradient in plain_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-6, msg=name)
