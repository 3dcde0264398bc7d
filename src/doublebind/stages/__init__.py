"""The method, in order; stages never import each other."""
