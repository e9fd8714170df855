"""CSR arrays to text of sparse rows, in the fewest digits that :mod:`_parse` reads unchanged."""
from libc.math cimport fabs, llrint
from libc.stdint cimport int32_t, int64_t, uint8_t

MAX_ID_BYTES = 11     # ten digits and a separator
MAX_VALUE_BYTES = 17  # -1.23456789e-38, or a sign, "0." and at most 13 digits; and a separator

# Exact as doubles, so that a product or quotient with them is rounded once, as in the reader.
cdef double[14] POW10 = [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13]


def format_rows(const int64_t[::1] x_indptr, const int32_t[::1] x_indices, const float[::1] x_data,
                const int64_t[::1] y_indptr, const int32_t[::1] y_indices,
                Py_ssize_t first, Py_ssize_t last, int base, uint8_t[::1] out):
    """Write rows first:last as text, feature ids from `base`; returns the number of bytes.

    `out` has room for a newline per row, ``MAX_ID_BYTES`` per label and ``MAX_ID_BYTES +
    MAX_VALUE_BYTES`` per feature.
    """
    cdef uint8_t *out0 = &out[0]
    cdef uint8_t *p = out0
    cdef Py_ssize_t i, k

    with nogil:
        for i in range(first, last):
            for k in range(y_indptr[i], y_indptr[i + 1]):
                if k > y_indptr[i]:
                    p[0] = c","
                    p += 1
                p = _write_digits(p, y_indices[k], 1)
            for k in range(x_indptr[i], x_indptr[i + 1]):
                p[0] = c" "
                p = _write_digits(p + 1, <int64_t>x_indices[k] + base, 1)
                p[0] = c":"
                p = _write_value(p + 1, x_data[k])
            p[0] = c"\n"
            p += 1
    return p - out0


cdef inline uint8_t *_write_digits(uint8_t *p, int64_t number, Py_ssize_t width) noexcept nogil:
    """A number >= 0, with leading zeros up to the width."""
    cdef Py_ssize_t n = 1, k
    cdef int64_t rest = number
    while rest >= 10:
        rest = rest // 10
        n += 1
    n = max(n, width)
    for k in range(n - 1, -1, -1):
        p[k] = <uint8_t>(c"0" + number % 10)
        number = number // 10
    return p + n


cdef uint8_t *_write_value(uint8_t *p, float value) noexcept nogil:
    """The shortest decimal that the reader's ``float32(float64(token))`` turns into this float32.

    Tries 6, 7, 8 and 9 digits. Nine always suffice. A decimal of at most six digits survives the
    conversion to float32 (FLT_DIG), so a shorter one appears as six digits that end in zeros.
    """
    cdef double size = fabs(<double>value)
    cdef int n_digits, places, exponent = -5
    cdef int64_t digits = 0

    if not (1e-5 <= size < 1e9 or size == 0):
        return _write_value_by_python(p, value)

    if value < 0 or (value == 0 and 1 / value < 0):
        p[0] = c"-"
        p += 1
    if size == 0:
        return _write_digits(p, 0, 1)

    # 10**exponent <= size. Where 1e-4 and the like are not exact, `exponent` may be one too low:
    # `digits` is then one digit longer, which the loop below handles as well.
    while exponent < 8 and size >= (POW10[exponent + 1] if exponent >= -1
                                    else 1 / POW10[-exponent - 1]):
        exponent += 1

    for n_digits in range(6, 10):
        places = n_digits - 1 - exponent
        if places >= 0:
            digits = llrint(size * POW10[places])
            if <float>(<double>digits / POW10[places]) == <float>size:
                break
        else:
            digits = llrint(size / POW10[-places])
            if <float>(<double>digits * POW10[-places]) == <float>size:
                break

    while digits % 10 == 0 and places > 0:
        digits = digits // 10
        places -= 1
    if places <= 0:
        return _write_digits(p, digits * <int64_t>POW10[-places], 1)

    p = _write_digits(p, digits // <int64_t>POW10[places], 1)
    p[0] = c"."
    return _write_digits(p + 1, digits % <int64_t>POW10[places], places)


cdef uint8_t *_write_value_by_python(uint8_t *p, float value) noexcept with gil:
    cdef bytes token = b""
    cdef Py_ssize_t k
    cdef int n_digits
    for n_digits in range(6, 10):
        token = b"%.*g" % (n_digits, value)  # independent of the locale, as `float` is
        if <float>float(token) == value:
            break
    for k in range(len(token)):
        p[k] = token[k]
    return p + len(token)
