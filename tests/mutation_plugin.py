"""A pytest plugin that turns lines of the package around, in the run that loads it: `-p mutation_plugin`.

`INFERPERF_MUTATIONS` holds JSON, a list of: the module, the text of its source, and what stands there instead.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

_MUTATIONS = json.loads(os.environ["INFERPERF_MUTATIONS"])
_MODULES = {module for module, _, _ in _MUTATIONS}


class _Loader(SourceFileLoader):
    def get_data(self, path: str) -> bytes:
        data = super().get_data(path)
        if not path.endswith(".py"):
            # Compiled code would be that of the unchanged source.
            raise OSError(path)
        text = data.decode()
        for module, old, new in _MUTATIONS:
            if module == self.name:
                assert text.count(old) == 1, f"{module}: {old!r} is not there once"
                text = text.replace(old, new)
        return text.encode()

    def set_data(self, path: str, data: Any, *, _mode: int = 0o666) -> None:
        """Leave no compiled mutant behind."""


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _MODULES:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        assert spec is not None
        assert spec.origin is not None
        spec.loader = _Loader(fullname, spec.origin)
        return spec


assert not _MODULES & sys.modules.keys(), "a module was imported before it could be changed"
sys.meta_path.insert(0, _Finder())
