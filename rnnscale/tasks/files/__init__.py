"""One's own data: readers of file formats, and tasks made of what they read."""
