"""Data sets in files: sparse rows with labels, as text and as arrays.

    read_xmc, write_xmc   XMC or svmlight text, which other programs read too
    write_csr, open_csr   CSR arrays in a file: no parsing, and no need to fit into memory
    convert_xmc           text into such a file, some thousand rows in memory at a time
    convert_parquet       Parquet files into a folder of such files
    read_vec              word vectors as text

    _xmc_text      the text formats
    _csr_file      CSRFile: a file of arrays, mapped into memory
    _parquet       rows in Parquet files
    _word_vectors  files of word vectors
"""
from ._csr_file import (
    CSRFile,
    convert_xmc,
    is_csr_file,
    mapped_rows,
    open_csr,
    read_window,
    write_csr,
)
from ._parquet import convert_parquet
from ._word_vectors import read_vec
from ._xmc_text import (
    FileFormatError,
    begins_with_header,
    parse_rows,
    read_shifted,
    read_xmc,
    write_xmc,
)

__all__ = ["CSRFile", "FileFormatError", "convert_parquet", "convert_xmc", "open_csr", "read_vec",
           "read_xmc", "write_csr", "write_xmc"]
