"""Write a checkpoint as an ONNX file, and compare it with this program."""
