"""What all commands share: options, acts here or at an operator API, output, lists."""
