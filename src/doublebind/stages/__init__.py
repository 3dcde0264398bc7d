"""Does the method's work, one folder per stage; stages never import each other."""
