"""The paper's mathematics on plain tensors and numbers; nothing here knows a preset."""
