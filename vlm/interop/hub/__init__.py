"""Downloads from the Hugging Face hub and from the registry of OpenCLIP."""
