"""Image and video files, face detection, cropping, tracking and drawing. No JAX here."""

# Before PyAV, whoever imports what: OpenCV's windows hang where PyAV came first.
import cv2  # noqa: F401
