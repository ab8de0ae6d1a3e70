"""Tables and pictures, made from records alone: no model is loaded and nothing is computed again."""
