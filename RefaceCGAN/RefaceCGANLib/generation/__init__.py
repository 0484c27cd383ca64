"""Generation: networks, sub-volumes and tissue that paint a face."""
