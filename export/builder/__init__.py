"""Build plans: `build` writes a plan folder, `prepare` makes a plan that lives in the store."""
