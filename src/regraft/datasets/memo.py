"""What took seconds to work out of many files, kept as JSON for as long as the files, and the code that worked it out, stay as they are."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from regraft import files

log = logging.getLogger(__name__)


def remembered(place: Path, sources: Sequence[Path], code: str, work: Callable[[], tuple[Any, bool]]) -> Any:
    """What `work()` gives, or gave when sources and code were the same: JSON's types, and whether it is to be kept. `code`: its own file.

    A change is noticed by a file's path, size and mtime_ns. Where `place` can't be written, all works without it, slower.
    """
    stamps = [(str(path), status.st_size, status.st_mtime_ns) for path in sources if (status := path.stat())]
    key = hashlib.sha256(json.dumps([stamps, hashlib.sha256(Path(code).read_bytes()).hexdigest()]).encode()).hexdigest()
    try:
        kept = json.loads(place.read_bytes())
        if kept["key"] == key:
            return kept["found"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass  # none yet, or damaged: it is made anew
    found, keep = work()
    if keep:
        try:
            files.write_text(place, json.dumps({"key": key, "found": found}))
        except OSError as error:
            log.warning("%s can't be kept (%s): it is worked out each time; make its folder writable", place, error.strerror)
    return found
