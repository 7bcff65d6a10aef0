from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Coded(_message.Message):
    __slots__ = ("relative", "tensors")
    RELATIVE_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    relative: bool
    tensors: _containers.RepeatedCompositeFieldContainer[CodedTensor]
    def __init__(self, relative: _Optional[bool] = ..., tensors: _Optional[_Iterable[_Union[CodedTensor, _Mapping]]] = ...) -> None: ...

class CodedTensor(_message.Message):
    __slots__ = ("name", "dtype", "shape", "method", "setting", "parts", "stype", "stype_dtype", "stype_shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    SETTING_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    STYPE_FIELD_NUMBER: _ClassVar[int]
    STYPE_DTYPE_FIELD_NUMBER: _ClassVar[int]
    STYPE_SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: int
    shape: _containers.RepeatedScalarFieldContainer[int]
    method: int
    setting: int
    parts: _containers.RepeatedCompositeFieldContainer[CodedPart]
    stype: str
    stype_dtype: str
    stype_shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[int] = ..., shape: _Optional[_Iterable[int]] = ..., method: _Optional[int] = ..., setting: _Optional[int] = ..., parts: _Optional[_Iterable[_Union[CodedPart, _Mapping]]] = ..., stype: _Optional[str] = ..., stype_dtype: _Optional[str] = ..., stype_shape: _Optional[_Iterable[int]] = ...) -> None: ...

class CodedPart(_message.Message):
    __slots__ = ("size", "zstd")
    SIZE_FIELD_NUMBER: _ClassVar[int]
    ZSTD_FIELD_NUMBER: _ClassVar[int]
    size: int
    zstd: bool
    def __init__(self, size: _Optional[int] = ..., zstd: _Optional[bool] = ...) -> None: ...
