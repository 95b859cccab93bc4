"""Settings and pipelines as a worker keeps them for a batch."""

from __future__ import annotations

from dataclasses import dataclass, field

from ragstone.db.catalog import Catalog
from ragstone.db.rows import Pipeline
from ragstone.extract.options import Limits
from ragstone.reading.read import limits


@dataclass
class Configuration:
    """Asked of the database once, until `forget`."""

    catalog: Catalog
    _pipelines: dict[int, Pipeline] = field(default_factory=dict)
    _settings: dict[int | None, dict[str, str | None]] = field(default_factory=dict)

    def forget(self) -> None:
        """Have everything read again when it is next asked for."""
        self._settings.clear()
        self._pipelines.clear()

    def setting(self, name: str, tenant_id: int | None = None) -> str | None:
        """A setting as it is for a tenant, or where that is None for everybody."""
        return self._settings_of(tenant_id)[name]

    def integer(self, name: str, tenant_id: int | None = None) -> int:
        return int(self.setting(name, tenant_id) or 0)

    def limits(self, tenant_id: int | None) -> Limits:
        """What a document of the tenant may cost."""
        return limits(self._settings_of(tenant_id))

    def pipeline(self, pipeline_id: int) -> Pipeline:
        if pipeline_id not in self._pipelines:
            self._pipelines[pipeline_id] = self.catalog.pipeline(pipeline_id)
        return self._pipelines[pipeline_id]

    def _settings_of(self, tenant_id: int | None) -> dict[str, str | None]:
        if tenant_id not in self._settings:
            self._settings[tenant_id] = self.catalog.settings(tenant_id)
        return self._settings[tenant_id]
