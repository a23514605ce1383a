"""What the demo's models are made of: for each a configuration, and the code that Triton's python backend runs.

Nothing of dfagent imports the modules: they are copied into the model repository and run inside Triton.
"""
