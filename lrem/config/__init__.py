"""Settings: one typed tree for every stage, read from YAML and dotted overrides."""
