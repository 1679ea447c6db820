"""Settings of the generated shop."""

from pydantic import Field, model_validator

from lrem.config.section import Section


class WorldConfig(Section):
    """The generated shop of the demo."""

    products: int = Field(6000, ge=200)
    """Items in the catalogue."""
    train_queries: int = Field(7000, ge=50)
    """Training queries."""
    test_queries: int = Field(600, ge=25)
    """Test queries, whose combinations of needs never occur in training."""
    bridged_train: int = Field(0, ge=0)
    """Additional training queries that need two facts (Oslo is cold; cold calls for a coat)."""
    bridged_test: int = Field(0, ge=0)
    """Additional test queries that need two facts, in combinations that never occur in training."""
    unexplained: float = Field(0.0, ge=0, lt=1)
    """Share of the facts that the teacher does not know."""

    @model_validator(mode="after")
    def _check_bridged(self) -> "WorldConfig":
        if self.bridged_test and not self.bridged_train:
            raise ValueError("bridged_test asks for facts that bridged_train teaches: set bridged_train too")
        return self
