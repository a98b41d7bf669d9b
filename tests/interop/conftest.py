"""Programs that casstore had no part in read what it wrote.

They need their own tool chains, which not every machine has.  They run where ``CASSTORE_INTEROP=1`` says that this one does;
then a missing tool is a failure.  Elsewhere they are not collected at all.
"""

from __future__ import annotations

import os

collect_ignore = [] if os.environ.get("CASSTORE_INTEROP") == "1" else ["test_go_note.py", "test_git_ignore.py"]
