"""The allowed values of settings that are a word, as Literal types."""

from typing import Literal, get_args

Method = Literal["ig", "smoothgrad-ig", "input-x-gradient"]
Engine = Literal["captum", "torch", "openvino", "openvino-bf16"]

Arm = Literal["student", "kd", "ig", "kd+ig", "at", "kd+at", "ig+at", "kd+ig+at"]
ARMS: tuple[Arm, ...] = get_args(Arm)
Optimizer = Literal["sgd", "adam", "adamw"]
Schedule = Literal["constant", "one-cycle"]
Precision = Literal["auto", "float32", "bfloat16"]
Content = Literal["own", "other", "black", "noise", "mask", "brightness"]
BadImages = Literal["refuse", "skip"]
Logits = Literal["image", "views", "live"]
Split = Literal["train", "test"]

OnBadImage = Literal["refuse", "skip"]

Forwards = Literal["torch", "openvino", "openvino-bf16"]
