"""From a teacher's reasonings to triplets: keyword rules and the difference set. Pure functions."""
