"""Small pretrained models that ship with the package, one folder a task."""
