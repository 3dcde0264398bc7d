"""What users write and what stages hand on."""
