"""How good a model is: figures of its predictions."""
