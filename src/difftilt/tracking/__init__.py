"""Run folders and checkpoints: plain files that survive a crash."""
