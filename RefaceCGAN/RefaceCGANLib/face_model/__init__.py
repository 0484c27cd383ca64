"""The face model: the template and the shapes of faces around it."""
