"""The commands of `mcis`, one module each. `main` dispatches to them, `common` holds what they share."""
