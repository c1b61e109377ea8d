"""The demonstration's scenes, and a judge that reads them from pixels without learning."""
