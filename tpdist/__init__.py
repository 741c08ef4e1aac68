"""tpdist."""
