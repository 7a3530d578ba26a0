"""Sample calls of the ops that have so many of them that they would fill the op's own file."""
