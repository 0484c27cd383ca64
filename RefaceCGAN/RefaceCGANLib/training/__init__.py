"""Training: the template and its shape model, the anatomy network, and the generator."""
