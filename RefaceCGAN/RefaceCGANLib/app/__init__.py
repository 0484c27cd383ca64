"""What a user starts: the command line, the worker behind the Slicer panel, and the files both write."""
