# SPDX-License-Identifier: Apache-2.0
"""Models that must not be pruned in memory, each refused with what to do instead."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from .schema import named_tensors

# Packages whose modules hold packed or quantised weights.
_QUANTISERS = (
    "bitsandbytes",
    "auto_gptq",
    "gptqmodel",
    "awq",
    "autoawq",
    "hqq",
    "aqlm",
    "torchao",
    "optimum",
    "eetq",
)


def check_prunable(model: nn.Module) -> None:
    """Raises ValueError, with advice, for a model whose weights cannot be cut or zeroed in place.

    Refused are wrapped models (PEFT, torch.compile, DataParallel), adapters inside the model, quantised
    weights, packed experts, weights that are not in memory (meta device, offloaded by accelerate) and weights
    sharded over processes.

    Args:
        model: The model about to be pruned.
    """

    def fail(text: str) -> None:
        raise ValueError(f"[check_prunable] {text}")

    modules = list(model.named_modules())
    packages = {type(module).__module__.split(".")[0]: name for name, module in modules}
    if "peft" in packages or getattr(model, "_hf_peft_config_loaded", False):
        fail(
            "the model has PEFT adapters: merge them first (model = model.merge_and_unload()), or remove them"
        )
    if not isinstance(model, PreTrainedModel):
        fail(
            f"the model is a {type(model).__name__}, not a transformers.PreTrainedModel: unwrap it first "
            "(for torch.compile or DataParallel, prune the model that was wrapped)"
        )
        return
    if any(hasattr(module, "_stun_ext_experts") for _, module in modules):
        fail("the experts are packed: prune the dense checkpoint (stun-ext unpack PACKED OUT gives it back)")
    quantiser = next((package for package in _QUANTISERS if package in packages), None)
    if quantiser is not None or getattr(model.config, "quantization_config", None) is not None:
        fail(
            "the model is quantised"
            + (f" ({packages[quantiser]} is a {quantiser} module)" if quantiser else "")
            + ": load the original weights in bfloat16 or float16, prune those, and quantise the result; whole experts "
            "can be removed from its files by stun_ext.prune_checkpoint (stun-ext prune --streaming)"
        )
    for name, tensor in named_tensors(model):
        if tensor.is_meta:
            fail(
                f"{name} is not in memory (offloaded, or on the meta device): load the model with "
                'device_map="cpu", or onto devices that hold all of it'
            )
        if type(tensor).__name__ == "DTensor" or hasattr(tensor, "_local_tensor"):
            fail(f"{name} is sharded over processes: load the model without tensor parallelism or FSDP")
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point() or parameter.element_size() < 2:
            fail(
                f"{name} is stored as {parameter.dtype}: load the original weights in bfloat16 or float16, "
                "prune those, and quantise the result"
            )
