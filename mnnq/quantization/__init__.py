"""Choosing what becomes of each layer's weights. The arithmetic is the native quantizers' business."""
