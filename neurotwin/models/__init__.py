"""Models: the stages of a twin, and the twin that composes them."""
