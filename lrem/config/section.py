"""The base class of all settings."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """One section of the configuration: frozen, and an unknown key is an error.

    The string under a field documents it, here and in docs/configuration.md.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), use_attribute_docstrings=True)
