# SPDX-License-Identifier: Apache-2.0
"""The README.md of a pruned checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stun_ext.report import PruneReport

_CARD = """\
# {title}

`{base}` pruned by structured-then-unstructured pruning ([STUN](https://arxiv.org/abs/2409.06211)) with stun_ext
{version}. No training.

| | |
|---|---|
{facts}

{loading}

`stun_report.json` lists the experts kept in every layer, the sparsities reached and every setting.

```yaml
{recipe}```
"""

_STOCK = """\
```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{path}")
```"""

_RAGGED = """\
The layers keep different numbers of experts, which the stock classes cannot build:

```python
import stun_ext

model = stun_ext.from_pretrained("{path}")
```"""


def model_card(report: PruneReport, *, base_model: str, name: str) -> str:
    """Markdown with the hub's metadata block.

    Args:
        report: what was done.
        base_model: hub id or path of the dense model; of a path the card names the last part.
        name: name of the pruned checkpoint, used as its title and in the loading example.
    """
    import yaml
    from huggingface_hub import ModelCardData

    ragged = len({len(layer.kept) for layer in report.layers if layer.num_experts_before}) > 1
    is_hub_id = base_model.count("/") <= 1 and not os.path.exists(base_model)
    metadata: dict[str, Any] = {"tags": ["moe", "pruning", "stun", "sparse"], "library_name": "transformers"}
    if is_hub_id:  # a path on one machine means nothing to others
        metadata["base_model"] = base_model
    facts = [
        ("weights removed or zero, of those in scope", f"{report.sparsity:.2%}"),
        ("scope", ", ".join(report.recipe.scope)),
        ("experts kept", _experts(report)),
        ("zeros among the weights that stayed", f"{report.weight_sparsity:.2%}"),
        ("parameters", f"{report.model_parameters_before:,} before, {report.model_parameters_after:,} after"),
        ("calibration", report.calibration),
    ]
    body = _CARD.format(
        title=name,
        base=base_model if is_hub_id else Path(base_model).resolve().name,
        version=report.versions.get("stun_ext", ""),
        facts="\n".join(f"| {label} | {value} |" for label, value in facts),
        loading=(_RAGGED if ragged else _STOCK).format(path=name),
        recipe=yaml.safe_dump(report.recipe.to_dict(), sort_keys=False),
    )
    return f"---\n{ModelCardData(**metadata).to_yaml()}\n---\n\n{body}"


def _experts(report: PruneReport) -> str:
    layers = [layer for layer in report.layers if layer.num_experts_before]
    if not layers:
        return "no routed experts"
    counts = sorted({len(layer.kept) for layer in layers})
    kept = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{kept} of {layers[0].num_experts_before} per layer"
