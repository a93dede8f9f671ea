"""Models know what text means: vectors from ONNX Runtime, and answers quoted from passages.

Nothing heavy is imported until a model is loaded: ONNX Runtime and the tokeniser take a quarter of a second, and a
proxy that has not needed its understudy yet must not pay for it.
"""
