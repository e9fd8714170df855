"""Text of sparse rows to CSR arrays: ``label,label id:value id:value ...``, one row per line.

Design
------
A. :func:`count` reads the bytes once and bounds the size of every array by the content, so that no
   number written in a file decides how much memory is allocated.
B. :func:`parse` reads them a second time and fills the arrays. The text ends in a newline and no
   token contains one, so no loop has to compare with the end of the buffer.
C. A failure is a kind and a position. The message, which needs the token, is made in Python.
D. A value is ``float32(float64(token))``, rounded as Python and NumPy do. Nearly all tokens need
   one division of doubles for that (`_value`); the others are passed to Python's own ``float``.
"""
from libc.math cimport isinf
from libc.stdint cimport INT32_MAX, int32_t, int64_t, uint8_t, uint64_t

cdef enum:
    OK, LABEL, FEATURE, VALUE, DUPLICATE, ROWS

# The meaning of `kind`: the label or the feature at that position is not an id below the limit; the
# value is not a finite float32; the row that begins there has a feature twice; there are more rows
# than the header says.
KINDS = ("ok", "label", "feature", "value", "duplicate", "rows")

# The powers of ten that a double holds exactly.
cdef double[23] POW10 = [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13,
                         1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22]


def count(const uint8_t[::1] text):
    """(newlines, colons, commas) in the text.   O(bytes)"""
    cdef Py_ssize_t i = 0, stop, n = text.shape[0]
    cdef int64_t lines = 0, colons = 0, commas = 0
    cdef uint8_t some_lines, some_colons, some_commas
    cdef const uint8_t *p = &text[0] if n else NULL

    with nogil:
        while i < n:
            # Byte-wide counters, emptied before they overflow, count 16 characters per instruction.
            stop = min(i + 240, n)
            some_lines = some_colons = some_commas = 0
            while i < stop:
                some_lines += p[i] == c"\n"
                some_colons += p[i] == c":"
                some_commas += p[i] == c","
                i += 1
            lines += some_lines
            colons += some_colons
            commas += some_commas
    return lines, colons, commas


def parse(const uint8_t[::1] text, Py_ssize_t start, int64_t line, bint header, int64_t max_rows,
          int64_t n_features, int64_t n_labels,
          int64_t[::1] x_indptr, int32_t[::1] x_indices, float[::1] x_data,
          int64_t[::1] y_indptr, int32_t[::1] y_indices):
    """Fill two CSR matrices from ``text[start:]``, which begins line number `line`.

    The text ends in a newline. With `header` (XMC text) every line is a row, even an empty one, and
    at most `max_rows` rows may follow. Without it (svmlight text) blank lines are skipped, and so
    is everything from a ``#`` on. Ids are below `n_features` and `n_labels`, themselves below
    2**31. Rows come out sorted; a repeated label of a row is kept once. The arrays have the lengths
    that :func:`count` bounds: (lines + 1), (colons), (lines + 1), (lines + commas).

    Returns (kind, line, offset, n_rows): `kind` indexes ``KINDS``; on failure `offset` is the
    position of the offending token, or of its row for a duplicate.   O(bytes), O(n log n) for an
    unsorted row of n
    """
    cdef const uint8_t *text0 = &text[0]
    cdef const uint8_t *p = text0 + start
    cdef const uint8_t *end = text0 + text.shape[0]
    cdef const uint8_t *begin
    cdef int32_t *x_ids = &x_indices[0] if x_indices.shape[0] else NULL
    cdef float *x_values = &x_data[0] if x_data.shape[0] else NULL
    cdef int32_t *y_ids = &y_indices[0] if y_indices.shape[0] else NULL
    cdef int64_t row = 0, x_nnz = 0, y_nnz = 0, x_size = 0, y_size = 0
    cdef int kind = OK

    x_indptr[0] = y_indptr[0] = 0
    with nogil:
        while p < end:
            begin = p
            if not header or row == max_rows:
                p = _skip_blanks(p)
                if p[0] == c"#" and not header:
                    p = _skip_line(p)
                if p[0] == c"\n":
                    p += 1
                    line += 1
                    continue
                if row == max_rows:
                    kind = ROWS
                    break
                p = begin

            kind = _labels(&p, n_labels, y_ids + y_nnz, &y_size)
            if kind == OK:
                kind = _features(&p, n_features, not header, x_ids + x_nnz, x_values + x_nnz,
                                 &x_size)
            if kind != OK:
                if kind == DUPLICATE:
                    p = begin
                break

            x_nnz += x_size
            y_nnz += y_size
            row += 1
            x_indptr[row] = x_nnz
            y_indptr[row] = y_nnz
            p += 1
            line += 1
    return kind, line, p - text0, row


cdef int _labels(const uint8_t **cursor, int64_t limit, int32_t *ids, int64_t *size) noexcept nogil:
    """Labels of one row, sorted and distinct; the cursor is then at the character after them."""
    cdef const uint8_t *p = cursor[0]
    cdef const uint8_t *token
    cdef int64_t label, previous = -1
    cdef Py_ssize_t n = 0, k
    cdef bint is_sorted = True

    if not _is_blank(p[0]) and p[0] != c"\n":
        while True:
            token = p
            p += p[0] == c"+"
            label = _id(&p)
            if p[0] == c":" and n == 0:  # no labels and no blank: the first feature
                return _done(cursor, cursor[0], size, 0, OK)
            if label < 0 or label >= limit or not (p[0] == c"," or _ends_token(p[0])):
                return _done(cursor, token, size, 0, LABEL)

            is_sorted &= label > previous
            previous = label
            ids[n] = <int32_t>label
            n += 1
            if p[0] != c",":
                break
            p += 1

    if not is_sorted:
        _sort(ids, NULL, n)
        k = 0
        for i in range(1, n):
            if ids[i] != ids[k]:
                k += 1
                ids[k] = ids[i]
        n = k + 1
    return _done(cursor, p, size, n, OK)


cdef int _features(const uint8_t **cursor, int64_t limit, bint comments,
                   int32_t *ids, float *values, int64_t *size) noexcept nogil:
    """Features of one row, sorted; the cursor is then at the newline."""
    cdef const uint8_t *p = cursor[0]
    cdef const uint8_t *token
    cdef int64_t feature, previous = -1
    cdef Py_ssize_t n = 0, i
    cdef bint is_sorted = True

    while True:
        p = _skip_blanks(p)
        if p[0] == c"\n":
            break
        if p[0] == c"#" and comments:
            p = _skip_line(p)
            break

        token = p
        feature = _id(&p)
        if feature < 0 or feature >= limit or p[0] != c":":
            return _done(cursor, token, size, 0, FEATURE)
        p += 1
        if not _value(&p, &values[n]) or not (_ends_token(p[0]) or (comments and p[0] == c"#")):
            return _done(cursor, token, size, 0, VALUE)

        is_sorted &= feature > previous
        previous = feature
        ids[n] = <int32_t>feature
        n += 1

    if not is_sorted:
        _sort(ids, values, n)
        for i in range(1, n):
            if ids[i] == ids[i - 1]:
                return _done(cursor, p, size, 0, DUPLICATE)

    return _done(cursor, p, size, n, OK)


cdef inline int _done(const uint8_t **cursor, const uint8_t *p, int64_t *size, int64_t n,
                      int kind) noexcept nogil:
    cursor[0] = p
    size[0] = n
    return kind


cdef inline bint _is_blank(uint8_t c) noexcept nogil:
    return c == c" " or c == c"\t" or c == c"\r"  # the last one: line ends of Windows


cdef inline bint _ends_token(uint8_t c) noexcept nogil:
    return c == c"\n" or _is_blank(c)


cdef inline const uint8_t *_skip_blanks(const uint8_t *p) noexcept nogil:
    while _is_blank(p[0]):
        p += 1
    return p


cdef inline const uint8_t *_skip_line(const uint8_t *p) noexcept nogil:
    while p[0] != c"\n":
        p += 1
    return p


cdef inline int64_t _id(const uint8_t **cursor) noexcept nogil:
    """The digits at the cursor as a number, INT32_MAX for more than 18; -1 if there is no digit."""
    cdef const uint8_t *p = cursor[0]
    cdef const uint8_t *begin = p
    cdef uint64_t number = 0
    cdef uint8_t digit = <uint8_t>(p[0] - c"0")
    while digit <= 9:
        number = number * 10 + digit
        p += 1
        digit = <uint8_t>(p[0] - c"0")
    cursor[0] = p
    if p - begin > 18:
        return INT32_MAX  # not below any limit
    return <int64_t>number if p > begin else -1


cdef inline bint _value(const uint8_t **cursor, float *value) noexcept nogil:
    """Decimal number to ``float32(float64(token))``; False: not a number, or too large for float32.

    With d the digits as an integer and s their scale, the token is d * 10**s. If d < 2**53 and |s|
    <= 22, both factors are exact doubles and one operation rounds correctly (Clinger, "How to read
    floating point numbers accurately", PLDI 1990). If d is longer, the relative error of the result
    is within 2**-52; if both ends of a wider interval round to one float32, so does the token.
    """
    cdef const uint8_t *p = cursor[0]
    cdef const uint8_t *begin = p
    cdef const uint8_t *point
    cdef uint64_t digits = 0
    cdef Py_ssize_t n_digits
    cdef int64_t scale = 0, exponent
    cdef bint negative = p[0] == c"-", small
    cdef uint8_t digit
    cdef double number
    cdef float low, high

    p += negative or p[0] == c"+"
    point = p
    digit = <uint8_t>(p[0] - c"0")
    while digit <= 9:
        digits = digits * 10 + digit
        p += 1
        digit = <uint8_t>(p[0] - c"0")

    n_digits = p - point
    if p[0] == c".":
        p += 1
        point = p
        digit = <uint8_t>(p[0] - c"0")
        while digit <= 9:
            digits = digits * 10 + digit
            p += 1
            digit = <uint8_t>(p[0] - c"0")
        scale = point - p
        n_digits -= scale

    if n_digits == 0:
        return False

    if p[0] == c"e" or p[0] == c"E":
        p += 1
        small = p[0] == c"-"
        p += small or p[0] == c"+"
        exponent = _id(&p)
        if exponent < 0:
            return False
        scale += -exponent if small else exponent

    cursor[0] = p
    if n_digits <= 19 and -22 <= scale <= 22:
        number = <double>digits
        number = number / POW10[-scale] if scale < 0 else number * POW10[scale]
        if digits >> 53 == 0:
            value[0] = <float>(-number if negative else number)
            return not isinf(value[0])
        low = <float>(number * (1 - 2.0 ** -50))
        high = <float>(number * (1 + 2.0 ** -50))
        if low == high:
            value[0] = -low if negative else low
            return not isinf(low)

    value[0] = <float>_value_by_python(begin, p - begin)
    return not isinf(value[0])


cdef double _value_by_python(const uint8_t *token, Py_ssize_t n) noexcept with gil:
    # Correctly rounded for any length and scale, and independent of the locale, unlike strtod.
    return float((<const char *>token)[:n])


cdef void _sort(int32_t *ids, float *values, Py_ssize_t n) noexcept nogil:
    """Heap sort by id, in place, together with the values, if any.

    Needs no extra memory and is O(n log n) for any input.
    """
    cdef Py_ssize_t start = n // 2, end = n, root, child
    cdef int32_t id_
    cdef float value = 0

    while end > 1:
        if start > 0:
            start -= 1
        else:
            end -= 1
            ids[0], ids[end] = ids[end], ids[0]
            if values != NULL:
                values[0], values[end] = values[end], values[0]

        root = start
        id_ = ids[root]
        if values != NULL:
            value = values[root]

        while True:
            child = 2 * root + 1
            if child >= end:
                break
            child += child + 1 < end and ids[child + 1] > ids[child]
            if ids[child] <= id_:
                break
            ids[root] = ids[child]
            if values != NULL:
                values[root] = values[child]
            root = child

        ids[root] = id_
        if values != NULL:
            values[root] = value
