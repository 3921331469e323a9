"""Fine-tuning algorithms, one file each: equation, settings, state and info, pure loss, step."""
