"""Where each model family keeps its layers, in the words of checkpoint keys."""

from __future__ import annotations

from dataclasses import dataclass

from server.errors import UnsupportedConfig
from server.primitives import SiteKind


@dataclass(frozen=True, slots=True)
class Family:
    """Key paths of one family. `sites` take the layer number; `prefix` is in front where a model had a head."""

    prefix: str
    model_class: str
    static_class: str  # what names of classic classes with one fixed head start with
    sites: tuple[tuple[SiteKind, str], ...]

    def site(self, layer: int, kind: SiteKind) -> str:
        """Give the path of a site's adapters, without the adapter's name."""
        return dict(self.sites)[kind].format(layer)


_BERT_SITES = (
    (SiteKind.ATTENTION, "encoder.layer.{}.attention.output.adapters"),
    (SiteKind.OUTPUT, "encoder.layer.{}.output.adapters"),
)

FAMILIES = {
    "bert": Family("bert.", "BertAdapterModel", "BertFor", _BERT_SITES),
    "roberta": Family("roberta.", "RobertaAdapterModel", "RobertaFor", _BERT_SITES),
    "xlm-roberta": Family("roberta.", "XLMRobertaAdapterModel", "XLMRobertaFor", _BERT_SITES),
}


def family_of(model_type: str) -> Family:
    """Raises UnsupportedConfig for families whose layers are not known here."""
    try:
        return FAMILIES[model_type]
    except KeyError:
        known = ", ".join(FAMILIES)
        raise UnsupportedConfig(
            f"model_type {model_type!r} is not supported; supported are {known}",
            field="model_type",
            value=model_type,
        ) from None
