"""The rollout pool: inference engines in Ray actors, and their weight sync."""
