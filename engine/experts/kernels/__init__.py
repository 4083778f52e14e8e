"""Products of activations with one expert's matrices, where they lie in a slot.

A packed kernel multiplies codes as they lie; where none fits, a matrix is dequantized and
multiplied by GEMM, which is also the oracle. The kernels stand in `registry`, each behind a shape
check, an availability check and a numeric self-test in a child process (`probe`).
"""
