"""Models on disk and in memory: their files, their shape, the modules that run, and their replay block by block."""
