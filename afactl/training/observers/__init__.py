"""What watches a training: the metrics file, the live view and TensorBoard, each on its own."""
