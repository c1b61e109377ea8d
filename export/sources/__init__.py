"""Models as users have them: folders, single files, hub ids, LoRAs, and textual inversions."""
