"""From a model's files to artefacts: sources, tracing to ONNX, checking, the store.

`prepare` is what `calotype.load` calls for a model that is no plan yet; `save_plan` leaves a plan in a folder.
Heavy libraries are imported when something has to be made, not before.
"""

from calotype.export.planning import prepare, save_plan

__all__ = ["prepare", "save_plan"]
