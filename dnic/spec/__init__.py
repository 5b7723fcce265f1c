"""What the user asks for: the spec, its loader, and the model file."""

from dnic.spec.devices import BetweenSpec, DevicesSpec, GroupSpec, LinkSpec, LinksSpec
from dnic.spec.loader import load_spec, override, spec_from_mapping, spec_from_text
from dnic.spec.modelfile import ModelFile, load_model_file
from dnic.spec.optimizer import OptimizerSpec
from dnic.spec.problem import SpecErrors
from dnic.spec.spec import (
    HeadSpec,
    InterfaceSpec,
    ModelSpec,
    PartitionSpec,
    Spec,
    TrainSpec,
    json_schema,
)
from dnic.spec.starter import render, starter

__all__ = [
    "BetweenSpec",
    "DevicesSpec",
    "GroupSpec",
    "HeadSpec",
    "InterfaceSpec",
    "LinkSpec",
    "LinksSpec",
    "ModelFile",
    "ModelSpec",
    "OptimizerSpec",
    "PartitionSpec",
    "Spec",
    "SpecErrors",
    "TrainSpec",
    "json_schema",
    "load_model_file",
    "load_spec",
    "override",
    "render",
    "spec_from_mapping",
    "spec_from_text",
    "starter",
]
