"""Image and video files, face detection, cropping, tracking and drawing. No JAX here."""
