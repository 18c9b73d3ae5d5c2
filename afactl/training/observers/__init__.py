"""What watches a training: the metrics file, the live view, TensorBoard, MLflow and W&B, each on its own."""
