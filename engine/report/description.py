"""What a pipeline shows of itself in an interpreter and in a notebook."""

from __future__ import annotations

from collections.abc import Iterator

from ..backends.components import Components
from ..plan.plan import Plan


class Described:
    """A pipeline with a readable `repr`, and HTML for notebooks."""

    plan: Plan
    _components: Components

    def __repr__(self) -> str:
        rows = list(self._rows())
        width = max(len(name) for name, _, _ in rows)
        lines = [f"  {name:<{width}}  {backend} {precision}".rstrip() for name, backend, precision in rows]
        return "\n".join([f"Pipeline({self._title()})", *lines])

    def _title(self) -> str:
        plan, profile = self.plan, self.plan.profile
        sizes = f"{profile.width.min} to {profile.width.max} x {profile.height.min} to {profile.height.max} pixels"
        return f"{plan.model!r}, {plan.family}, {sizes}, batches of up to {profile.batch.max}"

    def _rows(self) -> Iterator[tuple[str, str, str]]:
        opened = {each.component.name: each.runner for each in self._components.opened}
        for name in self.plan.components:
            runner = opened.get(name)
            yield (name, "opens at its first use", "") if runner is None else (name, runner.backend, runner.precision)

    def _repr_html_(self) -> str:
        from .notebook import paragraph_as_html, table_as_html

        return paragraph_as_html(self._title()) + table_as_html(("component", "backend", "precision"), self._rows())
