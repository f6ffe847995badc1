"""What is to be learned: task distributions and their environments."""
