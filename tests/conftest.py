"""Two test workers share the machine's cores: one thread each, in the commands they start as well."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
