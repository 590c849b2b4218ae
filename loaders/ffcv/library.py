"""What we use of FFCV, imported in one second instead of four.

FFCV keeps two numbers in a dictionary of numba's, for which numba compiles 3 s; a plain one serves.
"""

import numba.typed

_Dict = numba.typed.Dict
numba.typed.Dict = dict
try:
    from ffcv import libffcv as libffcv
    from ffcv.fields import IntField as IntField
    from ffcv.fields import RGBImageField as RGBImageField
    from ffcv.fields.rgb_image import encode_jpeg as encode_jpeg
    from ffcv.memory_allocator import MemoryAllocator as MemoryAllocator
    from ffcv.reader import Reader as Reader
    from ffcv.types import ALLOC_TABLE_TYPE as ALLOC_TABLE_TYPE
    from ffcv.writer import DatasetWriter as DatasetWriter
finally:
    numba.typed.Dict = _Dict
