"""No secret in what identifies a case: results and baselines are filed under it, and read by everybody."""

from __future__ import annotations

from collections.abc import Callable

from pytest_inferperf.errors import MarkError
from pytest_inferperf.model.case import Case

__all__ = ["refuse_secrets"]


def refuse_secrets(case: Case, find: Callable[[str], str]) -> None:
    """Refuse a case with a secret, as `find` says, in any of its texts. Raises `MarkError`, which does not show it.

    Hidden, it would make another case of it, on each machine another one.
    """
    for part in filter(None, case.to_json().values()):
        values = {
            **part,
            **{f"engine option {name!r}": value for name, value in part.get("engine_options", {}).items()},
        }
        for name, value in values.items():
            why = find(value) if isinstance(value, str) else ""
            if why:
                raise MarkError(
                    f"inferperf: {name} {why}; marks are written into results and baselines. Let the engine or the server "
                    "read it from its environment, which is that of pytest; an endpoint's key is named by api_key_env."
                )
