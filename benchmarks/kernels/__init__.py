"""The block moves against upstream's copies, the driver's batched copy and a plain copy."""
