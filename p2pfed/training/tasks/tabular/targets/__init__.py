"""What a table task can tell, one kind a module."""
