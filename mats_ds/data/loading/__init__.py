"""ClipSpecs -> batches on the device."""
