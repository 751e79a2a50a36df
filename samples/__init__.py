"""The sample model: a tiny LLaVA trained on drawn pictures, and what draws, trains and measures it."""
