"""ragstone: documents in as rows, ranked passages out of one SQL function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

INSTALL_DIR = Path(__file__).resolve().parents[1]
"""The versioned folder this package was installed into, with its libraries and models."""

__version__ = INSTALL_DIR.name


def require(version: str, plpy: Any) -> None:
    """Refuse to serve SQL functions of another version than this package.

    A session that was open during an upgrade has the old package in memory and the new functions
    in the catalog. Raises SQLSTATE 55000.
    """
    if version != __version__:
        plpy.error(
            f"this session has ragstone {__version__} in memory, the database is at {version}",
            sqlstate="55000",
            hint="Reconnect: a session loads the package once.",
        )
