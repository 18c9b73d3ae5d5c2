"""What the backbones out of timm share: building a model by its name, and reading queries and keys off its modules.

timm is imported only when such a backbone is built: its first import takes seconds.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from afactl.errors import PresetError
from afactl.network.backbones.base import Backbone

if TYPE_CHECKING:
    from collections.abc import Sequence

# S is read off this many blocks at the end, as in the paper.
ATTENTION_BLOCKS = 2


class TimmBackbone(Backbone):
    """A backbone around a model of timm, which it holds as `body`; `fresh` names what else it has.

    Attributes:
        timm_name: of the model. timm_options: that it was made with beside random weights.
    """

    body: Any
    timm_name: str
    timm_options: dict[str, Any]

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__()
        self.timm_name, self.timm_options = name, options
        self.body = timm_model(name, **options)


def timm_family(name: str, others: Sequence[str] = ()) -> str:
    """The module of timm that a model comes from: `pvt_v2`, `vision_transformer`, `deit`, `eva`, `resnet`, ...

    Args:
        name: timm's own, with or without the tag of its weights (`pvt_v2_b1`, `vit_small_patch14_dinov2.lvd142m`).
        others: names that could have been meant as well.

    Raises:
        PresetError: timm knows no model of that name; offers the nearest.
    """
    import timm

    architecture = name.partition(".")[0]
    if architecture not in timm.list_models():
        close = difflib.get_close_matches(architecture, [*others, *timm.list_models()], n=1)
        hint = f'did you mean "{close[0]}"?' if close else "timm.list_models() shows what there is"
        raise PresetError(f'model.backbone: "{name}" is unknown; {hint}')
    return str(timm.model_entrypoint(architecture).__module__).rpartition(".")[2]


def timm_model(name: str, **options: Any) -> Any:
    """A model of timm with random weights; `Any`, since which parts it has depends on the name.

    Args:
        name: as in `timm_family`.
        options: passed on to `timm.create_model`.

    Raises:
        PresetError: timm knows no model of that name, or the model cannot take the options.
    """
    import timm

    timm_family(name)
    try:
        return timm.create_model(name, pretrained=False, **options)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise PresetError(f'model.backbone: timm\'s "{name}" cannot be used here ({error}); choose another') from error


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """B x N x (n d) -> B x n x N x d."""
    batch, count, width = tokens.shape
    return tokens.view(batch, count, heads, width // heads).transpose(1, 2)


def queries_and_keys(attention: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys of a ViT's attention module, as it computes them itself, before any rotary position.

    timm gives its attention maps by hooks alone. Its projections are called once more here instead, for two blocks
    of all: that costs some per cent of a pass, and is the same graph for autograd.

    Args:
        attention: timm's `Attention` or `EvaAttention`, with one `qkv` or with `q_proj` and `k_proj`.
        tokens: B x N x D, the module's input.

    Returns:
        Both B x n x N x d, neither scaled nor softmaxed.
    """
    if getattr(attention, "q_proj", None) is not None:
        queries, keys = attention.q_proj(tokens), attention.k_proj(tokens)
    else:
        weight, bias = attention.qkv.weight, attention.qkv.bias
        if bias is None and getattr(attention, "q_bias", None) is not None:
            bias = torch.cat([attention.q_bias, attention.k_bias])
        both = 2 * (len(weight) // 3)  # rows of the queries, then of the keys, then of the values
        queries, keys = F.linear(tokens, weight[:both], None if bias is None else bias[:both]).chunk(2, dim=-1)
    heads = attention.num_heads
    return attention.q_norm(split_heads(queries, heads)), attention.k_norm(split_heads(keys, heads))


def last_blocks(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Queries and keys of several blocks as one set of heads, the last block's heads last."""
    queries, keys = zip(*parts, strict=True)
    return torch.cat(queries, dim=1), torch.cat(keys, dim=1)
