"""Studies: grids over layer, timestep, strength and more, run over many images into a store that resumes."""
