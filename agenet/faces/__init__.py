"""Faces in pictures and videos: found, cut out, followed, drawn. No JAX here."""
