"""LREM, the science: formats, model, losses, rewards, index, metrics. Plain PyTorch, Faiss and NumPy, without Ray.

The names below are the public API. They are imported on first use, because `import lrem` alone must stay cheap: light
processes read `lrem.__version__`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrem.config import Config, load_config
    from lrem.errors import ConfigError, DataError, IndexingError, LremError
    from lrem.index import Collection
    from lrem.modeling.model import ReasoningEmbedder
    from lrem.modeling.template import Template

__version__ = "0.1.0"

_HOMES = {
    "Collection": "lrem.index",
    "Config": "lrem.config",
    "ConfigError": "lrem.errors",
    "DataError": "lrem.errors",
    "IndexingError": "lrem.errors",
    "LremError": "lrem.errors",
    "ReasoningEmbedder": "lrem.modeling.model",
    "Template": "lrem.modeling.template",
    "load_config": "lrem.config",
}

__all__ = [
    "Collection",
    "Config",
    "ConfigError",
    "DataError",
    "IndexingError",
    "LremError",
    "ReasoningEmbedder",
    "Template",
    "__version__",
    "load_config",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lrem' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
