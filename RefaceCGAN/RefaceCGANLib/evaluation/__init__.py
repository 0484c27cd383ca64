"""The evaluation: the paper's comparative study of de-identification tools as one command."""
