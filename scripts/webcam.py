"""Tells age and gender of the faces of a camera, a video or a stream; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from agenet.programs.webcam import main

if __name__ == "__main__":
    main()
