"""Read models in the forms that users have: folders, single files, hub ids, LoRAs and textual inversions."""
