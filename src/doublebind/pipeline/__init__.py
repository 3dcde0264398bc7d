"""One file per verb: the method on one screen."""
