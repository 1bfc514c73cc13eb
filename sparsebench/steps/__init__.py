"""The steps that change a model, one package or module each, and the calibration text that calibrated steps read."""
