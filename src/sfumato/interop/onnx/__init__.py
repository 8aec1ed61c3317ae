"""Models as ONNX graphs: what is traced, how it is written and compared, and the description beside the graphs."""
