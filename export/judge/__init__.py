"""The demonstration's scenes, and a rule-based judge that recognizes them from pixels."""
