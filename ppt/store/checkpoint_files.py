"""The names of the files in the folder of a trained stage."""

GENERATOR = "generator.safetensors"
OPTIMIZER = "optimizer.pt"
METADATA = "metadata.json"
MANIFEST = "manifest.json"
