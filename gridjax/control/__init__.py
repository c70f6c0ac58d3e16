"""Controls of devices on a feeder: pure maps from what they measure to what they do."""
