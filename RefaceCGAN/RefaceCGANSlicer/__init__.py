"""What the Slicer module is made of: the scene, the views, the panel and the engine's process. Needs Slicer;
nothing runs at import."""
