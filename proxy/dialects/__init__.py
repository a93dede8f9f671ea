"""What each API's bytes mean: one file per dialect, all behind the one interface in `base`."""
