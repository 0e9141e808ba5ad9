"""The allowed values of settings that are a word, as Literal types."""

from typing import Literal, get_args

Split = Literal["train", "test"]
BadImages = Literal["refuse", "skip"]
"""What to do with an image that cannot be used."""

Method = Literal["ig", "smoothgrad-ig", "input-x-gradient"]
Engine = Literal["captum", "torch", "openvino", "openvino-bf16"]
"""What computes maps."""
Forwards = Literal["torch", "openvino", "openvino-bf16"]
"""What computes logits of crops."""

Arm = Literal["student", "kd", "ig", "kd+ig", "at", "kd+at", "ig+at", "kd+ig+at"]
"""What a student learns from besides the labels: logits (kd), overlaid maps (ig), attention (at)."""
ARMS: tuple[Arm, ...] = get_args(Arm)
Content = Literal["own", "other", "black", "noise", "mask", "brightness"]
"""What is laid over an image: its own map, or a control."""
Logits = Literal["image", "views", "live"]
"""What the teacher says of: the whole image, the crop as the store has it, or the crop asked in training."""

Crop = Literal["auto", "padded", "resized"]
"""What part of an image a network sees in training: one shifted by whole pixels, or a smaller one enlarged; auto decides by the size."""

Optimizer = Literal["sgd", "adam", "adamw"]
Schedule = Literal["constant", "one-cycle"]
Precision = Literal["auto", "float32", "bfloat16"]

Format = Literal["onnx", "onnx-int8", "torch-export"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "onnx-int8": ".onnx", "torch-export": ".pt2"}
"""Of files for devices."""
