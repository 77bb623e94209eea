"""What the installed transformers does."""

from __future__ import annotations

import transformers
from packaging.version import Version

#: From this version on a forward of Gemma 4 hands on how many frames each video has, and `generate` runs the layers that read
#: earlier keys on the last row alone.
WHOLE_GEMMA4 = Version(transformers.__version__) >= Version("5.23")
